"""Where the shards of a stream lie, and its first images, which stand for it.

A shard is a file: parquet, Arrow, or a .tar archive of WebDataset, in a local folder or a data set of the
Hub; `datasets` reads them one after the other. What a run must know before it trains, such as the size of
the images and their classes, is taken from the features of the table and from the first `--stream_head`
images of the split, which are read as a data set of their own.
"""

import hashlib
from itertools import islice
from os import SEEK_END
from pathlib import Path
from typing import Any, NamedTuple

from trilemma.training.images.columns import image_column, label_column
from trilemma.training.images.folders import data_folder, list_folder, splits_of, suffix_of
from trilemma.training.images.sources import EMBEDDED, Source, check_split, open_source, table_source
from trilemma.training.images.tables import ARCHIVE, declared, innermost, load_hub, load_tables
from trilemma.training.options.groups import DataConfig

TAR_END = 1024
"""Zero bytes at the end of a .tar archive, two blocks (POSIX.1-2008, pax)."""


class Shards(NamedTuple):
    """The shards of a split, and what their columns hold."""

    rows: Any  # datasets.IterableDataset with the columns below; images are {"bytes", "path"}
    name: str
    split: str
    image: str
    label: str | None
    features: Any  # datasets.Features of the columns, as a table of some of the rows has them

    @property
    def count(self) -> int:
        """Number of shards."""
        return self.rows.num_shards


def open_shards(config: DataConfig, split: str) -> Shards:
    """The shards of a split; reads none but for the first rows of one, whose columns may have to be known."""
    import datasets

    tables, name = _tables(config)
    check_split(name, split, list(tables))
    rows = tables[split]
    if rows.features is None:
        raise ValueError(
            f"{name} has no columns that are known before it is read, so --streaming cannot read it"
        )
    image = image_column(rows.features, config.image_column, name)
    label = label_column(rows.features, config.label_column, name)
    features = {image: datasets.Image()}
    if label is not None:
        features[label] = _classes(rows.features[label], label, name, config.num_classes)
    elif config.num_classes is not None:
        raise ValueError(
            f"--num_classes {config.num_classes} is for labels, and {name} has none; name their column with "
            "--label_column"
        )
    rows = rows.select_columns(list(features)).cast_column(image, datasets.Image(decode=False))
    return Shards(rows, name, split, image, label, datasets.Features(features))


def open_images(config: DataConfig, split: str) -> Source:
    """The rows of a split, of a stream the first ones, from which its size and classes are known."""
    return (open_head if config.streaming else open_source)(config, split)


def open_head(config: DataConfig, split: str) -> Source:
    """The first `--stream_head` images of a split as a source of their own, in the order of the shards."""
    import datasets
    import pyarrow as pa

    shards = open_shards(config, split)
    try:
        head = list(islice(shards.rows, config.stream_head))
    except Exception as error:  # whatever its readers and the network raise
        raise ValueError(f"{shards.name}, split '{split}', could not be read: {innermost(error)}") from error
    digest = hashlib.sha256()
    for row in head:
        digest.update(hashlib.sha256(encoded(row[shards.image], shards.name)).digest())
    if not head:
        raise ValueError(f"split '{split}' of {shards.name} has no rows; choose another split or other data")
    table = datasets.Dataset(pa.Table.from_pylist(head, schema=shards.features.arrow_schema))
    return table_source({split: table}, shards.name, config, split, digest.hexdigest())


def encoded(image: dict[str, Any] | None, name: str) -> bytes:
    """The bytes of an image of a shard, b'' where the row has none; ValueError if it is a file elsewhere."""
    if image and image["bytes"] is None and image["path"]:
        raise ValueError(
            f"--streaming reads images that lie in the shards, and a row of {name} names a file, "
            f"'{image['path']}': leave out --streaming, or write shards that hold the images"
        )
    return (image and image["bytes"]) or b""


def _classes(feature: Any, label: str, name: str, count: int | None) -> Any:
    """The feature of the labels, with the number of classes."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        if count not in (None, feature.num_classes):
            raise ValueError(
                f"--num_classes must be {feature.num_classes}, as {name} says, or be left out; got {count}"
            )
        return feature
    if count is None:
        raise ValueError(
            f"--streaming needs --num_classes: the labels of {name} ('{label}') are plain integers, of which "
            "a stream shows the largest at its end; or pass --label_column none to ignore labels"
        )
    return datasets.ClassLabel(num_classes=count)


def _tables(config: DataConfig) -> tuple[Any, str]:
    """(split -> `datasets.IterableDataset`, name of the data)."""
    name = config.dataset_name or ""
    if config.train_data_dir is not None:
        return _of_folder(config.train_data_dir, "--train_data_dir", config)
    if name in EMBEDDED:
        raise ValueError(f"--streaming is for data larger than the memory; {name} is embedded: leave it out")
    if not name:
        raise ValueError("no data to stream: pass --dataset_name (a Hub id) or --train_data_dir (a folder)")
    if Path(name).is_dir():
        return _of_folder(name, "--dataset_name", config)
    return load_hub(config, streaming=True), name


def _of_folder(place: str, option: str, config: DataConfig) -> tuple[Any, str]:
    folder = data_folder(place, option)
    where = f"{option} '{folder}'"
    listing = list_folder(folder)
    archives = [path for path in listing.archives if suffix_of(path) == ARCHIVE]
    if listing.tables and archives:
        raise ValueError(
            f"{where} holds both tables and archives, such as '{archives[0]}'; put one kind elsewhere"
        )
    if not (listing.tables or archives):
        raise ValueError(
            f"{where} has no parquet, Arrow or .tar files, which --streaming reads; leave it out for a "
            "folder of image files, which are decoded as they are read where the cache has no room for them"
        )
    for path in archives:
        _check_end(folder / path, where)
    config_name = config.dataset_config_name if option == "--dataset_name" else None
    splits, features = splits_of(archives or listing.tables), None
    if listing.tables:
        splits, features = declared(listing, config_name, where) or (splits, None)
    tables = load_tables(listing, splits, features, where, config.cache_dir, streaming=True)
    return tables, folder.resolve().name or "images"


def _check_end(archive: Path, where: str) -> None:
    """ValueError for a .tar without the 1,024 zero bytes of its end: readers take one that is cut between two
    files for a whole one.
    """
    with archive.open("rb") as file:
        file.seek(max(0, file.seek(0, SEEK_END) - TAR_END))
        if file.read() != bytes(TAR_END):
            raise ValueError(f"{where}: '{archive.name}' is cut: its end is missing; copy it again")
