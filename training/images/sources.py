"""Where the rows come from: the embedded digits, points of the plane, a Hub data set, or a local folder.

`--classes` keeps some labels and renumbers them 0..K-1 in the order of their old numbers, so that a model of
three classes has three classes; `class_names` is reduced to match.

Nothing here decodes an image: see `decode.py`; the columns of a table are found by `columns.py`.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from trilemma.pipelines.files.names import below
from trilemma.training.images.columns import image_column, label_column, read_labels
from trilemma.training.images.folders import (
    Listing,
    check_all_in_splits,
    classes_of,
    data_folder,
    list_folder,
    splits_of,
)
from trilemma.training.images.points import POINTS, SHAPE
from trilemma.training.images.tables import (
    declared,
    holds_images,
    load_hub,
    load_tables,
    metadata_tables,
)
from trilemma.training.options.flags import nearest
from trilemma.training.options.groups import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Rows of one split, still encoded; `rows`, `labels` and what is made from them have the same order.

    Data that need no decoding have `pixels` instead of `read`.
    """

    name: str
    split: str
    key: str  # changes when the encoded images may have changed; need not be the same on another machine
    read: Callable[[Sequence[int]], list] | None  # rows -> PIL images or {"bytes", "path"}; can be pickled
    rows: np.ndarray  # (N,) int64, rows of the split
    labels: np.ndarray | None  # (N,) int64 in 0..K-1
    class_names: tuple[str, ...] | None  # K names
    pixels: np.ndarray | None = None  # (M, C, H, W) uint8
    points: bool = False  # whether these are points of the plane

    def take(self, positions: np.ndarray) -> "Source":
        """The same source with only some of its rows."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, rows=self.rows[positions], labels=labels)


def open_source(config: DataConfig, split: str) -> Source:
    """The rows of `split` that the configuration asks for."""
    if config.train_data_dir is not None:
        source = _folder(config.train_data_dir, "--train_data_dir", config, split)
    elif config.dataset_name in EMBEDDED:
        source = EMBEDDED[config.dataset_name](config, split)
    elif config.dataset_name and Path(config.dataset_name).is_dir():
        source = _folder(config.dataset_name, "--dataset_name", config, split)
    elif config.dataset_name:
        source = _hub(config, split)
    else:
        raise ValueError(
            f"no data: pass --dataset_name (a Hub id such as ylecun/mnist, or {', '.join(EMBEDDED)}, "
            "which are embedded) or --train_data_dir"
        )
    if config.classes:
        source = _keep_classes(source, config.classes)
    if config.max_train_images and split == config.train_split:
        source = source.take(np.arange(min(config.max_train_images, len(source.rows))))
    if not len(source.rows):
        which = f" of the --classes {', '.join(config.classes)}" if config.classes else ""
        raise ValueError(
            f"split '{split}' of {source.name} has no rows{which}; choose another split or other data"
        )
    return source


# The embedded digits


@dataclass(frozen=True)
class _ArrayReader:
    images: np.ndarray  # (N, H, W) uint8

    def __call__(self, rows: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(self.images[row]) for row in rows]


def _digits(config: DataConfig, split: str) -> Source:
    """The 1,797 handwritten digits of scikit-learn (E. Alpaydin, C. Kaynak, UCI, 1998), 8x8, levels 0..16."""
    name = config.dataset_name
    check_split(name, split, ["train"])
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    grey = np.rint(images.astype(np.float64) * 255 / 16).astype(np.uint8)
    classes = tuple(str(digit) for digit in range(10))
    return Source(name, split, name, _ArrayReader(grey), np.arange(len(grey)), labels, classes)


# Points of the plane


def _points(config: DataConfig, split: str) -> Source:
    name, row = config.dataset_name, POINTS[config.dataset_name]
    set_to_others = {
        "channels": config.channels not in (None, SHAPE[0]),
        "resolution": config.resolution not in (None, SHAPE[1]),
        "random_flip": config.random_flip,
        "image_column": config.image_column is not None,
        "label_column": config.label_column is not None,
    }
    for option in (option for option, wrong in set_to_others.items() if wrong):
        raise ValueError(f"--{option} is for images; {name} has points of the plane. Leave it out")
    check_split(name, split, list(row.splits))
    pixels, labels = row.split(split)
    rows = np.arange(len(pixels))
    return Source(name, split, name, None, rows, labels, row.class_names, pixels, points=True)


EMBEDDED = {"digits": _digits, **dict.fromkeys(POINTS, _points)}
"""--dataset_name of the data that come with the package -> what makes their rows of a split."""


# Hub data sets and folders


@dataclass(frozen=True)
class _TableReader:
    table: object  # datasets.Dataset whose images are not decoded
    column: str
    folder: str = ""  # that paths are relative to

    def __call__(self, rows: Sequence[int]) -> list[dict | None]:
        images = self.table[rows][self.column]
        return [self._located(image) for image in images] if self.folder else images

    def _located(self, image: dict | None) -> dict | None:
        """An image of a table with its place; one that is in the table itself as it is."""
        if not image or image["bytes"] is not None or not image["path"] or os.path.isabs(image["path"]):
            return image
        return {**image, "path": str(below(Path(self.folder), image["path"], f"a table in {self.folder}"))}


@dataclass(frozen=True)
class _FileReader:
    folder: str
    paths: Sequence[str]

    def __call__(self, rows: Sequence[int]) -> list[dict]:
        return [{"bytes": None, "path": os.path.join(self.folder, self.paths[row])} for row in rows]


def _hub(config: DataConfig, split: str) -> Source:
    name, tables = config.dataset_name, load_hub(config)
    check_split(name, split, list(tables))
    # The folder that holds a table's Arrow file is named by a hash of the data files and of the revision.
    key = "\n".join("/".join(Path(file["filename"]).parts[-4:]) for file in tables[split].cache_files)
    return table_source(tables, name, config, split, key)


def _folder(place: str, option: str, config: DataConfig, split: str) -> Source:
    folder = data_folder(place, option)
    where = f"{option} '{folder}'"
    listing = list_folder(folder)
    if not (listing.images or listing.tables):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ValueError(f"{where} has no images and no parquet files; it has {names}")
    if listing.archives:
        example, count = listing.archives[0], len(listing.archives)
        logger.warning(
            "%s: archives are not read, such as %s (%d in all); unpack them (.tar shards: see --streaming)",
            where, example, count,
        )  # fmt: skip
    config_name = config.dataset_config_name if option == "--dataset_name" else None
    splits, features = declared(listing, config_name, where) or (_splits(listing, where), None)
    files = {path for paths in splits.values() for path in paths}
    name = folder.resolve().name or "images"
    check_split(name, split, list(splits))
    key = listing.key(splits[split])
    if files.intersection(listing.tables):
        tables = load_tables(listing, splits, features, where, config.cache_dir)
        return table_source(tables, name, config, split, key, str(folder.resolve()))
    if files.intersection(listing.metadata):
        tables = metadata_tables(splits, listing, where)
        check_split(name, split, list(tables))
        return table_source(tables, name, config, split, key, str(folder.resolve()))
    return _files(splits, folder, name, config, split, key)


def _splits(listing: Listing, where: str) -> dict[str, list[str]]:
    """Split -> its files: the images and what describes them, or else the tables."""
    if not listing.images:
        splits = splits_of(listing.tables)
        left = sorted(set(listing.tables).difference(*splits.values()))
        if left:
            logger.warning(
                "%s: files in no split are not read, such as %s (%d in all)", where, left[0], len(left)
            )
        return splits
    pictured = [path for path in listing.tables if holds_images(listing.folder / path)]
    if pictured:
        raise ValueError(
            f"{where} holds image files, such as {listing.images[0]}, and tables of images, such as "
            f"{pictured[0]}; put one kind elsewhere"
        )
    splits = splits_of(listing.images, listing.metadata)
    check_all_in_splits(splits, listing, where)
    return splits


def _files(
    splits: Mapping[str, Sequence[str]], folder: Path, name: str, config: DataConfig, split: str, key: str
) -> Source:
    """Image files whose folders are their classes."""
    import datasets

    classes, names = classes_of(splits)
    features = {"image": datasets.Image()} | ({"label": datasets.ClassLabel(names=names)} if names else {})
    image_column(features, config.image_column, name)
    labelled = label_column(features, config.label_column, name) is not None and split in classes
    numbers = {class_name: number for number, class_name in enumerate(names)}
    labels = np.array([numbers[class_name] for class_name in classes[split]]) if labelled else None
    reader = _FileReader(str(folder.resolve()), splits[split])
    rows = np.arange(len(splits[split]))
    return Source(name, split, key, reader, rows, labels, tuple(names) if labelled else None)


def table_source(tables, name: str, config: DataConfig, split: str, key: str, folder: str = "") -> Source:
    """The rows of a split of `tables`, split -> `datasets.Dataset`; folder: that paths are relative to."""
    import datasets

    table = tables[split]
    image = image_column(table.features, config.image_column, name)
    label = label_column(table.features, config.label_column, name)
    labels, names = (None, None) if label is None else read_labels(tables, split, label, name)
    encoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    reader = _TableReader(encoded, image, folder)
    return Source(name, split, f"{key}\n{image}", reader, np.arange(len(table)), labels, names)


def check_split(name: str, split: str, splits: list[str]) -> None:
    """ValueError unless there is this split."""
    if split not in splits:
        raise ValueError(
            f"{name} has no split '{split}' (--train_split, --validation_split, --split); it has "
            f"{', '.join(splits)}.{nearest(split, splits)}"
        )


def _keep_classes(source: Source, classes: Sequence[str]) -> Source:
    if source.labels is None:
        raise ValueError(
            f"--classes needs labels, and {source.name} has none; name a column with --label_column"
        )
    names, numbers = source.class_names, {name: number for number, name in enumerate(source.class_names)}
    or_number = ""
    if not all(name.isdecimal() for name in names):  # else 2 is the class named 2, wherever it stands
        numbers = {str(number): number for number in range(len(names))} | numbers  # a name wins over a number
        or_number = f" (or 0..{len(names) - 1})"
    unknown = [name for name in classes if name not in numbers]
    if unknown:
        raise ValueError(
            f"--classes must be among {', '.join(names)}{or_number}; got '{unknown[0]}'."
            f"{nearest(unknown[0], names)}"
        )
    kept = np.unique([numbers[name] for name in classes])
    source = source.take(np.flatnonzero(np.isin(source.labels, kept)))
    return replace(
        source,
        labels=np.searchsorted(kept, source.labels).astype(np.int64),
        class_names=tuple(names[number] for number in kept),
    )
