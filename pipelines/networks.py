"""Networks from configurations: stock `UNet2DModel`s with Ho et al.'s initialisation, the ablation's plain
U-Net, an MLP for points.

Each is called as `net(x_t, t, class_labels).sample` with x_t (B, C, H, W) and t (B,) in diffusers' 0..T-1.
"""

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

SILU_POWER = 0.3557
"""E[silu(z)^2] for z ~ N(0, 1)."""


class NoShortcut(nn.Module):
    """In the place of a residual block's shortcut: zero, so that the block has no residual connection."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class PlainUNet2DModel(ModelMixin, ConfigMixin):
    """A U-Net without residual connections and attention, with or without group norm (`normalize`).

    The stock `UNet2DModel` with those parts taken out, so that these rows of the ablation differ from the
    others in nothing else. The concatenated skips between the two halves, which make it a U-Net, stay.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownBlock2D",) * 3,
        up_block_types: tuple[str, ...] = ("UpBlock2D",) * 3,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 2,
        norm_num_groups: int = 8,
        norm_eps: float = 1e-6,
        downsample_padding: int = 0,
        flip_sin_to_cos: bool = False,
        freq_shift: int = 1,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        normalize: bool = True,
    ):
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            downsample_padding=downsample_padding,
            flip_sin_to_cos=flip_sin_to_cos,
            freq_shift=freq_shift,
            dropout=dropout,
            num_class_embeds=num_class_embeds,
            add_attention=False,
        )
        for block in [module for module in self.unet.modules() if isinstance(module, ResnetBlock2D)]:
            block.conv_shortcut = NoShortcut()
            if not normalize:
                block.norm1, block.norm2 = nn.Identity(), nn.Identity()
        if not normalize:
            self.unet.conv_norm_out = nn.Identity()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """sample (B, C, H, W), timestep (B,) or one for all, class_labels (B,) -> (B, out_channels, H, W)."""
        return self.unet(sample, timestep, class_labels, return_dict=return_dict)


class PointMLP(ModelMixin, ConfigMixin):
    """A residual network for points: images of one pixel, whose channels are the coordinates."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 1,
        in_channels: int = 2,
        out_channels: int = 2,
        width: int = 128,
        layers: int = 4,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if sample_size != 1:
            raise ValueError(f"a PointMLP takes points, images of one pixel; got a side of {sample_size}")
        self.time_proj = Timesteps(width, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(width, width)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)
        self.conv_in = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout),
                nn.Linear(width, width),
            )
            for _ in range(layers)
        )  # fmt: skip
        self.conv_out = nn.Linear(width, out_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """sample (B, C, 1, 1), timestep (B,) or one for all, class_labels (B,) -> (B, out_channels, 1, 1)."""
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        hidden = self.conv_in(sample.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden + embedding)
        output = self.conv_out(nn.functional.silu(hidden))[:, :, None, None]
        return UNet2DOutput(sample=output) if return_dict else (output,)


NETWORK_CLASSES: dict[str, type[ModelMixin]] = {
    "UNet2DModel": UNet2DModel,
    "PlainUNet2DModel": PlainUNet2DModel,
    "PointMLP": PointMLP,
}


@torch.no_grad()
def ho_init_(net: ModelMixin) -> ModelMixin:
    """Initialise a network in place as Ho et al. 2020 do (nn.py and models/unet.py of their code).

    Convolutions and linear layers: uniform with variance 1 / fan_avg, zero biases. The last convolution of
    each residual block, the output of each attention and `conv_out`: zero (in their code, a variance of
    1e-10 / fan_avg). So the first output is 0, and so is what each block and attention adds to its input.
    Norms and class embeddings keep PyTorch's initialisation.

    Through a block without its residual connection nothing would flow if it ended in zero. Its convolutions
    get 1 / (fan_avg E[silu(z)^2]) for the variance instead: with no norm, the signal would fade from layer to
    layer otherwise.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.split(".")[-1] == "conv_out":
                nn.init.zeros_(module.weight)
    for module in net.modules():
        if isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
        elif isinstance(module, ResnetBlock2D) and isinstance(module.conv_shortcut, NoShortcut):
            nn.init.xavier_uniform_(module.conv1.weight, gain=SILU_POWER**-0.5)
            nn.init.xavier_uniform_(module.conv2.weight, gain=SILU_POWER**-0.5)
        elif isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
    return net


def build_network(
    config: dict[str, Any],
    *,
    channels: int,
    resolution: int,
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    dropout: float | None = None,
) -> ModelMixin:
    """A network from a row of `NETS` or from a model's config.json, with Ho et al.'s initialisation.

    `channels` and `resolution` are the data's and replace the configuration's; so do the others where given.
    `out_channels` is `channels` unless given (2 * channels where the variance is learned).
    """
    name = config.get("_class_name", "UNet2DModel")
    if name not in NETWORK_CLASSES:
        choices = ", ".join(NETWORK_CLASSES)
        raise ValueError(f"the network's _class_name must be one of {choices}; got {name!r}")
    given = {"num_class_embeds": num_class_embeds, "dropout": dropout}
    values = {
        **{key: value for key, value in config.items() if not key.startswith("_")},
        **{key: value for key, value in given.items() if value is not None},
        "in_channels": channels,
        "out_channels": out_channels or channels,
        "sample_size": resolution,
    }
    known = list(inspect.signature(NETWORK_CLASSES[name]).parameters)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) or [", ".join(known)]
            raise ValueError(f"a {name} has no option {key!r}; did you mean {near[0]}?")
    net = NETWORK_CLASSES[name](**values)
    _check_resolution(resolution, levels=len(net.config.get("block_out_channels", (1,))))
    return ho_init_(net)


def _check_resolution(resolution: int, levels: int) -> None:
    """Each level but the last halves the image, and the two halves of the U-Net must meet at equal sizes."""
    factor = 2 ** (levels - 1)
    if resolution % factor:
        below = resolution // factor * factor
        fits = f"{below} or {below + factor}" if below else f"{factor}"
        raise ValueError(
            f"--resolution must be a multiple of {factor} for a network of {levels} levels; "
            f"got {resolution}. Take {fits}, or a network with fewer levels."
        )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except ValueError as problem:
        raise ValueError(f"--model_config_name_or_path: {file} is not JSON: {problem}") from problem
    if not isinstance(config, dict):
        raise ValueError(f"--model_config_name_or_path: {file} must map names to values")
    return config


def load_network_config(path_or_id: str) -> dict[str, Any]:
    """A configuration for `build_network`: a .json file, a model's or pipeline's folder, or a Hub id.

    A config.json at the top is taken before the one in the sub-folder `unet`.
    """
    option = f"--model_config_name_or_path {path_or_id!r}"
    path = Path(path_or_id)
    if path.suffix == ".json" or path.is_dir():
        files = [path] if path.suffix == ".json" else [path / "config.json", path / "unet" / "config.json"]
        for file in files:
            if file.is_file():
                return _read_config(file)
        raise ValueError(f"{option}: no such file as {' or '.join(map(str, files))}")
    for subfolder in (None, "unet"):
        try:
            return UNet2DModel.load_config(path_or_id, subfolder=subfolder)
        except OSError as error:
            last_error = error
    raise ValueError(f"{option} is no .json file, no folder, and no model on the Hub: {last_error}")
