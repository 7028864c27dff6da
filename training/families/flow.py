"""Flow matching (rectified flow): options, recipes, construction. docs/flow.md has the formulas."""

from dataclasses import dataclass
from typing import Literal

from trilemma.pipelines.samplers import FLOW_SAMPLERS
from trilemma.training.families import Family, Preset
from trilemma.training.options.ddpm import OwnConfig, choose_by_minutes
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


@dataclass(frozen=True)
class FlowConfig:
    """Times and pairs of flow matching, and classes."""

    time_density: Literal["uniform", "logit_normal", "cosmap"] = option(
        "uniform", "density of the times s in training, from 0 (image) to 1 (noise)"
    )
    logit_mean: float = option(
        0.0, "mean of logit(s); above 0 for more noise", needs=("time_density", ("logit_normal",))
    )
    logit_std: float = option(
        1.0, "standard deviation of logit(s)", low=0.0, needs=("time_density", ("logit_normal",))
    )
    coupling: Literal["independent", "optimal"] = option(
        "independent",
        "which noise an image gets: any, or the optimal transport within the batch of a process (and within "
        "a class)",
    )
    class_conditional: bool = option(False, "condition on class labels; the data must have labels")
    p_uncond: float = option(
        0.1, "probability of training on an image without its label", low=0,
        needs=("class_conditional", (True,)),
    )  # fmt: skip

    def __post_init__(self):
        if self.p_uncond > 1:
            raise ValueError(f"--p_uncond must be in 0..1; got {self.p_uncond}")


@dataclass(frozen=True)
class FlowFamilyConfig:
    """`training/train_flow.py`."""

    data: DataConfig
    own: OwnConfig
    net: NetConfig
    objective: FlowConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig


PRESETS = {
    "digits": Preset(
        dict(
            dataset_name="digits", net="unet_8", train_batch_size=32, max_train_steps=7800,
            learning_rate=4e-3, lr_scheduler="cosine", lr_warmup_steps=100, adam_beta2=0.99,
            ema_max_decay=0.999, validation_size=64, checkpointing_steps=1000, validation_steps=500,
            sample_steps=2000, eval_steps=7800, eval_metrics=("fd", "prdc", "modes"),
        ),
        "the recipe of the unconditional digits, with the velocity of a flow",
    ),
    "own": Preset(
        dict(
            minutes=10, lr_scheduler="cosine", adam_beta2=0.99, sampler="dpmsolver++",
            ddpm_num_inference_steps=20,
        ),
        "our own, for pictures of your own: --minutes chooses the rest; docs/recipes.md",
    ),
    "mnist-cpu": Preset(
        dict(
            dataset_name="ylecun/mnist", net="unet_28_small", train_batch_size=32, max_train_steps=2000,
            learning_rate=2e-3, lr_scheduler="cosine", lr_warmup_steps=100, ema_max_decay=0.999,
            validation_split="test", validation_size=512,
        ),
        "the budget of the unconditional recipe, twenty minutes on one busy CPU core",
    ),
    "airplanes-16": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", classes=("airplane",), resolution=16, net="unet_16",
            random_flip=True, train_batch_size=64, max_train_steps=20000, lr_warmup_steps=500,
            ema_max_decay=0.999,
        ),
        "our own small network: the airplanes of CIFAR-10 at 16x16",
    ),
    "cifar10": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", net="unet_cifar10", random_flip=True, train_batch_size=128,
            max_train_steps=400000, learning_rate=2e-4, lr_scheduler="constant_with_warmup",
            lr_warmup_steps=5000, checkpointing_steps=10000, sample_steps=10000, validation_split="test",
            validation_size=1024, validation_steps=2000, coupling="optimal",
        ),
        "Tong et al. 2023 (arXiv 2302.00482) and the script of their README for CIFAR-10: batch 128, rate "
        "2e-4, warm-up 5000, 400,000 steps, averaging 0.9999; with Ho et al.'s network",
    ),
}  # fmt: skip


def build(config: FlowFamilyConfig, images, accelerator, total_steps):
    """Gradient descent on the squared error of the velocity."""
    from trilemma.training.loop.method import descend
    from trilemma.training.networks.build import make_net
    from trilemma.training.objectives.flow import Flow, require_flow

    classes = images.require_class_names() if config.objective.class_conditional else None
    rows = len(classes) + 1 if classes else None
    net = make_net(config, images, num_class_embeds=rows, classes=classes)
    if config.run.init_from:
        require_flow(config.run.init_from)
    return descend(Flow(net, config.objective, classes), config, accelerator, total_steps)


def takes_classes(config) -> bool:
    """Whether a model of these options is class-conditional."""
    return config.objective.class_conditional


FAMILY = Family(
    FlowFamilyConfig, PRESETS, tuple(FLOW_SAMPLERS), build, takes_classes, complete=choose_by_minutes
)
