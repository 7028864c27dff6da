"""What a folder holds: which files are images, and which split and class each of them belongs to.

The folder is walked and never globbed, so all names are taken literally. Hidden files and the folders that
programs leave behind are not data, and neither is a folder that a training, a sweep or a comparison of ours
has filled, or a cache of tables. Splits and classes follow the conventions of `datasets`: folders or files
named train, test, validation and the like make splits, and where all images of a split lie in folders of one
depth, the innermost folder is the class. Files are in the order of their paths, compared by code point, on
every machine.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from trilemma.training.images.pixels import UNREADABLE
from trilemma.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

TABLES = {".parquet": "parquet", ".arrow": "arrow"}
"""Suffix of a table -> its builder in `datasets`."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What describes the images beside it, one on each line."""
ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}
LEFT_BY_PROGRAMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"}
CONTAINERS = {"BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats whose files Pillow recognises and of which it reads no pixels."""

SEPARATOR = "[-._ 0-9]"
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"data/([^/]*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Endings of image files: those of every format that Pillow reads, or could with another codec."""
    formats = Image.registered_extensions()
    readable = {*Image.OPEN, "MPO"} - CONTAINERS  # Pillow's reader of JPEG opens MPO, too
    return frozenset({suffix for suffix, name in formats.items() if name in readable} | UNREADABLE.keys())


def suffix_of(path: str) -> str:
    """The ending of a file's name, in lower case."""
    return os.path.splitext(path)[1].lower()


def existing_folder(place: str) -> Path:
    """The folder of this name, or else what ~ at its beginning stands for."""
    literal = Path(place)
    return literal if literal.exists() else Path(os.path.expanduser(place))


def data_folder(place: str, option: str) -> Path:
    """The folder of this name; ValueError, which names the option, if there is none."""
    folder = existing_folder(place)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(
            f"{option} '{folder}' {what}; pass a folder of images, of parquet files, or, with "
            "--streaming, of WebDataset archives (.tar)"
        )
    return folder


def walk(folder: Path) -> list[str]:
    """Paths of all files that may be data, relative to the folder, with / and in order.

    Links are followed. What is passed over is not hidden files alone: see the top of this file.
    """
    ours: list[str] = []
    paths = sorted(_walk(str(folder), "", frozenset(), ours))
    if ours:
        logger.warning("left out, since this toolkit wrote it: %s in %s", ", ".join(sorted(ours)), folder)
    return paths


def _walk(folder: str, prefix: str, parents: frozenset, ours: list[str]) -> Iterator[str]:
    about = os.stat(folder)
    here = (about.st_dev, about.st_ino)
    if here in parents:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        entries = [e for e in entries if not (e.name.startswith(".") or e.name in LEFT_BY_PROGRAMS)]
    if prefix and _is_ours({entry.name for entry in entries}):
        ours.append(prefix.rstrip("/"))
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", parents | {here}, ours)
        elif entry.is_file() or entry.is_symlink():  # a link to nothing is a file that cannot be read
            yield prefix + entry.name


def _is_ours(names: set[str]) -> bool:
    """Whether a folder with these names holds a training run, a sweep, a comparison or a cache of tables."""
    file = OutputFolder(Path())
    of_run = {path.name for path in (file.run, file.checkpoints, file.index)}
    pictures = [name for name in names if name.endswith(".png")]
    return (
        (file.config.name in names and not names.isdisjoint(of_run))
        or (file.results.name in names and any(f"{Path(name).stem}.md" in names for name in pictures))
        or "comparison.md" in names
        or ("dataset_info.json" in names and "state.json" not in names)  # `save_to_disk` writes both
    )


@dataclass(frozen=True)
class Listing:
    """The files of a folder by what they are, each a path relative to it, in order."""

    folder: Path
    images: list[str]
    tables: list[str]
    metadata: list[str]
    archives: list[str]

    def key(self, paths: Iterable[str]) -> str:
        """Changes when one of these files is replaced, also in place and with an old modification time."""
        digest = hashlib.sha256(os.fsencode(self.folder.resolve()))
        for path in paths:
            digest.update(os.fsencode(f"\n{path}\0{file_mark(self.folder / path)}"))
        return digest.hexdigest()


def list_folder(folder: Path) -> Listing:
    """What a folder holds, with its sub-folders."""
    paths, suffixes = walk(folder), image_suffixes()
    images = [path for path in paths if suffix_of(path) in suffixes]
    metadata = [path for path in paths if path.rsplit("/", 1)[-1] in METADATA] if images else []
    tables = [path for path in paths if suffix_of(path) in TABLES and path not in metadata]
    return Listing(folder, images, tables, metadata, [p for p in paths if suffix_of(p) in ARCHIVES])


def file_mark(path: Path) -> str:
    """Size, times and inode of a file; '' where there is none."""
    try:
        about = path.stat()
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_dev} {about.st_ino}"


def splits_of(paths: Sequence[str], beside: Sequence[str] = ()) -> dict[str, list[str]]:
    """Split -> its files, in the order of `datasets`; `beside` holds files that go where the others go.

    Names of folders decide; failing those, names of files; failing both, all is the split train.
    """
    shards: dict[str, list[str]] = {}
    for path in paths:
        if match := SHARD.fullmatch(path):
            shards.setdefault(match[1], []).append(path)
    if shards:
        return {split: shards[split] for split in [*SPLITS, *sorted(shards)] if split in shards}
    for rank in (_rank_by_folder, _rank_by_name):
        ranked = {split: _ranked(paths, split, rank) for split in SPLITS}
        if any(ranked.values()):
            return {s: files + _ranked(beside, s, rank) for s, files in ranked.items() if files}
    return {"train": [*paths, *beside]}


def _ranked(paths: Iterable[str], split: str, rank: Callable[[str, str], int | None]) -> list[str]:
    ranks = ((rank(path, split), path) for path in paths)
    return [path for _, path in sorted((number, path) for number, path in ranks if number is not None)]


def _rank_by_folder(path: str, split: str) -> int | None:
    return _rank_of_folders(path.rpartition("/")[0], split)


@lru_cache(maxsize=4096)
def _rank_of_folders(folders: str, split: str) -> int | None:
    return _rank(folders.split("/"), split, ("{}", "{}{s}.*", ".*{s}{}", ".*{s}{}{s}.*"))


def _rank_by_name(path: str, split: str) -> int | None:
    return _rank([path.rpartition("/")[2]], split, ("{}{s}.*", ".*{s}{}{s}.*"))


def _rank(names: Sequence[str], split: str, forms: tuple[str, ...]) -> int | None:
    """Number of the first pattern that fits one of the names; None where none does."""
    if not any(word in name for word in SPLITS[split] for name in names):
        return None
    patterns = _patterns(split, forms)
    return next((i for i, p in enumerate(patterns) if any(p.fullmatch(name) for name in names)), None)


@lru_cache
def _patterns(split: str, forms: tuple[str, ...]) -> list[re.Pattern]:
    return [re.compile(form.format(word, s=SEPARATOR), re.DOTALL) for word in SPLITS[split] for form in forms]


def check_all_in_splits(splits: Mapping[str, Sequence[str]], listing: Listing, place: str) -> None:
    """ValueError that names an image which no split has; warnings for what is read twice or not at all."""
    parts, paths = [path for files in splits.values() for path in files], listing.images
    missing = sorted(set(paths).difference(parts))
    if missing:
        raise ValueError(
            f"{place} holds {len(paths)} image files, but only {len(paths) - len(missing)} are in its splits "
            f"({', '.join(splits)}), and '{missing[0]}' is not: a folder or file named like a split "
            "(train, test, validation, ...) hides the others; rename it, or put all class folders into one "
            "folder 'train'"
        )
    if len(set(parts)) < len(parts):
        twice = Counter(parts).most_common(1)[0][0]
        logger.warning("%s: some images are in several splits, such as %s", place, twice)
    unread = sorted(set(listing.metadata).difference(parts))
    if unread:
        logger.warning("%s: %s is in no split's folder and is not read", place, unread[0])


def classes_of(splits: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """(split -> class of each file, for the splits that have classes, names of all classes).

    Class folders lie at one depth in all splits, that of the first split which has them.
    """
    folders = {split: [_class_folder(path, split) for path in paths] for split, paths in splits.items()}
    depths = {split: {len(parents) for parents in part} for split, part in folders.items()}
    for split, paths in splits.items():
        if len(depths[split]) > 1:
            _warn_of_depths(split, paths, [len(parents) for parents in folders[split]])
    depth = next((d for d in depths.values() if len(d) == 1 and d != {0}), None)
    labelled = {
        split: [_readable(parents[-1]) for parents in part]
        for split, part in folders.items()
        if depths[split] == depth
    }
    names = sorted({name for classes in labelled.values() for name in classes})
    if len(names) < 2:
        return {}, []
    for split, classes in labelled.items():
        _warn_of_namesakes(split, folders[split], classes)
    return labelled, names


def _warn_of_depths(split: str, paths: Sequence[str], depths: Sequence[int]) -> None:
    rare = min(set(depths), key=depths.count)
    few = [path for path, depth in zip(paths, depths, strict=True) if depth == rare]
    logger.warning(
        "split '%s': images lie at several depths, so their folders are no classes. %d of %d lie %d folders "
        "deep, such as %s: move or delete them if the folders are classes",
        split, len(few), len(paths), rare, few[0],
    )  # fmt: skip


def _class_folder(path: str, split: str) -> list[str]:
    """The folders between that of the split, or the root, and the file."""
    parents = path.split("/")[:-1]
    inside = next((i + 1 for i in range(len(parents)) if _is_split(parents[i], split)), 0)
    return parents[inside:]


def _is_split(name: str, split: str) -> bool:
    return split in SPLITS and _rank_of_folders(name, split) is not None


def _readable(name: str) -> str:
    """The name in UTF-8, whatever the locale; bytes that are no UTF-8 are shown as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _warn_of_namesakes(split: str, folders: Sequence[list[str]], classes: Sequence[str]) -> None:
    places: dict[str, str] = {}
    for parents, name in zip(folders, classes, strict=True):
        place = "/".join(parents)
        if places.setdefault(name, place) != place:
            logger.warning(
                "split '%s': the class is the innermost folder, so %s and %s are both the class '%s'",
                split, places[name], place, name,
            )  # fmt: skip
            return
