"""Draw images from a model: `accelerate launch eval/generate.py --model <folder or Hub id> --output images/`.

Writes a folder of PNGs named by their seed, one uint8 .npy (N, H, W, C), or one sheet, `--output sheet.png
--num_samples 64`. Every process draws its share. Images of an interrupted run are not drawn again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from trilemma.eval.options import ModelConfig, SamplingConfig, check_evaluation
from trilemma.training.loop.stop import ending_quietly
from trilemma.training.options.flags import option
from trilemma.training.options.parser import parse_flags
from trilemma.training.progress import loading_libraries

ON_A_SHEET = 1000
"""Images that one sheet shows at most."""
NOT_WRITTEN = {".npz", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
"""Ends of names of files that nothing is written to: a folder of such a name would surprise."""


@dataclass(frozen=True)
class OutputConfig:
    """Where the images go."""

    output: str = option("images", "folder for PNGs, a file that ends in .npy, or a sheet that ends in .png")


@dataclass(frozen=True)
class GenerateConfig:
    """`eval/generate.py`."""

    model: ModelConfig
    sampling: SamplingConfig
    output: OutputConfig

    def __post_init__(self):
        check_evaluation(self.model, self.sampling)
        end = Path(self.output.output).suffix.lower()
        if end in NOT_WRITTEN:
            raise ValueError(
                f"--output {self.output.output} must be a folder, or end in .png (one sheet of all) or .npy"
            )
        if end == ".png" and self.sampling.num_samples > ON_A_SHEET:
            raise ValueError(
                f"--output {self.output.output} is one sheet, of at most {ON_A_SHEET} images: give "
                f"--num_samples, which is {self.sampling.num_samples}, or another --output"
            )


def main(argv: list[str] | None = None) -> None:
    """Parse, then import what needs torch."""
    with ending_quietly():
        config = parse_flags(GenerateConfig, __doc__, sys.argv[1:] if argv is None else argv)

        with loading_libraries():
            from trilemma.eval.scoring.image_output import draw_to_files
            from trilemma.training.devices.memory import saying_what_to_lower
            from trilemma.training.loop.machine import closing_groups

        try:
            with closing_groups(), saying_what_to_lower("lower --batch_size"):
                draw_to_files(config.model, config.sampling, config.output.output)
        except (ValueError, OSError, RuntimeError) as problem:
            raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main()
