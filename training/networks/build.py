"""Networks from flags and configurations, with Ho et al.'s initialisation or the weights of another model.

Each is called as `net(x_t, t, class_labels).sample` with x_t (B, C, H, W) and t (B,) in diffusers' 0..T-1.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from trilemma.pipelines.files.reading import FileError, read_json
from trilemma.pipelines.networks.plain_unet import NoShortcut, PlainUNet2DModel
from trilemma.pipelines.networks.vdm_model import PointMLP
from trilemma.training.images.image_set import Images
from trilemma.training.networks.init_from import saved_config, take_weights
from trilemma.training.networks.rows import NETS, check_side, net_for
from trilemma.training.options.in_memory import NetworkInMemory

SILU_POWER = 0.3557
"""E[silu(z)^2] for z ~ N(0, 1)."""


NETWORK_CLASSES: dict[str, type[ModelMixin]] = {
    "UNet2DModel": UNet2DModel,
    "PlainUNet2DModel": PlainUNet2DModel,
    "PointMLP": PointMLP,
}
"""`_class_name` of a configuration -> class."""


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

    `channels` and `resolution` are the data's and replace the configuration's; so do the others unless None.
    `out_channels` is `channels` unless given (2 * channels where the variance is learned).
    """
    name = config.get("_class_name", "UNet2DModel")
    if name not in NETWORK_CLASSES:
        choices = ", ".join(NETWORK_CLASSES)
        raise ValueError(f"the network's _class_name must be one of {choices}; got {name!r}")
    replaced = {"num_class_embeds": num_class_embeds, "dropout": dropout}
    values = {
        **{key: value for key, value in config.items() if not key.startswith("_")},
        **{key: value for key, value in replaced.items() if value is not None},
        "in_channels": channels,
        "out_channels": out_channels or channels,
        "sample_size": resolution,
    }
    options = list(inspect.signature(NETWORK_CLASSES[name]).parameters)
    for key in values:
        if key not in options:
            near = difflib.get_close_matches(key, options, n=1) or [", ".join(options)]
            raise ValueError(f"a {name} has no option {key!r}; did you mean {near[0]}?")
    net = NETWORK_CLASSES[name](**values)
    check_side(resolution, levels=len(net.config.get("block_out_channels", (1,))))
    return ho_init_(net)


def make_net(
    config,
    images: Images,
    *,
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    classes: tuple[str, ...] | None = None,
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    build: Callable[..., ModelMixin] = build_network,
) -> ModelMixin:
    """The network of the flags for images of this size, with the weights of --init_from if given.

    config: of a family with a NetConfig. classes: names of the model's classes, which --init_from must have
    too unless --init_new_classes. adapt: changes a network's configuration to the family's needs. build:
    makes the network, with the arguments of `build_network`.
    """
    net = config.net
    if isinstance(net, NetworkInMemory):
        row = {"_class_name": type(net.module).__name__, **_plain(net.module.config)}
    elif net.model_config_name_or_path:
        row = load_network_config(net.model_config_name_or_path)
    elif config.run.init_from and not net.net:
        row = saved_config(config.run.init_from)
    else:
        row = NETS[net.net or net_for(images.resolution, images.points)]
    model = build(
        adapt({key: value for key, value in row.items() if key != "num_class_embeds"}),  # the data decide it
        channels=images.channels,
        resolution=images.resolution,
        out_channels=out_channels,
        num_class_embeds=num_class_embeds,
        dropout=net.dropout,
    )
    if isinstance(net, NetworkInMemory):
        model = _fitting(net.module, model)
    if net.enable_xformers_memory_efficient_attention:
        try:
            model.enable_xformers_memory_efficient_attention()
        except (ModuleNotFoundError, ValueError) as problem:
            raise ValueError(f"--enable_xformers_memory_efficient_attention: {problem}") from problem
    if config.run.init_from:
        take_weights(model, config.run.init_from, classes, config.run.init_new_classes)
    return model


def _fitting(module: ModelMixin, needed: ModelMixin) -> ModelMixin:
    """The network of a script; ValueError unless it is as the one that these images and options need."""
    own, other = (
        {"class": type(net).__name__, **json.loads(json.dumps(_plain(net.config)))}
        for net in (module, needed)
    )
    differing = [name for name in {**other, **own} if own.get(name) != other.get(name)]
    if differing:
        words = "; ".join(f"{name} {other.get(name)}, not {own.get(name)}" for name in differing)
        raise ValueError(f"network= does not fit these images and options, which need: {words}")
    return module


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what diffusers notes in it."""
    return {name: value for name, value in config.items() if name[0] != "_"}


def _read_config(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except FileError as fault:
        raise ValueError(f"--model_config_name_or_path: {fault}") from fault


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
    raise ValueError(f"{option} is neither a .json file, nor a folder, nor a model on the Hub: {last_error}")
