"""The options of denoising diffusion that families share: the process, the loss, the samplers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trilemma.pipelines import samplers
from trilemma.training.options.flags import option

SAMPLERS = ("ddim", *(name for name in samplers.SAMPLERS if name != "ddim"))
"""The samplers of a denoising-diffusion model; sheets use the first."""

BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
"""The ends of the linear schedule at T = 1000."""

IN_SCHEDULER = {
    "prediction_type": ("prediction_type", "epsilon"), "ddpm_num_steps": ("num_train_timesteps", 1000),
    "ddpm_beta_schedule": ("beta_schedule", "linear"),
    **{name: (name, default) for name, default in BETAS.items()},
}  # fmt: skip
"""Flag -> the entry of a scheduler's configuration that says it, and diffusers' default."""


@dataclass(frozen=True)
class OwnConfig:
    """A budget in place of a recipe."""

    minutes: float | None = option(
        None,
        "train for this long on this machine: network, batch, rate, averaging and steps are chosen for it, "
        "unless they are given",
        low=0.0,
    )


@dataclass(frozen=True)
class ProcessConfig:
    """How images are noised."""

    ddpm_num_steps: int = option(1000, "T, the number of noise levels", low=1)
    ddpm_beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = option(
        "linear", "shape of the noise schedule"
    )
    beta_start: float | None = option(
        None, "first beta, used without scaling; 1e-4 * 1000 / T if not given", low=0.0,
        needs=("ddpm_beta_schedule", ("linear", "scaled_linear", "sigmoid")),
    )  # fmt: skip
    beta_end: float | None = option(
        None, "last beta, used without scaling; 0.02 * 1000 / T if not given", low=0.0,
        needs=("ddpm_beta_schedule", ("linear", "scaled_linear", "sigmoid")),
    )  # fmt: skip


@dataclass(frozen=True)
class DDPMConfig:
    """What the network predicts, and the loss."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = option(
        "epsilon", "what the network predicts"
    )
    loss_type: Literal["l2", "l1", "huber", "mmd", "hybrid", "vlb"] = option(
        "l2", "loss; hybrid and vlb learn the variance too"
    )
    huber_delta: float = option(1.0, "where Huber turns linear", low=0.0, needs=("loss_type", ("huber",)))
    snr_gamma: float | None = option(None, "min-SNR weighting with this gamma (5 in the paper)", low=0.0)
    p2_gamma: float | None = option(None, "P2 weighting with this gamma (1 in the paper)", low=0.0)
    p2_k: float = option(1.0, "k of the P2 weighting", low=0.0, needs=("p2_gamma", ...))
    variance_type: Literal["fixed_small", "fixed_large"] = option(
        "fixed_large", "variance of the ancestral sampler", needs=("loss_type", ("l2", "l1", "huber", "mmd"))
    )

    def __post_init__(self):
        if self.snr_gamma is not None and self.p2_gamma is not None:
            raise ValueError("--snr_gamma and --p2_gamma are two weightings of a loss; give one of them")
        if self.loss_type not in ("l2", "hybrid") and (self.snr_gamma or self.p2_gamma):
            raise ValueError(f"--snr_gamma and --p2_gamma have no effect on --loss_type {self.loss_type}")


def of_scheduler(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of process and target with which a model of this scheduler was trained.

    scheduler: a configuration as diffusers saves it. ValueError for a process that no flags give.
    """
    if samplers.of_flow(scheduler):
        raise ValueError(
            "it is a flow, whose network predicts a velocity: take train_flow.py, or train_consistency.py"
        )
    values = {flag: scheduler.get(entry, default) for flag, (entry, default) in IN_SCHEDULER.items()}
    own = scheduler.get("trained_betas") is not None and values["ddpm_beta_schedule"] != "sigmoid"
    if own or scheduler.get("rescale_betas_zero_snr") or "beta_schedule" not in scheduler:
        kind = scheduler.get("_class_name", "scheduler")
        raise ValueError(
            f"no flags give the noise schedule of its {kind}, which its weights have learned; take a model "
            "of train_unconditional.py, train_class_conditional.py or train_consistency.py"
        )
    if values["ddpm_beta_schedule"] == "squaredcos_cap_v2":  # it has no ends
        values |= dict.fromkeys(BETAS)
    return values


def can_sample(config, sampler: str) -> bool:
    """Whether a sampler can sample what the network of these options predicts."""
    return config.objective.prediction_type in samplers.SAMPLERS[sampler].targets


def check_sampler(config) -> None:
    """ValueError for a sampler of sheets that cannot sample what the network predicts."""
    name, target = config.sheet.sampler, config.objective.prediction_type
    if name in SAMPLERS and not can_sample(config, name):
        able = ", ".join(other for other in SAMPLERS if can_sample(config, other))
        raise ValueError(
            f"--sampler {name} cannot sample models with --prediction_type {target}; these can: {able}"
        )


def may_be_faster(config) -> bool:
    """Whether a run of these options may choose bf16, or to compile, by itself: its loss is no likelihood.

    The last digits of a learned variance count in bits per dimension. docs/speed.md says what is known.
    """
    return config.objective.loss_type in ("l2", "l1", "huber")


def choose_by_minutes(config, *facts):
    """The configuration with what `--minutes` leaves to be chosen; facts: see `Family.complete`."""
    from trilemma.training.networks.own import complete

    return complete(config, *facts)
