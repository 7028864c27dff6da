"""Class-conditional denoising diffusion for classifier-free guidance: options, recipes, construction."""

from dataclasses import dataclass

from trilemma.training.families import Family, Preset, unconditional
from trilemma.training.options.ddpm import (
    IN_SCHEDULER,
    SAMPLERS,
    DDPMConfig,
    OwnConfig,
    ProcessConfig,
    can_sample,
    check_sampler,
    choose_by_minutes,
    may_be_faster,
)
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
class GuidanceConfig:
    """Classifier-free guidance."""

    p_uncond: float = option(0.1, "probability of training on an image without its label", low=(0, 1))


@dataclass(frozen=True)
class ClassConditionalConfig:
    """`training/train_class_conditional.py`."""

    data: DataConfig
    own: OwnConfig
    net: NetConfig
    process: ProcessConfig
    objective: DDPMConfig
    guidance: GuidanceConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig

    def __post_init__(self):
        check_sampler(self)


PRESETS = {
    name: Preset(row.options, row.source + "; label drop 0.1: Ho & Salimans 2022 (arXiv 2207.12598), table 1")
    for name, row in unconditional.PRESETS.items()
    if "classes" not in row.options
}
"""The recipes of the unconditional family, with the labels of the data."""


def build(config: ClassConditionalConfig, images, accelerator, total_steps):
    """Gradient descent on the same loss, with labels of which some are dropped."""
    from trilemma.pipelines.class_conditional import ClassConditionalPipeline
    from trilemma.training.diffusion.label_dropout import LabelDropout
    from trilemma.training.loop.method import descend
    from trilemma.training.networks.build import make_net
    from trilemma.training.objectives.ddpm import DDPM, output_channels, schedule_of

    names = images.require_class_names()
    channels = output_channels(config.objective, images.channels)
    net = make_net(config, images, out_channels=channels, num_class_embeds=len(names) + 1, classes=names)
    dropout = LabelDropout(len(names), config.guidance.p_uncond)

    def pipeline(net, scheduler):
        return ClassConditionalPipeline(net, scheduler, class_names=names)

    objective = DDPM(net, schedule_of(config.process), config.objective, pipeline, dropout)
    return descend(objective, config, accelerator, total_steps)


FAMILY = Family(
    ClassConditionalConfig,
    PRESETS,
    SAMPLERS,
    build,
    takes_classes=lambda config: True,
    can_sample=can_sample,
    inherited=tuple(IN_SCHEDULER),
    complete=choose_by_minutes,
    faster=may_be_faster,
)
