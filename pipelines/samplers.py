"""The samplers of models that are sampled by a scheduler of diffusers, by the name that --sampler takes.

A new sampler is one row here. No torch here: a scheduler is named, and imported when it is built.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

ALL_TARGETS = ("epsilon", "sample", "v_prediction")


class Sampler(NamedTuple):
    """A scheduler by its name in diffusers, the options that make it this sampler, and the predictions
    (`prediction_type`) that it can sample.
    """

    scheduler: str
    options: Mapping[str, Any] = {}
    targets: tuple[str, ...] = ALL_TARGETS


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("DDPMScheduler"),
    "ddim": Sampler("DDIMScheduler"),
    "dpmsolver++": Sampler(
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}
    ),
    "sde-dpmsolver++": Sampler(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    ),
    "unipc": Sampler("UniPCMultistepScheduler", {"solver_order": 2}),
    "heun": Sampler("HeunDiscreteScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler_ancestral": Sampler("EulerAncestralDiscreteScheduler", targets=("epsilon", "v_prediction")),
}


def sampler_of(scheduler: "SchedulerMixin") -> str:
    """The name of the sampler that a scheduler is; a scheduler of no row is called by its class."""
    kind, config = type(scheduler).__name__, scheduler.config
    for name, row in SAMPLERS.items():
        if row.scheduler == kind and row.options.items() <= config.items():
            return name
    return kind


def samplers_for(scheduler: "SchedulerMixin") -> tuple[str, ...]:
    """The samplers of models that predict what this scheduler takes."""
    target = scheduler.config.get("prediction_type")
    return tuple(name for name, row in SAMPLERS.items() if target in row.targets)


def scheduler_for(scheduler: "SchedulerMixin", name: str) -> "SchedulerMixin":
    """Another sampler with the noise schedule of `scheduler`; ValueError lists the choices."""
    if name == sampler_of(scheduler):
        return scheduler
    if name not in SAMPLERS:
        raise ValueError(f"--sampler must be one of {', '.join(samplers_for(scheduler))}; got {name!r}")
    if name not in samplers_for(scheduler):
        target, choices = scheduler.config.get("prediction_type"), ", ".join(samplers_for(scheduler))
        raise ValueError(f"--sampler {name} cannot sample {target} models; these can: {choices}")
    import diffusers  # not above: it brings torch with it

    # from_config would replace each value that is its class's default by the default of the new class, and
    # some classes have the betas of another noise schedule.
    values = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    row = SAMPLERS[name]
    return getattr(diffusers, row.scheduler).from_config(values, **row.options)
