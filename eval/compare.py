"""Compare trained models of any family: `python eval/compare.py --models outputs/a outputs/b`.

One table of the trilemma (quality, coverage, speed) with likelihood and cost, from the files of the output
folders alone; numbers that were not measured alike are marked. Charts of the bound while training, and of
quality against time per image. `report.html` is the same as one page to sort, filter and look at.
"""

import sys
from dataclasses import dataclass

from trilemma.training.loop.stop import ending_quietly
from trilemma.training.options.flags import option
from trilemma.training.options.parser import parse_flags

MOST_DRAWN = 64


@dataclass(frozen=True)
class ComparisonConfig:
    """Which models, and what is asked of them."""

    models: tuple[str, ...] | None = option(None, "output folders; savings are against the first")
    target: tuple[str, ...] | None = option(
        None, "metric=value ...: how many images of training it took each model to get there"
    )
    draw: int = option(
        0,
        "images that each model with weights draws for report.html, with the seeds 0 to N-1, in few and in "
        "many calls of its network; 0: show the samples.png of its folder",
        low=0,
    )
    output_dir: str = option("comparison", "where comparison.md, its charts and report.html go")

    def __post_init__(self):
        if self.draw > MOST_DRAWN:
            raise ValueError(
                f"--draw must be at most {MOST_DRAWN}, for the page to stay small; got {self.draw}"
            )


@dataclass(frozen=True)
class CompareConfig:
    """`eval/compare.py`."""

    comparison: ComparisonConfig


def main(argv: list[str] | None = None) -> None:
    """Parse and compare."""
    with ending_quietly():
        config = parse_flags(CompareConfig, __doc__, sys.argv[1:] if argv is None else argv)

        from trilemma.eval.studies.comparison import compare
        from trilemma.model_cards.rendering.command import train_command

        try:
            compare(config.comparison, train_command)
        except (ValueError, OSError) as problem:
            raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main()
