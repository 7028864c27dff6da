"""Draw images from a model: `accelerate launch eval/generate.py --model <folder or Hub id> --output images/`.

To a folder of PNGs named by their seed, or to one uint8 .npy (N, H, W, C). Every process draws its share;
what a run that was cut has drawn is not drawn again.
"""

import sys
from dataclasses import dataclass

from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.training.options.flags import option, parse_flags


@dataclass(frozen=True)
class OutputConfig:
    """Where the images go."""

    output: str = option("images", "folder for PNGs, or a file that ends in .npy")


@dataclass(frozen=True)
class GenerateConfig:
    """`eval/generate.py`."""

    model: ModelConfig
    sampling: SamplingConfig
    output: OutputConfig


def main(argv: list[str] | None = None) -> None:
    """Parse, then import what needs torch."""
    config = parse_flags(GenerateConfig, __doc__, sys.argv[1:] if argv is None else argv)

    from trilemma.eval.scoring.model_images import draw_to_files
    from trilemma.training.loop.machine import closing_groups

    try:
        with closing_groups():
            draw_to_files(config.model, config.sampling, config.output.output)
    except (ValueError, OSError, RuntimeError) as problem:
        raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main()
