"""The variational diffusion model's one component: its noise schedule gamma and its network, in one model.

Kingma, Salimans, Poole & Ho 2021 (arXiv 2107.00630). gamma(time) = -log SNR grows from gamma(0) to gamma(1)
and may be learned; alpha^2 = sigmoid(-gamma) and sigma^2 = sigmoid(gamma). The network predicts the noise in
z = alpha x0 + sigma noise from z and gamma. Being in one model, both are averaged, saved and loaded together.
"""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


WITHOUT_FLOAT64 = ("mps",)  # there float64 values stay on the CPU, and come to the images as float32


def exact_device(device: torch.device) -> torch.device:
    """Where the float64 values that belong to tensors on `device` are."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


MONOTONE_FEATURES = 1024
"""Hidden units of the monotone network, as in the paper's appendix H."""

EMBEDDED_RANGE = 1000.0
"""gamma_min..gamma_max becomes 0..1000, the range that embeddings of timesteps are made for."""


def exact(values: Tensor) -> Tensor:
    """The values in float64, on a device that has it."""
    return values.to(exact_device(values.device)).double()


class LinearShape(nn.Module):
    """The straight line from 0 to 1."""

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope at `time` (B,)."""
        return time, torch.ones_like(time)


class MonotoneShape(nn.Module):
    """An increasing function from 0 at time 0 to 1 at time 1: a network whose weights are all positive.

    The paper's appendix H: a line plus a layer of sigmoids; here divided by its own rise from 0 to 1, so that
    it moves gamma between its two ends and never the ends.
    """

    def __init__(self):
        super().__init__()
        # Weights are exponentials of these, and so positive.
        self.line = nn.Parameter(torch.zeros(()))
        self.inner = nn.Parameter(torch.randn(MONOTONE_FEATURES))
        self.outer = nn.Parameter(torch.zeros(MONOTONE_FEATURES))
        self.bias = nn.Parameter(torch.randn(MONOTONE_FEATURES))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope at `time` (B,) float64."""
        ends = torch.arange(2, dtype=time.dtype, device=time.device)  # made there: nothing is sent
        raw, slope = self._raw(torch.cat([time, ends]))
        start, rise = raw[-2], raw[-1] - raw[-2]
        return (raw[:-2] - start) / rise, slope[:-2] / rise

    def _raw(self, time: Tensor) -> tuple[Tensor, Tensor]:
        line, inner, outer = (exact(part).exp() for part in (self.line, self.inner, self.outer))
        hidden = (inner * (2 * time[:, None] - 1) + exact(self.bias)).sigmoid()
        raw = line * time + (outer * hidden).mean(1)
        return raw, line + (outer * hidden * (1 - hidden) * 2 * inner).mean(1)


GAMMAS: dict[str, tuple[type[nn.Module], bool]] = {
    "linear": (LinearShape, False),
    "learned_linear": (LinearShape, True),
    "monotone": (MonotoneShape, True),
    "monotone_fixed_ends": (MonotoneShape, False),
}
"""Name -> how gamma goes from end to end, and whether its two ends are learned."""


class Gamma(nn.Module):
    """gamma(time) for time in [0, 1], float64: gamma(0) + (gamma(1) - gamma(0)) shape(time).

    Learned ends are kept as their distance from the initial ones, so that weight decay pulls towards those.
    """

    initial_ends: Tensor

    def __init__(self, kind: str, start: float, end: float):
        super().__init__()
        shape, learned = GAMMAS[kind]
        self.shape = shape()
        self.shift = nn.Parameter(torch.zeros(2)) if learned else None
        ends = torch.tensor([start, end], dtype=torch.float64)
        self.register_buffer("initial_ends", ends, persistent=False)

    def _apply(self, fn, recurse=True):
        """Move with the model, but keep all digits whatever dtype the model is cast to."""

        def move(tensor: Tensor) -> Tensor:
            device = fn(tensor.float()).device  # `fn` may not be able to move a float64 tensor
            return tensor.to(exact_device(device) if tensor.dtype is torch.float64 else device)

        return super()._apply(move, recurse)

    def ends(self) -> Tensor:
        """gamma(0) and gamma(1), float64 (2,)."""
        return self.initial_ends if self.shift is None else self.initial_ends + exact(self.shift)

    def forward(self, time: Tensor) -> Tensor:
        """gamma at `time` (B,) float64 in [0, 1] -> float64 (B,)."""
        start, end = self.ends()
        return start + (end - start) * self.shape(time.to(start.device))[0]


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


NETWORKS: dict[str, type[ModelMixin]] = {"UNet2DModel": UNet2DModel, "PointMLP": PointMLP}
"""Name of a class -> the class that the network within may be of."""


class VDMModel(ModelMixin, ConfigMixin):
    """gamma(time), and noise in z predicted by a network that sees z, its Fourier features and gamma.

    network: `_class_name` and the options of a row of NETWORKS, without those that follow from the others.
    fourier_features: n of the features sin(2^n pi z) and cos(2^n pi z), which show the finest detail (paper,
        appendix C); 6 and 7 in the paper's code for images of 8 bits.
    num_class_embeds: classes and one more for "unknown"; None for a model without classes.
    """

    _keep_in_fp32_modules = ["gamma"]  # noqa: RUF012 (diffusers takes a list alone)

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        sample_size: int,
        in_channels: int = 3,
        num_class_embeds: int | None = None,
        gamma_type: str = "learned_linear",
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        fourier_features: tuple[int, ...] = (),
    ):
        super().__init__()
        name = network["_class_name"]
        if name not in NETWORKS:
            raise ValueError(f"the network's _class_name must be one of {', '.join(NETWORKS)}; got {name!r}")
        options = {key: value for key, value in network.items() if not key.startswith("_")}
        # A time embedding of kind "fourier" would divide the output by the timestep, which crosses zero.
        if options.get("time_embedding_type", "positional") != "positional":
            raise ValueError("the network's time_embedding_type must be 'positional'")
        self.net = NETWORKS[name](
            sample_size=sample_size,
            in_channels=in_channels * (1 + 2 * len(fourier_features)),
            out_channels=in_channels,
            num_class_embeds=num_class_embeds,
            **options,
        )
        self.gamma = Gamma(gamma_type, gamma_min, gamma_max)

    def forward(self, z: Tensor, gamma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """eps_hat (B, C, H, W) float32, the noise in z (B, C, H, W) of level gamma (B,).

        class_labels (B,) in 0..K, where the last one stands for no label; for models with classes alone.
        """
        config = self.config
        level = (gamma - config.gamma_min) / (config.gamma_max - config.gamma_min) * EMBEDDED_RANGE
        z = z.float()
        waves = [2**n * math.pi * z for n in config.fourier_features]
        seen = torch.cat([z, *(part for wave in waves for part in (wave.sin(), wave.cos()))], dim=1)
        level = level.float().to(z.device)
        output = self.net(seen.to(self.net.dtype), level, class_labels).sample
        # z is nearly noise where there is much of it: the network adds what z is not.
        return z + output.float()
