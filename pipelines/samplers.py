"""The samplers of models that are sampled by a scheduler of diffusers, by the name that --sampler takes.

A new sampler is one row here. No torch here: a scheduler is named, and imported when it is built.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

ALL_TARGETS = ("epsilon", "sample", "v_prediction")


class Sampler(NamedTuple):
    """A scheduler by its name in diffusers, the options that make it this sampler, the predictions
    (`prediction_type`) that it can sample, and the options that it also gets where `first_step_is_long`.
    """

    scheduler: str
    options: Mapping[str, Any] = {}
    targets: tuple[str, ...] = ALL_TARGETS
    for_a_long_first_step: Mapping[str, Any] = {}


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
    "heun": Sampler("HeunDiscreteScheduler", for_a_long_first_step={"use_exponential_sigmas": True}),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler_ancestral": Sampler("EulerAncestralDiscreteScheduler", targets=("epsilon", "v_prediction")),
}

FLOW = ("flow_prediction",)

_FLOW_DPM = {"algorithm_type": "dpmsolver++", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
_SHIFTED = {"solver_order": 3, "flow_shift": 2.5}

FLOW_SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler("FlowMatchEulerDiscreteScheduler", targets=FLOW),
    "heun": Sampler("FlowMatchHeunDiscreteScheduler", targets=FLOW),
    "dpmsolver++": Sampler("DPMSolverMultistepScheduler", {**_FLOW_DPM, "solver_order": 2}, FLOW),
    "shifted-dpmsolver++": Sampler("DPMSolverMultistepScheduler", {**_FLOW_DPM, **_SHIFTED}, FLOW),
}
"""The samplers of models that predict the velocity of a flow.

The shifted one, of third order, maps even steps s to 2.5 s / (1 + 1.5 s): smaller ones where there is more
noise (Esser et al. 2024, arXiv 2403.03206, equation 23).
"""

KNOWN_TO_ALL = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""The names of noise schedules that every scheduler in this file knows; `trained_betas` stand for others."""

LONGEST_FIRST_STEP = 0.05
"""The largest error that `first_step_is_long` accepts."""


def is_flow(scheduler: "SchedulerMixin") -> bool:
    """Whether what this scheduler samples is a flow: x_s = (1 - s) x_0 + s noise, at the time step 1000 s."""
    return of_flow({**scheduler.config, "_class_name": type(scheduler).__name__})


def of_flow(configuration: Mapping[str, Any]) -> bool:
    """The same of a scheduler's configuration, as diffusers saves it."""
    known = {row.scheduler for row in FLOW_SAMPLERS.values() if not row.options}
    return configuration.get("_class_name") in known or configuration.get("prediction_type") in FLOW


def _rows(scheduler: "SchedulerMixin") -> dict[str, Sampler]:
    return FLOW_SAMPLERS if is_flow(scheduler) else SAMPLERS


def sampler_of(scheduler: "SchedulerMixin") -> str:
    """The name of the sampler that a scheduler is; a scheduler of no row is called by its class."""
    kind, config = type(scheduler).__name__, scheduler.config
    for name, row in _rows(scheduler).items():
        if row.scheduler == kind and row.options.items() <= config.items():
            return name
    return kind


def samplers_for(scheduler: "SchedulerMixin") -> tuple[str, ...]:
    """The samplers of models that predict what this scheduler takes."""
    target = FLOW[0] if is_flow(scheduler) else scheduler.config.get("prediction_type")
    return tuple(name for name, row in _rows(scheduler).items() if target in row.targets)


def scheduler_for(scheduler: "SchedulerMixin", name: str) -> "SchedulerMixin":
    """Another sampler with the noise schedule of `scheduler`; ValueError lists the choices."""
    if name == sampler_of(scheduler):
        return scheduler
    if name not in _rows(scheduler):
        raise ValueError(f"--sampler must be one of {', '.join(samplers_for(scheduler))}; got {name!r}")
    if name not in samplers_for(scheduler):
        target, choices = scheduler.config.get("prediction_type"), ", ".join(samplers_for(scheduler))
        raise ValueError(
            f"--sampler {name} cannot sample models with --prediction_type {target}; these can: {choices}"
        )
    import diffusers  # not above: it brings torch with it

    # from_config would replace each value that is its class's default by the default of the new class, and
    # some classes have the betas of another noise schedule.
    left_out = {"_use_default_values", *_row_of(scheduler).for_a_long_first_step}
    values = {key: value for key, value in scheduler.config.items() if key not in left_out}
    if values.get("beta_schedule", "linear") not in KNOWN_TO_ALL and values.get("trained_betas") is None:
        values["trained_betas"] = scheduler.betas.tolist()
    row = _rows(scheduler)[name]
    more = row.for_a_long_first_step
    more = more if more and first_step_is_long(scheduler) else {}
    return getattr(diffusers, row.scheduler).from_config(values, **row.options, **more)


def _row_of(scheduler: "SchedulerMixin") -> Sampler:
    return _rows(scheduler).get(sampler_of(scheduler), Sampler(type(scheduler).__name__))


def first_step_is_long(scheduler: "SchedulerMixin") -> bool:
    """Whether 50 steps, evenly spaced in t, begin with one that Heun's rule cannot take.

    With sigma = sqrt((1 - abar) / abar), data of standard deviation 1 and a first step from sigma_1 far down
    to sigma_2, Heun's rule is wrong by a share of sigma_1 / (2 sigma_2^3). Each later step keeps that share:
    0.34 for the cosine schedule at T = 1000, and less than 0.001 for a linear one.
    """
    abar = scheduler.alphas_cumprod.double().tolist()
    levels = [((1 - abar[i]) / max(abar[i], 1e-24)) ** 0.5 for i in (-1, -1 - max(1, len(abar) // 50))]
    return levels[0] / (2 * levels[1] ** 3) > LONGEST_FIRST_STEP
