"""Train or sample a grid and draw what it shows: `python eval/sweep.py --question losses -- --preset digits`.

Every point is trained by its own entry point into `<output_dir>/<point>/`, or, with --model, is a way to
sample that model. All are scored alike into one `results.jsonl`, with one figure. What follows `--` are flags
of the training. Run the same command again to go on: points that are done are skipped.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from trilemma.eval.metrics.table import METRICS
from trilemma.eval.options import ModelConfig, SamplingConfig, ScoreConfig, check_evaluation
from trilemma.eval.studies.questions import SWEEPS
from trilemma.training import families
from trilemma.training.loop.stop import ending_quietly
from trilemma.training.options.flags import option
from trilemma.training.options.parser import parse_flags
from trilemma.training.progress import loading_libraries


@dataclass(frozen=True)
class GridConfig:
    """Which points there are, and where they go."""

    question: Literal[tuple(SWEEPS)] | None = option(None, "a row of eval/studies/questions.py")
    grid: tuple[str, ...] | None = option(None, "instead, a grid of your own: flag=value,value ...")
    repeat_seeds: tuple[int, ...] | None = option(
        None, "train every point once with each of these seeds, and show how much results vary with the seed"
    )
    family: Literal[families.names()] = option(
        "unconditional", "training/train_<family>.py trains it, unless --model is given", needs=("grid", ...)
    )
    output_dir: str | None = option(None, "output folder; outputs/sweep-<question> if not given")
    launcher: str | None = option(
        None, "what starts a point, such as 'accelerate launch --num_processes 8'; this Python if not given"
    )
    dry_run: bool = option(False, "list the points: which are done, and the commands of the others")


@dataclass(frozen=True)
class PointSamplingConfig(SamplingConfig):
    """How images are drawn, the same at every point; the question may set what the command line does not."""

    num_samples: int = option(2000, "images to score at every point", low=1)


@dataclass(frozen=True)
class PointScoreConfig(ScoreConfig):
    """What is measured, the same at every point."""

    metrics: tuple[str, ...] | None = option(
        None, lambda: f"of {', '.join(METRICS)}; the question's if not given"
    )


@dataclass(frozen=True)
class SweepConfig:
    """`eval/sweep.py`."""

    grid: GridConfig
    model: ModelConfig
    sampling: PointSamplingConfig
    score: PointScoreConfig

    def __post_init__(self):
        check_evaluation(self.model, self.sampling, self.score)


def main(argv: list[str] | None = None) -> None:
    """Split at `--`, parse, sweep."""
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    with ending_quietly():
        config = parse_flags(SweepConfig, __doc__, argv[:end])

        with loading_libraries():
            from trilemma.eval.studies.grid import sweep

        try:
            sweep(config, argv[:end], argv[end + 1 :])
        except (ValueError, OSError) as problem:
            raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main()
