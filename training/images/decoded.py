"""Decoded images in the cache: opened, and checked against what was written beside them.

A folder of the cache holds `images.uint8` (unless the images are too large for the disk), `digests.npy`, a
sha256 of each image's pixels, and `about.json`. Pixels are compared with their digests each time a folder is
opened; of more than CHECKED_BYTES, evenly spaced images that come to that much.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trilemma.pipelines.files.arrays import open_npy
from trilemma.pipelines.files.reading import FileError, check_types, read_json
from trilemma.training.images.pixels import open_picture, to_pixels

ABOUT, DIGESTS, PIXELS = "about.json", "digests.npy", "images.uint8"
CHECKED_BYTES = 4 * 2**30
TYPES = {
    "source": str,
    "split": str,
    "shape": tuple[int, int, int, int],
    "bad": dict[str, str],
    "brightest": int | None,
    "several": tuple[int | str, ...],
}
"""What about.json says in every version."""
LATER_TYPES = {"stored": bool, "digests": str, "brightest_in": str}
"""What later versions say: whether there are pixels, the sha256 of all digests, which file is brightest."""


class MemoryMap:
    """Decoded images in a file: `maps[positions]` -> uint8 (B, C, H, W)."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, tuple(shape)
        self.array = np.memmap(path, dtype=np.uint8, mode="r", shape=self.shape)

    def __reduce__(self):  # to a reader process goes the path, not a copy of the images
        return MemoryMap, (self.path, self.shape)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(self.array[positions])


class Stream:
    """Images that are decoded at every access: `stream[positions]` -> uint8 (B, C, H, W)."""

    def __init__(self, read: Callable[[Sequence[int]], list], rows: np.ndarray, shape: tuple[int, ...]):
        self.read, self.rows, self.shape = read, rows, tuple(shape)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        _, channels, resolution, _ = self.shape
        encoded = self.read(self.rows[positions])
        pixels = [to_pixels(open_picture(image), channels, resolution) for image in encoded]
        return np.stack(pixels) if pixels else np.zeros((0, *self.shape[1:]), np.uint8)


class Decoded(NamedTuple):
    """Pixels, their digests, and what was wrong with the rows that could not be read."""

    pixels: MemoryMap | Stream | np.ndarray
    digests: np.ndarray  # (N, 32) uint8: sha256 of each image's pixels
    bad: dict[int, str]  # position -> row, file and what is wrong with it


def digest(pixels: np.ndarray) -> np.ndarray:
    """sha256 of one image, uint8 (32,)."""
    return np.frombuffer(hashlib.sha256(pixels).digest(), np.uint8)


def all_digests(digests: np.ndarray) -> str:
    """sha256 of the digests of all images."""
    return hashlib.sha256(np.ascontiguousarray(digests)).hexdigest()


def open_decoded(
    folder: Path, read: Callable[[Sequence[int]], list], rows: np.ndarray
) -> tuple[Decoded, dict[str, Any]]:
    """The images of a folder of the cache and what its about.json says; FileError names a damaged file.

    read and rows: as a `Source` has them, for a folder without pixels.
    """
    about = _about(folder / ABOUT, len(rows))
    shape, bad = tuple(about["shape"]), {int(position): text for position, text in about["bad"].items()}
    digests = np.array(open_npy(folder / DIGESTS))
    if digests.dtype != np.uint8 or digests.shape != (len(rows), 32):
        raise FileError(folder / DIGESTS, f"has {digests.dtype} {digests.shape}, not uint8 {(len(rows), 32)}")
    if about.get("digests", all_digests(digests)) != all_digests(digests):
        raise FileError(folder / DIGESTS, f"does not match its checksum in {ABOUT}")
    path = folder / PIXELS
    if not path.is_file():
        if about.get("stored"):
            raise FileError(path, "is not there any more")
        return Decoded(Stream(read, rows, shape), digests, bad), about
    if path.stat().st_size != np.prod(shape, dtype=np.int64):
        raise FileError(path, f"has {path.stat().st_size:,} bytes, not those of {shape} pixels")
    pixels = MemoryMap(path, shape)
    _compare(pixels, digests, bad)
    return Decoded(pixels, digests, bad), about


def _about(path: Path, count: int) -> dict[str, Any]:
    about = read_json(path)
    try:
        check_types(about, TYPES | LATER_TYPES)
        if missing := TYPES.keys() - about.keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        if min(about["shape"]) < 1 or about["shape"][0] != count or not about["several"]:
            raise ValueError(f"is not of {count} images")
        if not all(name.isdecimal() and int(name) < count for name in about["bad"]):
            raise ValueError("names bad images that do not exist")
    except ValueError as problem:
        raise FileError(path, problem) from problem
    return about


def _compare(pixels: MemoryMap, digests: np.ndarray, bad: dict[int, str]) -> None:
    """FileError for the first image whose pixels are not those of its digest."""
    size, count = int(np.prod(pixels.shape[1:])), len(digests)
    step = max(1, -(-count * size // CHECKED_BYTES))
    for position in range(0, count, step):
        if position not in bad and not np.array_equal(digest(pixels.array[position]), digests[position]):
            raise FileError(pixels.path, f"does not match {DIGESTS}: image {position} has other pixels")
