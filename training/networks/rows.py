"""The networks, one row each: the configuration that `training/networks/build.py` makes a model of.

Plain values and no torch, so that the command line can list and check the names at once. What is
missing in a row (`sample_size`, `in_channels`, `out_channels`) comes from the data. Our own small rows
have attention heads of 32 channels or more: at equal FLOPs, heads of 8, the library's default, cost
four times as much on a CPU.
"""

from collections.abc import Mapping
from typing import Any

_DOWN, _ATTN_DOWN, _UP, _ATTN_UP = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"

# The conventions of Ho et al.'s code (github.com/hojonathanho/diffusion) where diffusers' defaults differ.
_HO = {
    "_class_name": "UNet2DModel",
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "layers_per_block": 2,
}

_SMALL = _HO | {"norm_num_groups": 8}

# Three levels without attention: 28 -> 14 -> 7, or 32 -> 16 -> 8.
_ABLATION = _SMALL | {"down_block_types": (_DOWN,) * 3, "up_block_types": (_UP,) * 3}

NETS: dict[str, dict[str, Any]] = {
    # A few minutes on two CPU cores; attention at 4x4.
    "unet_8": _SMALL
    | {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": (_DOWN, _ATTN_DOWN),
        "up_block_types": (_ATTN_UP, _UP),
        "attention_head_dim": 32,
    },
    # Attention at 8x8 and 4x4.
    "unet_16": _SMALL
    | {
        "block_out_channels": (32, 64, 96),
        "down_block_types": (_DOWN, _ATTN_DOWN, _ATTN_DOWN),
        "up_block_types": (_ATTN_UP, _ATTN_UP, _UP),
        "attention_head_dim": 32,
    },
    # 28 or 32 pixels; attention at 7x7 or 8x8.
    "unet_28": _SMALL
    | {
        "block_out_channels": (32, 64, 64),
        "down_block_types": (_DOWN, _DOWN, _ATTN_DOWN),
        "up_block_types": (_ATTN_UP, _UP, _UP),
        "attention_head_dim": 64,
    },
    # The same for a CPU: a third of its cost.
    "unet_28_small": _SMALL
    | {
        "block_out_channels": (24, 48, 48),
        "layers_per_block": 1,
        "down_block_types": (_DOWN, _DOWN, _ATTN_DOWN),
        "up_block_types": (_ATTN_UP, _UP, _UP),
        "attention_head_dim": 48,
    },
    # Ho et al. 2020 (arXiv 2006.11239), appendix B, and their scripts/run_cifar.py: one head at 16x16.
    "unet_cifar10": _HO
    | {
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": (_DOWN, _ATTN_DOWN, _DOWN, _DOWN),
        "up_block_types": (_UP, _UP, _ATTN_UP, _UP),
        "attention_head_dim": None,
        "dropout": 0.1,
    },
    # Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3, ImageNet 64x64: 128 x (1, 2, 3, 4), 3 blocks,
    # attention at 16x16 and 8x8, scale-shift norm. Heads of 64 channels are Dhariwal & Nichol's (arXiv
    # 2105.05233, section 3): a UNet2DModel fixes the size of a head, not the number of heads.
    "unet_64": {
        "_class_name": "UNet2DModel",
        "block_out_channels": (128, 256, 384, 512),
        "layers_per_block": 3,
        "down_block_types": (_DOWN, _DOWN, _ATTN_DOWN, _ATTN_DOWN),
        "up_block_types": (_ATTN_UP, _ATTN_UP, _UP, _UP),
        "attention_head_dim": 64,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,  # or else scale_shift drops the norm of the middle attention
    },
    # For a CPU, where unet_64 takes seconds an image; attention at 8x8.
    "unet_64_small": _SMALL
    | {
        "block_out_channels": (16, 32, 48, 64),
        "layers_per_block": 1,
        "down_block_types": (_DOWN, _DOWN, _DOWN, _ATTN_DOWN),
        "up_block_types": (_ATTN_UP, _UP, _UP, _UP),
        "attention_head_dim": 64,
    },
    # Ho et al. 2020, appendix B: the 256x256 network, 128 x (1, 1, 2, 2, 4, 4), less its first level.
    "unet_128": _HO
    | {
        "block_out_channels": (128, 128, 256, 256, 512),
        "down_block_types": (_DOWN, _DOWN, _DOWN, _ATTN_DOWN, _DOWN),
        "up_block_types": (_UP, _ATTN_UP, _UP, _UP, _UP),
        "attention_head_dim": None,
    },
}

# Kingma et al. 2021 (arXiv 2107.00630), appendix B: one level, so that no detail is lost to the likelihood;
# residual blocks down, one more up, and attention in the middle alone.
_FLAT = {"down_block_types": (_DOWN,), "up_block_types": (_UP,)}
NETS |= {
    "vdm_8": _SMALL
    | _FLAT
    | {"block_out_channels": (32,), "layers_per_block": 3, "attention_head_dim": 32},
    "vdm_28_small": _SMALL
    | _FLAT
    | {"block_out_channels": (24,), "layers_per_block": 2, "attention_head_dim": 24},
    "vdm_cifar10": _HO
    | _FLAT
    | {
        "block_out_channels": (128,),
        "layers_per_block": 32,
        "attention_head_dim": None,
        "dropout": 0.1,
    },
}

# Points of the plane: images of one pixel.
NETS["mlp"] = {"_class_name": "PointMLP", "width": 128, "layers": 4}

# The ablation: each row adds one thing to the row before it, at the same depth. The two without residual
# connections are wider at the bottom, so that all four cost the same FLOPs (within 5%). The last one is
# unet_28 itself.
NETS |= {
    "simple": _ABLATION
    | {"_class_name": "PlainUNet2DModel", "block_out_channels": (32, 64, 72), "normalize": False},
    "conv": _ABLATION
    | {"_class_name": "PlainUNet2DModel", "block_out_channels": (32, 64, 72), "normalize": True},
    "resnet": _ABLATION | {"block_out_channels": (32, 64, 64), "add_attention": False},
    "resnet_attention": NETS["unet_28"],
}


FOR_POINTS = "mlp"
BY_SIDE = {8: "unet_8", 16: "unet_16", 28: "unet_28", 32: "unet_cifar10", 64: "unet_64"}
"""Largest side of images -> row that is meant for them."""

CANDIDATES = {
    8: ("unet_8",),
    32: ("unet_28_small", "unet_28", "unet_16", "unet_cifar10"),
    64: ("unet_64_small", "unet_64"),
}
"""Largest side of images -> rows from which `--minutes` chooses, the cheapest first; above, `unet_128`."""


def net_for(resolution: int, points: bool = False) -> str:
    """The default of `--net`: the row for points of the plane, or the first one for images of this side."""
    if points:
        return FOR_POINTS
    return next((name for side, name in BY_SIDE.items() if resolution <= side), "unet_128")


def network_name(options: Mapping[str, Any], resolution: int | None, points: bool = False) -> str | None:
    """What the network of these flags is called; None for families with a network of their own.

    resolution: of the images; None, where it is not known, leaves open which row is taken.
    ValueError if `--minutes` has none to choose for it.
    """
    if "net" not in options:
        return None
    if file := options["model_config_name_or_path"]:
        return f"of {file}"
    if options["init_from"] and not options["net"]:
        return f"of {options['init_from']}"
    if options["net"] or resolution is None:
        return options["net"] or "by the resolution"
    if options.get("minutes"):
        return " or ".join(candidates(resolution, points))
    return net_for(resolution, points)


def check_side(resolution: int, levels: int) -> None:
    """ValueError for images that cannot be halved at each level but the last."""
    factor = 2 ** (levels - 1)
    if resolution == 1 and levels > 1:
        raise ValueError(f"points are images of one pixel, for --net mlp; this network has {levels} levels")
    if resolution % factor:
        below = resolution // factor * factor
        fits = f"{below} or {below + factor}" if below else f"{factor}"
        raise ValueError(
            f"--resolution must be a multiple of {factor} for a network of {levels} levels; "
            f"got {resolution}. Use {fits}, or a network with fewer levels."
        )


def candidates(side: int, points: bool = False) -> tuple[str, ...]:
    """Networks for images of this side, the cheapest first; ValueError if the levels of none can halve it."""
    if points:
        return (FOR_POINTS,)
    row = next((names for largest, names in CANDIDATES.items() if side <= largest), ("unet_128",))
    levels = {name: len(NETS[name]["block_out_channels"]) for name in row}
    if not (fitting := tuple(name for name in row if side % 2 ** (levels[name] - 1) == 0)):
        check_side(side, min(levels.values()))
    return fitting
