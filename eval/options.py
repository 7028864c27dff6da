"""The options that entry points of this folder share, and the check of names that are looked up later.

No torch here: a mistyped metric, extractor or sampler is an error before anything is imported or decoded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trilemma.eval.features.judge_files import judge_names
from trilemma.eval.features.table import EXTRACTORS
from trilemma.eval.metrics.table import METRICS
from trilemma.pipelines.files.hub import check_place
from trilemma.training import families
from trilemma.training.options.flags import nearest, option
from trilemma.training.output_folder import OutputFolder

EXTRACTOR_HELP = (
    f"{', '.join(EXTRACTORS)}; if not given, inception if its weights are on this machine, else classifier"
)


JUDGE_HELP = (
    f"classifier that comes with trilemma ({', '.join(judge_names())}), whatever the data; else the "
    "data's own"
)


SAVED = "saved"
"""As --sampler: the sampler of the saved pipeline."""


def samplers_by_family() -> str:
    """Which samplers each family has, as text."""
    having: dict[tuple[str, ...], list[str]] = {}
    for name in families.names():
        having.setdefault(families.family(name).samplers, []).append(name)
    return "; of ".join(f"{', '.join(names)}: {' '.join(each)}" for each, names in having.items())


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is run."""

    model: str | None = option(None, "model folder or Hub id")
    trust_remote_code: bool = option(False, "run the Python file that comes with a model from the Hub")
    batch_size: int = option(250, "images per process and forward pass", low=1)
    cpu_threads: int = option(0, "threads of a process on CPU; 0 for its share of the cores", low=0)


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn. An image depends on its seed alone."""

    num_samples: int = option(10_000, "images to draw or to score", low=1)
    seed: int = option(0, "first seed; image i has this seed plus i", low=0)
    sampler: str | None = option(
        None,
        lambda: f"of {samplers_by_family()}; or {SAVED}, that of the saved pipeline; if not given, that of "
        "the run's own samples",
    )
    num_inference_steps: int | None = option(
        None, "steps of the sampler; if not given, those of the run's own samples, or its usual number", low=1
    )
    guidance_scale: float | None = option(
        None, "diffusers' scale: 1 + w of the paper; for class-conditional models"
    )
    classes: tuple[str, ...] | None = option(None, "draw only these classes, by name or number")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "precision of the network while images are drawn, float32 if not given; the sampler is float32"
    )
    compile: bool = option(
        False, "compile the network with torch.compile, which takes a minute and pays for many images"
    )

    def __post_init__(self):
        if self.seed + self.num_samples >= 2**63:
            raise ValueError(f"--seed must be less than 2^63 less --num_samples; got {self.seed}")


@dataclass(frozen=True)
class ScoreConfig:
    """What is measured."""

    feature_extractor: str | None = option(None, EXTRACTOR_HELP)
    extractor_weights: str | None = option(None, "file, folder or Hub id of the extractor's weights")
    judge: str | None = option(None, JUDGE_HELP)
    metrics: tuple[str, ...] = option(
        ("fd", "kid", "prdc", "clipped"), lambda: f"of {', '.join(METRICS)}; see docs/metrics.md"
    )
    bpd_timesteps: int | None = option(
        None,
        "noise levels per image for bpd, all if not given; for ode_bpd and flows, steps of the solver, 32",
        low=1,
    )
    bpd_images: int | None = option(None, "images of each split for bpd; all if not given", low=2)
    force: bool = option(
        False, "measure even where there are too few samples, and mark the results as forced"
    )


def check_choices(
    *,
    metrics: Iterable[str] = (),
    extractor: str | None = None,
    judge: str | None = None,
    sampler: str | None = None,
    samplers: Iterable[str] = (),
    in_training: bool = False,
) -> None:
    """ValueError for a name that does not exist, with the nearest that does and all choices.

    samplers: the choices of --sampler. in_training: the flags are those of training (--eval_metrics), whose
    first metric chooses the best model.
    """
    prefix, metrics = "--eval_" if in_training else "--", tuple(metrics)
    if sampler is not None:
        _check("--sampler", sampler, (*samplers, SAVED))
    if extractor is not None:
        _check(f"{prefix}feature_extractor", extractor, tuple(EXTRACTORS))
    if judge is not None:
        _check(f"{prefix}judge", judge, judge_names())
    for name in metrics:
        _check(f"{prefix}metrics", name, tuple(METRICS))
    if in_training and metrics:
        _check_in_training(metrics)


def _check_in_training(metrics: tuple[str, ...]) -> None:
    of_model = [name for name in metrics if METRICS[name].needs == ("model",)]
    if of_model:
        raise ValueError(
            f"--eval_metrics must be metrics of samples, and {of_model[0]} is not one; measure it after the "
            "training with eval/evaluate.py"
        )
    if METRICS[metrics[0]].best is None:
        able = ", ".join(name for name, row in METRICS.items() if row.best)
        raise ValueError(
            f"the first of --eval_metrics chooses the best model and must be one of {able}; no value of "
            f"{metrics[0]} is better than another"
        )


def samplers_of(model: str | None) -> tuple[str, ...]:
    """Samplers of the family of a model folder; those of all families where the family cannot be read."""
    folder = OutputFolder(Path(model or ""))
    family = folder.family if model and folder.index.is_file() else None
    chosen = [family] if family in families.names() else families.names()
    return tuple(dict.fromkeys(name for each in chosen for name in families.family(each).samplers))


def check_evaluation(model: ModelConfig, sampling: SamplingConfig, score: ScoreConfig | None = None) -> None:
    """`check_choices` for the groups of an entry point of this folder, and whether --model can be there."""
    if model.model:
        check_place(model.model, "--model")
    check_choices(
        metrics=(score and score.metrics) or (),
        extractor=score and score.feature_extractor,
        judge=score and score.judge,
        sampler=sampling.sampler,
        samplers=samplers_of(model.model),
    )


def _check(flag: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise ValueError(f"{flag} must be one of {', '.join(choices)}; got {name!r}.{nearest(name, choices)}")
