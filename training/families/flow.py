"""Flow matching (rectified flow): options, recipes, construction. docs/flow.md has the formulas."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from trilemma.pipelines.samplers import FLOW_SAMPLERS
from trilemma.training.families import Family, Preset, unconditional
from trilemma.training.options.ddpm import DDPMConfig, OwnConfig, ProcessConfig, choose_by_minutes
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
        0.1, "probability of training on an image without its label", low=(0, 1),
        needs=("class_conditional", (True,)),
    )  # fmt: skip


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


def _of_a_flow(name: str) -> dict[str, Any]:
    """An unconditional recipe without its process and loss, with the times that learn faster in short runs
    (docs/recipes.md); where it names a sampler, with that of flows.
    """
    options = unconditional.PRESETS[name].options
    theirs = {field.name for group in (ProcessConfig, DDPMConfig) for field in fields(group)}
    own = {option: value for option, value in options.items() if option not in theirs}
    own |= {"sampler": "shifted-dpmsolver++"} if "sampler" in own else {}
    return own | {"time_density": "logit_normal"}


PRESETS = {
    **{
        name: Preset(_of_a_flow(name), source)
        for name, source in {
            "digits": "the recipe of the unconditional digits, with the velocity of a flow",
            "own": unconditional.PRESETS["own"].source,
            "mnist-cpu": "the images of the unconditional recipe; docs/recipes.md",
            "airplanes-16": "our own small network: the airplanes of CIFAR-10 at 16x16",
        }.items()
    },
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
