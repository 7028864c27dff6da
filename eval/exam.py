"""Examine the measures on your data: `python eval/exam.py --reference digits`.

Real images stand for the samples of a perfect model. They are harmed: blurred, shifted, given noise, saved as
JPEG; kinds of images are dropped, reweighted, repeated, invented; training images are copied. A measure
passes if it does what it is meant to do. Writes exam.json, exam.md and exam.png. Run the same command again
to continue after a stop.
"""

import sys
from dataclasses import dataclass

from trilemma.eval.metrics.table import METRICS
from trilemma.eval.options import EXTRACTOR_HELP, JUDGE_HELP, check_choices
from trilemma.training.loop.stop import ending_quietly
from trilemma.training.options.flags import option
from trilemma.training.options.parser import parse_flags
from trilemma.training.options.plugins import located
from trilemma.training.progress import loading_libraries


@dataclass(frozen=True)
class ImagesConfig:
    """The real images."""

    reference: str = option("digits", "'digits', Hub id or folder: the real images")
    split: str | None = option(None, "their split; the training split if not given")
    resolution: int | None = option(None, "side of the images; that of the files if not given", low=1)
    image_column: str | None = option(None, "image column; found by its type if not given")
    label_column: str | None = option(None, "label column, or 'none'; found by its type if not given")
    cache_dir: str | None = option(None, "where data and statistics are kept")


@dataclass(frozen=True)
class ExaminedConfig:
    """What is examined."""

    feature_extractor: tuple[str, ...] | None = option(None, f"{EXTRACTOR_HELP}; and pixels")
    extractor_weights: str | None = option(
        None, "file, folder or Hub id of the weights of the first extractor", needs=("feature_extractor", ...)
    )
    judge: str | None = option(None, JUDGE_HELP)
    metrics: tuple[str, ...] | None = option(None, lambda: f"any of {', '.join(METRICS)}; all if not given")


@dataclass(frozen=True)
class ExamConfig:
    """How it is examined, and where the report goes."""

    num_samples: int = option(250, "samples of a set; fewer if there are few images", low=40)
    seed: int = option(0, "seed for the choice of images", low=0)
    cpu_threads: int = option(0, "threads of a process on CPU; 0 for its share of the cores", low=0)
    output_dir: str | None = option(None, "where the report goes; outputs/exam-<reference> if not given")
    dry_run: bool = option(False, "open images and extractors, list the measures left out, and score nothing")


@dataclass(frozen=True)
class Config:
    """`eval/exam.py`."""

    reference: ImagesConfig
    score: ExaminedConfig
    exam: ExamConfig

    def __post_init__(self):
        check_choices(metrics=self.score.metrics or (), judge=self.score.judge)
        for extractor in self.score.feature_extractor or ():
            check_choices(extractor=extractor)
        for name in self.score.metrics or ():
            if METRICS[name].needs == ("model",):
                raise ValueError(f"--metrics {name} needs a model, and an exam has only images; leave it out")


def main(argv: list[str] | None = None) -> None:
    """Parse, then import what needs torch."""
    with ending_quietly():
        config = parse_flags(Config, __doc__, sys.argv[1:] if argv is None else argv)

        with loading_libraries():
            from trilemma.eval.exams.run import examine
            from trilemma.training.loop.machine import closing_groups

        try:
            with closing_groups():
                examine(config)
        except (ValueError, OSError, RuntimeError) as problem:
            raise SystemExit(f"error: {located(problem)}") from problem


if __name__ == "__main__":
    main()
