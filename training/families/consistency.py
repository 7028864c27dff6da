"""Consistency tuning and training: options, recipes, construction. docs/consistency.md has more."""

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal

from trilemma.training.families import Family, Preset
from trilemma.training.options.ddpm import IN_SCHEDULER, ProcessConfig
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
from trilemma.training.options.inherit import saved_flow

logger = logging.getLogger(__name__)

SCRATCH, FROM_FLOW = 0.5, 0.2
"""Shares of a run without --init_from, and from a flow, that learn to denoise before the gap closes."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """The consistency function, how the gap closes, the loss, and the checks for failure."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = option(
        "v_prediction", "what the network predicts; that of --init_from if it is no flow"
    )
    timestep_scaling: float = option(
        10.0, "how fast f(x_t, t) turns from x_t to the predicted image as t grows; LCMScheduler's", low=0.0
    )
    spacing: Literal["geometric", "even"] = option(
        "geometric", "whether the gap of stage k is 2^-k of t, or 2^-k of T at every t, down to the clean end"
    )
    first_stage: int = option(1, "k of the first stage; in stage k the gap is 2^-k", low=1)
    stages: int | None = option(
        None,
        "k of the last stage; if not given, 8, or 4 with --distil, whose steps are as good as 50 of DDIM",
        low=1,
    )
    stage_steps: int | None = option(
        None,
        "optimizer steps of a stage; if not given, equal shares of what follows --denoising_steps",
        low=1,
    )
    denoising_steps: int | None = option(
        None,
        "first optimizer steps, with a gap of all of t, which is denoising; if not given, half of the run; "
        "with --init_from none, or a fifth if that is a flow",
        low=0,
    )
    huber_c: float | None = option(
        None, "c of the pseudo-Huber loss; 0.00054 sqrt(values of an image) if not given", low=0.0
    )
    distil: bool = option(
        False,
        "take x_r from a step of --init_from along the path, in place of the noise of x_t",
        needs=("init_from", ...),
    )
    class_conditional: bool = option(False, "condition on class labels; the data must have labels")
    p_uncond: float = option(
        0.1, "probability of training on an image without its label", low=(0, 1),
        needs=("class_conditional", (True,)),
    )  # fmt: skip
    guidance_scale: float = option(
        1.0, "classifier-free guidance of --init_from that the model learns; 1 for none", low=0,
        needs=("class_conditional", (True,)),
    )  # fmt: skip
    watchdog_steps: int = option(
        100, "steps between checks for signs of failure; 0 for no checks", free=True, low=0
    )

    def gap(self, step: int) -> float:
        """(t - r) / t at optimizer step 0, 1, ...: 1 while denoising, then 2^-first_stage ... 2^-stages."""
        after = step - self.denoising_steps
        stage = min(self.stages, self.first_stage + after // self.stage_steps)
        return 1.0 if after < 0 else 2.0**-stage


@dataclass(frozen=True)
class ConsistencyFamilyConfig:
    """`training/train_consistency.py`."""

    data: DataConfig
    net: NetConfig
    process: ProcessConfig
    objective: ConsistencyConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig

    def __post_init__(self):
        scale, source = self.objective.guidance_scale, self.run.init_from
        if scale != 1 and not source:
            raise ValueError(
                f"--guidance_scale {scale:g} needs a diffusion model or a flow: name one with --init_from"
            )
        if self.run.init_new_classes and (self.objective.distil or scale != 1):
            raise ValueError(
                "--init_new_classes: --init_from has not learned these classes, so they cannot be distilled; "
                "add --no-distil and leave --guidance_scale out, or tune a model that has learned them"
            )


_COSINE = dict(prediction_type="v_prediction", ddpm_beta_schedule="squaredcos_cap_v2")
_DISTIL = dict(distil=True, first_stage=2, learning_rate=3e-4, lr_scheduler="cosine", adam_beta2=0.99)
_GENG = "Geng et al. 2024 (arXiv 2406.14548)"

PRESETS = {
    "digits": Preset(
        dict(
            **_COSINE, **_DISTIL, dataset_name="digits", net="unet_8", train_batch_size=32,
            max_train_steps=1500, lr_warmup_steps=50, ema_max_decay=0.995, validation_size=64,
            checkpointing_steps=500, validation_steps=250, sample_steps=500,
        ),
        "our own, for --init_from a model of the digits; docs/consistency.md shows what was tried",
    ),
    "mnist-cpu": Preset(
        dict(
            **_COSINE, **(_DISTIL | {"learning_rate": 6e-4}), dataset_name="ylecun/mnist",
            net="unet_28_small", train_batch_size=32, max_train_steps=1200, lr_warmup_steps=100,
            ema_max_decay=0.995, validation_split="test", validation_size=512,
        ),
        "our own, for --init_from a model of MNIST; docs/consistency.md has what was measured",
    ),
    "airplanes-16": Preset(
        dict(
            **_COSINE, **_DISTIL, dataset_name="uoft-cs/cifar10", classes=("airplane",), resolution=16,
            net="unet_16", random_flip=True, train_batch_size=64, max_train_steps=4000, lr_warmup_steps=200,
            ema_max_decay=0.999,
        ),
        "our own, the recipe of the digits, for the airplanes of CIFAR-10 at 16x16; not measured",
    ),
    "cifar10": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", net="unet_cifar10", dropout=0.2, random_flip=True,
            train_batch_size=128, max_train_steps=100000, learning_rate=1e-4, lr_scheduler="constant",
            ema_max_decay=0.9999, checkpointing_steps=10000, sample_steps=10000, validation_split="test",
            validation_size=1024, validation_steps=2000, **_COSINE,
        ),
        f"{_GENG}: batch 128, rate 1e-4, dropout 0.2, eight halvings of the gap; with AdamW and Ho et al.'s "
        "network; not measured",
    ),
}  # fmt: skip


def complete(config: ConsistencyFamilyConfig, given, images, accelerator, folder, build):
    """The configuration with the lengths of the stages, so that a resumed run keeps them."""
    objective, optim, run = config.objective, config.optim, config.run
    per_step = optim.train_batch_size * optim.gradient_accumulation_steps * accelerator.num_processes
    total = run.max_train_steps or run.num_epochs * math.ceil(len(images) / per_step)
    distil = objective.distil and bool(run.init_from)
    stages = objective.stages or max(objective.first_stage, 4 if distil else 8)
    if objective.first_stage > stages:
        raise ValueError(f"--first_stage must be at most --stages, {stages}; got {objective.first_stage}")
    denoising = objective.denoising_steps
    if denoising is None:
        share = SCRATCH if not run.init_from else FROM_FLOW if saved_flow(run.init_from) else 0
        denoising = int(share * total)
    equal = (total - denoising) // (stages - objective.first_stage + 1)
    lengths = dict(
        stages=stages, denoising_steps=denoising, stage_steps=objective.stage_steps or max(1, equal)
    )
    last = denoising + (stages - objective.first_stage) * lengths["stage_steps"]
    if last >= total:
        logger.warning(
            "The gap does not close: the last stage begins after step %d, and the run has %d steps.",
            last,
            total,
        )
    return replace(config, objective=replace(objective, distil=distil, **lengths))


def build(config: ConsistencyFamilyConfig, images, accelerator, total_steps):
    """Gradient descent on the distance between two points of a path, in stages."""
    import copy

    from trilemma.training.diffusion.label_dropout import LabelDropout
    from trilemma.training.networks.build import make_net
    from trilemma.training.objectives.consistency import Consistency, Teacher, Tuning
    from trilemma.training.objectives.ddpm import schedule_of

    objective = config.objective
    names = images.require_class_names() if objective.class_conditional else None
    net = make_net(config, images, num_class_embeds=names and len(names) + 1, classes=names)
    if config.run.compile and net.config.get("dropout"):
        raise ValueError(
            "--compile: compiled code may drop other units at the two ends of the gap; add --dropout 0"
        )
    teacher = None
    if objective.distil or objective.guidance_scale != 1:  # --init_from, also of a run that is resumed
        saved = copy.deepcopy(net).to(accelerator.device).eval().requires_grad_(False)
        teacher = Teacher(saved, saved_flow(config.run.init_from))
    dropout = LabelDropout(len(names), objective.p_uncond) if names else None
    tuned = Consistency(net, schedule_of(config.process), objective, dropout, names, teacher)
    if config.run.compile:
        tuned.compile()
    return Tuning(tuned, accelerator, config.optim, total_steps)


FAMILY = Family(
    ConsistencyFamilyConfig,
    PRESETS,
    ("lcm",),
    build,
    takes_classes=lambda config: config.objective.class_conditional,
    inherited=(*IN_SCHEDULER, "timestep_scaling"),
    from_flow=True,
    complete=complete,
)
