"""Where the rows come from: the embedded digits, points of the plane, a Hub data set, or a local folder.

`--classes` keeps some labels and renumbers them 0..K-1 in the order of their old numbers, so that a model of
three classes has three classes; `class_names` is reduced to match.

Nothing here decodes an image: see `decode.py`; the columns of a table are found by `columns.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from trilemma.training.images.columns import image_column, label_column
from trilemma.training.images.points import POINTS, SHAPE
from trilemma.training.options.flags import nearest
from trilemma.training.options.groups import DataConfig

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


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
        source = _folder(config, split)
    elif config.dataset_name == "digits":
        source = _digits(split)
    elif config.dataset_name in POINTS:
        source = _points(config, split)
    elif config.dataset_name:
        tables = _load(config.dataset_name, "--dataset_name", config)
        source = _table(tables, config.dataset_name, config, split)
    else:
        raise ValueError(
            f"no data: pass --dataset_name (a Hub id such as ylecun/mnist, or digits, {', '.join(POINTS)}, "
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


def _digits(split: str) -> Source:
    """The 1,797 handwritten digits of scikit-learn (E. Alpaydin, C. Kaynak, UCI, 1998), 8x8, levels 0..16."""
    _check_split("digits", split, ["train"])
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    grey = np.rint(images.astype(np.float64) * 255 / 16).astype(np.uint8)
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", split, "digits", _ArrayReader(grey), np.arange(len(grey)), labels, names)


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
    _check_split(name, split, list(row.splits))
    pixels, labels = row.split(split)
    rows = np.arange(len(pixels))
    return Source(name, split, name, None, rows, labels, row.class_names, pixels, points=True)


# Hub data sets and folders


@dataclass(frozen=True)
class _TableReader:
    table: object  # datasets.Dataset whose images are not decoded
    column: str

    def __call__(self, rows: Sequence[int]) -> list[dict | None]:
        return self.table[rows][self.column]


def _folder(config: DataConfig, split: str) -> Source:
    folder = Path(config.train_data_dir).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"--train_data_dir '{folder}' {what}; pass a folder of images or parquet files")
    files = [path for path in folder.rglob("*") if path.is_file()]
    images = sum(path.suffix.lower() in IMAGE_FILES for path in files)
    if not images and not any(path.suffix in (".parquet", ".arrow") for path in files):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ValueError(f"--train_data_dir '{folder}' has no images and no parquet files; it has {names}")
    tables = _load(str(folder), "--train_data_dir", config)
    rows = sum(len(table) for table in tables.values())
    if rows < images:  # `datasets` reads only the folder 'train' if a class happens to be named so
        raise ValueError(
            f"--train_data_dir '{folder}' holds {images} image files, but only {rows} of them are in its "
            f"splits ({', '.join(tables)}): a class folder named like a split (train, test, validation, ...) "
            "hides the others; rename it, or put all class folders into one folder 'train'"
        )
    return _table(tables, folder.resolve().name, config, split)


def _load(path: str, option: str, config: DataConfig):
    import datasets  # slow to import, and the digits do not need it

    # Of a folder, `path` is all there is; configuration and revision belong to --dataset_name.
    on_hub = option == "--dataset_name"
    name, revision = (config.dataset_config_name, config.dataset_revision) if on_hub else (None, None)
    try:
        # In memory a table has no cache file, which is what names its contents in `_table`.
        return datasets.load_dataset(
            path, name, revision=revision, cache_dir=config.cache_dir, keep_in_memory=False
        )
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        hint = " (see also --dataset_config_name and --dataset_revision)" if on_hub else ""
        raise ValueError(f"{option} '{path}' could not be loaded{hint}: {error}") from error


def _table(tables, name: str, config: DataConfig, split: str) -> Source:
    import datasets

    _check_split(name, split, list(tables))
    table = tables[split]
    image = image_column(table.features, config.image_column, name)
    label = label_column(table.features, config.label_column, name)
    labels, names = (None, None) if label is None else _labels(tables, split, label, name)
    # The folder that holds a table's Arrow file is named by a hash of the data files (and of the revision, on
    # the Hub).
    key = "\n".join("/".join(Path(file["filename"]).parts[-4:]) for file in table.cache_files)
    encoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    reader = _TableReader(encoded, image)
    return Source(name, split, f"{key}\n{image}", reader, np.arange(len(table)), labels, names)


def _check_split(name: str, split: str, splits: list[str]) -> None:
    if split not in splits:
        names = ", ".join(splits)
        raise ValueError(f"{name} has no split '{split}'; it has {names}.{nearest(split, splits)}")


def _labels(
    tables, split: str, column: str, name: str
) -> tuple[np.ndarray, tuple[str, ...]] | tuple[None, None]:
    """Labels of the split and the names of all classes; plain integers 0..largest are their own names.

    A split that has no label at all (-1 on the Hub, null where a file lacks the column) is an unlabelled one.
    """
    import datasets

    def read(table) -> np.ndarray:
        values = table.select_columns([column])[:][column]
        return np.array([-1 if value is None else value for value in values], dtype=np.int64)

    labels = read(tables[split])
    if (labels == -1).all():
        return None, None
    feature = tables[split].features[column]
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(feature.names)
    else:
        splits = [table for table in tables.values() if column in table.features]
        names = tuple(str(label) for label in range(max(read(table).max(initial=-1) for table in splits) + 1))
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise ValueError(
            f"--label_column '{column}' of {name}, split '{split}', has {len(wrong)} labels out of range: "
            f"row {wrong[0]} has {labels[wrong[0]]} (-1 stands for none), the {len(names)} classes are "
            f"0..{len(names) - 1}; correct them, or pass --label_column none to ignore labels"
        )
    return labels, names


def _keep_classes(source: Source, classes: Sequence[str]) -> Source:
    if source.labels is None:
        raise ValueError(
            f"--classes needs labels, and {source.name} has none; name a column with --label_column"
        )
    numbers = {str(number): number for number in range(len(source.class_names))}
    numbers |= {name: number for number, name in enumerate(source.class_names)}  # a name wins over a number
    unknown = [name for name in classes if name not in numbers]
    if unknown:
        raise ValueError(
            f"--classes must be among {', '.join(source.class_names)} (or 0..{len(source.class_names) - 1}); "
            f"got '{unknown[0]}'.{nearest(unknown[0], source.class_names)}"
        )
    kept = np.unique([numbers[name] for name in classes])
    source = source.take(np.flatnonzero(np.isin(source.labels, kept)))
    return replace(
        source,
        labels=np.searchsorted(kept, source.labels).astype(np.int64),
        class_names=tuple(source.class_names[number] for number in kept),
    )
