"""Run published studies again, beside our recipes: `python eval/reproduce.py guidance --budget cpu-small`.

The study, a row of eval/reproductions/published.py, comes first; without one, all of them. Each cell trains
the study's settings and ours on the same number of images and scores both alike. The table says what was
published, what was measured, and what was not run here and why. Run the same command again to continue.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from trilemma.eval.reproductions.cells import DATA
from trilemma.eval.reproductions.plan import BUDGETS
from trilemma.eval.reproductions.published import STUDIES
from trilemma.training.loop.stop import ending_quietly
from trilemma.training.options.flags import option
from trilemma.training.options.parser import parse_flags


@dataclass(frozen=True)
class ReproductionConfig:
    """Which study, and how much of it."""

    study: Literal[(*STUDIES, "all")] = option("all", "a study; may be typed first, without --study")
    budget: Literal[tuple(BUDGETS)] = option(
        "cpu-small", "cpu-small: minutes of a core for a cell; cpu: hours; gpu: all of the study"
    )
    cells: tuple[str, ...] | None = option(None, "only these cells of the table")
    data: tuple[str, ...] | None = option(
        None, lambda: f"name=folder ...: local copies of {', '.join(n for n, d in DATA.items() if d.hub)}"
    )
    seeds: tuple[int, ...] | None = option(None, "seeds of the trainings; the budget's if not given")
    output_dir: str | None = option(None, "output folder; outputs/reproduce-<study> if not given")
    remark: str | None = option(None, "a sentence for the page, such as how the local copies differ")
    launcher: str | None = option(
        None,
        "what starts a training, such as 'accelerate launch --num_processes 8'; this Python if not given",
    )
    cpu_threads: int = option(0, "threads of a process on CPU; 0 for its share of the cores", low=0)
    dry_run: bool = option(
        False, "list the cells: their commands, an estimate of time, or why they are not run"
    )


@dataclass(frozen=True)
class ReproduceConfig:
    """`eval/reproduce.py`."""

    reproduction: ReproductionConfig


def main(argv: list[str] | None = None) -> None:
    """Parse and reproduce."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        argv = ["--study", *argv]
    with ending_quietly():
        config = parse_flags(ReproduceConfig, __doc__, argv).reproduction

        from trilemma.eval.reproductions.run import reproduce

        try:
            reproduce(config, argv)
        except (ValueError, OSError) as problem:
            raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main()
