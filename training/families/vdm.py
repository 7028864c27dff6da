"""The variational diffusion model, for the likelihood: options, recipes, construction."""

from dataclasses import dataclass
from typing import Any, Literal

from trilemma.training.families import Family, Preset
from trilemma.training.networks.rows import NETS
from trilemma.training.options.flags import option
from trilemma.training.options.groups import (
    DataConfig,
    EMAConfig,
    EvalConfig,
    HubConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    RunConfig,
    SheetConfig,
)

MAX_FOURIER = 16
"""Largest exponent: 2^16 periods over the range of a pixel, far more than 8 bits resolve."""


@dataclass(frozen=True)
class VDMConfig:
    """The noise schedule, the bound, and optional shortcut MCMC."""

    vdm_timesteps: int = option(0, "T, the steps of the bound; 0 for continuous time", low=0)
    gamma: Literal["linear", "learned_linear", "monotone", "monotone_fixed_ends"] = option(
        "learned_linear",
        "gamma = -log SNR over time: a line, a line with learned ends, or a monotone network",
    )
    gamma_min: float = option(-13.3, "gamma at time 0, at the start of training if it is learned")
    gamma_max: float = option(5.0, "gamma at time 1, at the start of training if it is learned")
    fourier_features: tuple[int, ...] | None = option(
        None,
        "exponents n of the extra inputs sin(2^n pi z) and cos(2^n pi z); 6 7 in the paper",
    )
    class_conditional: bool = option(False, "condition on class labels; the data must have labels")
    p_uncond: float = option(
        0.1, "probability of training on an image without its label", low=(0, 1),
        needs=("class_conditional", (True,)),
    )  # fmt: skip
    shortcut_steps: int = option(
        0, "steps K of a shortcut chain to train together with the bound; 0 for none", low=0,
        needs=("vdm_timesteps", ...),
    )  # fmt: skip
    fidelity_weight: float = option(
        1.0, "weight of the chain's squared error", low=0.0, needs=("shortcut_steps", ...)
    )

    def __post_init__(self):
        wrong = [n for n in self.fourier_features or () if not 0 <= n <= MAX_FOURIER]
        if wrong:
            raise ValueError(f"--fourier_features must be in 0..{MAX_FOURIER}; got {wrong[0]}")
        if self.gamma_max <= self.gamma_min:
            raise ValueError(f"--gamma_max must be above --gamma_min; got {self.gamma_min}..{self.gamma_max}")
        if self.shortcut_steps > self.vdm_timesteps:
            raise ValueError(
                f"--shortcut_steps must be at most --vdm_timesteps, {self.vdm_timesteps}, of which they are "
                f"a part; got {self.shortcut_steps}"
            )


@dataclass(frozen=True)
class VDMOptimConfig(OptimConfig):
    """Batches, AdamW and the learning rate; defaults from the paper's CIFAR-10 experiments."""

    adam_beta2: float = option(0.99, "Adam's second decay", low=(0, 1.0))
    adam_weight_decay: float = option(0.01, "decoupled weight decay", low=0)


@dataclass(frozen=True)
class VDMFamilyConfig:
    """`training/train_vdm.py`."""

    data: DataConfig
    net: NetConfig
    objective: VDMConfig
    optim: VDMOptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig


_KINGMA = "Kingma et al. 2021 (arXiv 2107.00630), appendix B and their configs/cifar10.py"

PRESETS = {
    "digits": Preset(
        dict(
            dataset_name="digits", net="vdm_8", gamma="monotone", fourier_features=(3, 4),
            train_batch_size=32, max_train_steps=6000, learning_rate=2e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, validation_size=179, checkpointing_steps=1000,
            validation_steps=500, ddpm_num_inference_steps=100,
        ),
        "our own small network, meant for ten minutes on one busy CPU core",
    ),
    "mnist": Preset(
        dict(
            dataset_name="ylecun/mnist", net="unet_28", gamma="monotone", fourier_features=(5, 6),
            train_batch_size=64, max_train_steps=40000, learning_rate=1e-3, lr_scheduler="cosine",
            lr_warmup_steps=500, ema_max_decay=0.999, validation_split="test", validation_size=512,
        ),
        "our own small network with Kingma et al.'s objective",
    ),
    "mnist-cpu": Preset(
        dict(
            dataset_name="ylecun/mnist", net="vdm_28_small", gamma="monotone", fourier_features=(5, 6),
            train_batch_size=32, max_train_steps=2500, learning_rate=2e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, validation_split="test", validation_size=512,
            ddpm_num_inference_steps=100,
        ),
        "our own small network, meant for twenty minutes on one busy CPU core",
    ),
    "swirl": Preset(
        dict(
            dataset_name="swirl", net="mlp", vdm_timesteps=200, train_batch_size=256, max_train_steps=6000,
            learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=100, ema_max_decay=0.999,
            eval_batch_size=500, ddpm_num_inference_steps=200,
        ),
        "T and data of Y. Huang 2022 (shortcut MCMC), without the shortcut; network and rates our own",
    ),
    "swirl-shortcut": Preset(
        dict(
            dataset_name="swirl", net="mlp", vdm_timesteps=200, shortcut_steps=10, sampler="shortcut",
            train_batch_size=256, max_train_steps=6000, learning_rate=1e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, eval_batch_size=500, ddpm_num_inference_steps=10,
        ),
        "Y. Huang 2022 (shortcut MCMC): T 200, K 10; network and rates our own",
    ),
    "mixture": Preset(
        dict(
            dataset_name="mixture", net="mlp", gamma="learned_linear", gamma_min=-11.0,
            train_batch_size=256, max_train_steps=6000, learning_rate=1e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, eval_batch_size=500, ddpm_num_inference_steps=200,
        ),
        "our own: a law whose likelihood is known, in continuous time",
    ),
    "cifar10": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", net="vdm_cifar10", gamma="learned_linear",
            fourier_features=(6, 7), train_batch_size=128, max_train_steps=10_000_000,
            learning_rate=2e-4, lr_scheduler="constant_with_warmup", lr_warmup_steps=1000,
            checkpointing_steps=10000, sample_steps=10000, validation_split="test", validation_size=1024,
            validation_steps=2000, ddpm_num_inference_steps=1000,
        ),
        _KINGMA + "; 2.65 bits per dimension on the test set",
    ),
}  # fmt: skip


def build(config: VDMFamilyConfig, images, accelerator, total_steps):
    """Gradient descent on the bound, in which network and noise schedule are learned together."""
    from functools import partial

    from trilemma.training.loop.method import descend
    from trilemma.training.networks.build import make_net
    from trilemma.training.objectives.vdm import VDM, build_vdm

    classes = images.require_class_names() if config.objective.class_conditional else None
    rows = len(classes) + 1 if classes else None
    net = make_net(
        config,
        images,
        num_class_embeds=rows,
        classes=classes,
        adapt=fitting,
        build=partial(build_vdm, config=config.objective),
    )
    return descend(VDM(net, config.objective, classes), config, accelerator, total_steps)


def fitting(row: dict[str, Any]) -> dict[str, Any]:
    """A network's configuration, if that network can be part of a VDMModel; ValueError otherwise."""
    from trilemma.pipelines.networks.vdm_model import NETWORKS

    kind = row.get("network", row).get("_class_name", "UNet2DModel")
    if kind not in NETWORKS:
        able = ", ".join(name for name, other in NETS.items() if other["_class_name"] in NETWORKS)
        raise ValueError(
            f"--net or --model_config_name_or_path must be a {' or a '.join(NETWORKS)}, as are --net "
            f"{able}; got a {kind}"
        )
    return row


def takes_classes(config) -> bool:
    """Whether a model of these options is class-conditional."""
    return config.objective.class_conditional


INHERITED = ("gamma", "gamma_min", "gamma_max", "fourier_features")

FAMILY = Family(
    VDMFamilyConfig, PRESETS, ("ancestral", "shortcut"), build, takes_classes, inherited=INHERITED
)
