"""Make averages of other lengths: `python -m trilemma.training.average outputs/digits --std 0.05 0.1`.

The training must have kept snapshots (`--ema_snapshot_steps`); nothing is trained. Each average is a model
folder `<output_dir>/<length>/`. With flags of `eval/evaluate.py` after a `--`, all of them are also scored
and compared: `... --std 0.05 0.1 0.15 -- --metrics fd --num_samples 2000`. Averages that are there are not
made again.
"""

import sys
from dataclasses import dataclass

from trilemma.training.loop.stop import ending_quietly
from trilemma.training.options.flags import option
from trilemma.training.options.parser import parse_flags
from trilemma.training.post_hoc import UNIFORM
from trilemma.training.progress import loading_libraries


@dataclass(frozen=True)
class LengthConfig:
    """The model, and the averages to make of it."""

    model: str | None = option(None, "output folder of the training; its flag may be left out")
    std: tuple[float, ...] | None = option(
        None, f"lengths, as in --ema_std: standard deviations as shares of the run, at most {UNIFORM:.6f}"
    )
    halflife: tuple[float, ...] | None = option(
        None, "lengths in images: half of the weight is on this number of images, the last ones"
    )
    output_dir: str | None = option(None, "where the folders go; <model>-averages if not given")


@dataclass(frozen=True)
class AverageConfig:
    """`training/average.py`."""

    length: LengthConfig


def main(argv: list[str] | None = None) -> None:
    """Split at `--`, parse, average."""
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    named = [] if argv[:1] in ([], ["--"]) or argv[0].startswith("-") else ["--model"]
    with ending_quietly():
        config = parse_flags(AverageConfig, __doc__, [*named, *argv[:end]])

        with loading_libraries():
            from trilemma.model_cards.averages import average

        try:
            average(config.length, argv[end + 1 :] if end < len(argv) else None)
        except (ValueError, OSError) as problem:
            raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main()
