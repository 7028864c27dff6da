"""Score a model or a set of images: `accelerate launch eval/evaluate.py --model <folder or Hub id>`.

Each process draws and scores its share of the images and keeps none of them. Prints a table and adds lines to
`results.jsonl`. Without `--reference` a model is compared with the images that it was trained on.
"""

import sys
from dataclasses import dataclass

from trilemma.eval.options import ModelConfig, SamplingConfig, ScoreConfig, check_evaluation
from trilemma.training.loop.stop import ending_quietly
from trilemma.training.options.flags import option
from trilemma.training.options.parser import parse_flags
from trilemma.training.options.plugins import located
from trilemma.training.progress import loading_libraries


@dataclass(frozen=True)
class ImagesConfig:
    """Images to score instead of a model's."""

    images: str | None = option(None, "folder of lossless images, or uint8 .npy or .npz; instead of --model")


@dataclass(frozen=True)
class ReferenceConfig:
    """What the samples are compared with."""

    reference: str | None = option(None, "'digits', Hub id, folder, or statistics file (.safetensors, .npz)")
    split: str | None = option(
        None, "split of the reference; if not given, the training split, and for bpd the held-out images too"
    )
    resolution: int | None = option(
        None,
        "side of the reference's images; if not given, that of the training, or with --reference that of the "
        "files",
        low=1,
    )
    image_column: str | None = option(None, "image column of the reference; found by its type if not given")
    label_column: str | None = option(None, "label column, or 'none'; found by its type if not given")
    reference_n: int | None = option(
        None, "number of images behind an .npz, from which the floor is computed", low=2
    )
    save_reference: str | None = option(
        None, "also write the reference's statistics to this .safetensors or .npz"
    )
    calibration_images: int = option(
        1000, "show what at most this many real images, the same blurred, and noise score; 0: none", low=0
    )
    cache_dir: str | None = option(None, "where data and statistics are kept")


@dataclass(frozen=True)
class OutputConfig:
    """Where the numbers go."""

    output: str | None = option(
        None, "results file; results.jsonl in the model's folder, or here, if not given"
    )
    dry_run: bool = option(
        False, "open model, reference and extractors, say whether anything is refused, and draw nothing"
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """`eval/evaluate.py`."""

    model: ModelConfig
    images: ImagesConfig
    reference: ReferenceConfig
    sampling: SamplingConfig
    score: ScoreConfig
    output: OutputConfig

    def __post_init__(self):
        check_evaluation(self.model, self.sampling, self.score)


def main(argv: list[str] | None = None) -> None:
    """Parse, then import what needs torch."""
    with ending_quietly():
        config = parse_flags(EvaluateConfig, __doc__, sys.argv[1:] if argv is None else argv)

        with loading_libraries():
            from trilemma.eval.scoring.after_training import evaluate
            from trilemma.model_cards.rendering.differences import card_follows
            from trilemma.training.devices.memory import saying_what_to_lower
            from trilemma.training.loop.machine import closing_groups

        try:
            with (
                closing_groups(),
                saying_what_to_lower("lower --batch_size"),
                card_follows(config.model.model),
            ):
                evaluate(config)
        except (ValueError, OSError, RuntimeError) as problem:
            raise SystemExit(f"error: {located(problem)}") from problem


if __name__ == "__main__":
    main()
