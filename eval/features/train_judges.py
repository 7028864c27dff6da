"""Train the judges that are shipped: `python -m trilemma.eval.features.train_judges --mnist <folder>`.

Writes `<name>-<first digits of its sha256>.safetensors` into `judges/` beside this file and removes the file
of that name that was there. Each is trained on the training split and measured on the test split, on one
thread of the CPU; the digits, which have no test split, by the recipe of any data that no judge is shipped
for. Without a data set its judges are left out.

A judge that is trained again is another judge: results under the two cannot be compared. So train one again
only for a good reason.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from trilemma.eval.features.judge_files import SHIPPED, VERSION
from trilemma.training.options.flags import option
from trilemma.training.options.groups import DataConfig
from trilemma.training.options.parser import parse_flags


@dataclass(frozen=True)
class JudgesConfig:
    """Where the data are, and where the files go."""

    mnist: str | None = option(None, "folder with the training and the test split of MNIST")
    cifar10: str | None = option(None, "folder with the training and the test split of CIFAR-10")
    cifar10_note: str | None = option(
        None, "how that CIFAR-10 differs from the original, as the file records it", needs=("cifar10", ...)
    )
    judges: tuple[str, ...] | None = option(None, "train only these, by name")
    output_dir: str = option(str(SHIPPED), "folder of the files")
    cache_dir: str | None = option(None, "where decoded images are cached")


@dataclass(frozen=True)
class TrainJudgesConfig:
    """`eval/features/train_judges.py`."""

    judges: JudgesConfig


@dataclass(frozen=True)
class Row:
    """A judge to ship: its data and its recipe."""

    data: str  # as the file names it
    resolution: int | None = None
    images_seen: int | None = None
    random_flip: bool = False


ROWS: dict[str, Row] = {
    "digits": Row("digits"),
    "mnist": Row("MNIST", images_seen=100_000),
    "cifar10": Row("CIFAR-10", images_seen=150_000, random_flip=True),
    "cifar10-16": Row("CIFAR-10 at 16x16", resolution=16, images_seen=300_000, random_flip=True),
}
"""Name -> judge. One thread trains all of them in about half an hour."""


def data_config(name: str, config: JudgesConfig) -> DataConfig | None:
    """The data of a judge; None if the command line does not name them."""
    if name == "digits":
        return DataConfig(dataset_name="digits", cache_dir=config.cache_dir)
    folder = config.mnist if name == "mnist" else config.cifar10
    if folder is None:
        return None
    return DataConfig(train_data_dir=folder, resolution=ROWS[name].resolution, cache_dir=config.cache_dir)


def train_judge(name: str, data: DataConfig, note: str | None, folder: Path) -> Path:
    """Train, measure and write one judge; returns its file."""
    from trilemma.eval.features.classifier import SEED, Recipe, save_classifier, train_classifier
    from trilemma.training.images.image_set import load_images

    row, images = ROWS[name], load_images(data)
    test = None if name == "digits" else load_images(data, "test")
    net, trained = train_classifier(images, Recipe(row.images_seen, row.random_flip), test)
    trained = trained._replace(
        version=VERSION,
        seed=SEED,
        random_flip=row.random_flip,
        data=row.data,
        note=note,
        held_out_split=test and test.split,
        other_fingerprints=() if test is None else (test.fingerprint,),
    )
    file = save_classifier(net, trained, folder, name)
    for old in set(folder.glob(f"{name}-{'?' * 16}.safetensors")) - {file}:
        old.unlink()
    return file


def main(argv: list[str] | None = None) -> None:
    """Train the judges whose data the command line names."""
    config = parse_flags(TrainJudgesConfig, __doc__, sys.argv[1:] if argv is None else argv).judges
    names = config.judges or tuple(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        raise SystemExit(f"error: --judges must be of {', '.join(ROWS)}; got {unknown[0]!r}")
    from trilemma.eval.features.judge_files import read_trained

    for name in names:
        data = data_config(name, config)
        if data is None:
            print(f"{name}: left out, since there are no data for it")
            continue
        began = time.perf_counter()
        note = config.cifar10_note if name.startswith("cifar10") else None
        file = train_judge(name, data, note, Path(config.output_dir))
        trained, seconds = read_trained(file), time.perf_counter() - began
        print(
            f"{file}: {file.stat().st_size:,} bytes, right on {trained.held_out_accuracy:.2%} of "
            f"{trained.held_out:,} held-out images, {seconds:.0f} seconds",
            flush=True,
        )


if __name__ == "__main__":
    main()
