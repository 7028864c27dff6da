"""From encoded images to one uint8 array, decoded once (`pixels.py`) and kept in a cache.

`decode_once` decodes every row before training starts, and writes (N, C, H, W) uint8 to a folder of the
cache, which is opened read-only ever after. The folder is written aside and renamed, so that it is whole or
absent: a process that is killed leaves nothing that is taken for data, and of two that race the second drops
its own copy. What is there is checked (`decoded.py`), and decoded again where it is damaged. The folder's
name is a hash of what decides the pixels: version of this file, source, rows, channels, resolution. Data too
large for the disk are read and checked in the same way, but decoded again on access. What comes as pixels,
such as points of the plane, is taken as it is.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.writing import sync_to_disk, write_json, written
from trilemma.training.images.decoded import (
    ABOUT,
    DIGESTS,
    PIXELS,
    Decoded,
    all_digests,
    digest,
    open_decoded,
)
from trilemma.training.images.pixels import (
    GREY_MODES,
    SEVERAL,
    VERSION,
    brightest_of_16_bits,
    open_picture,
    raw_mode,
    to_pixels,
)
from trilemma.training.images.sources import Source
from trilemma.training.progress import Progress

logger = logging.getLogger(__name__)

MAX_CACHED_BYTES = 64 * 2**30
CHUNK_BYTES = 16 * 2**20
THREADS_FROM_PIXELS = 128 * 128  # smaller pictures are mostly Python's work, where threads do not help
STALE_SECONDS = 7 * 24 * 3600
TWELVE_BITS = 4095
"""Of 65,535: 16-bit data that stay below hold values of 12 bits or fewer."""


def decode_once(source: Source, channels: int | None, resolution: int | None, cache: Path) -> Decoded:
    """All images at this number of channels and resolution (None: the images' own), from the cache if there.

    Several processes may call this at once, but each would decode: let one a machine go first.
    """
    if source.pixels is not None:
        pixels = source.pixels[source.rows]
        return Decoded(pixels, np.stack([digest(image) for image in pixels]), {})
    rows = hashlib.sha256(source.rows.astype("<i8").tobytes()).hexdigest()
    key = json.dumps([VERSION, source.key, source.split, rows, channels, resolution])
    name = re.sub(r"\W+", "-", f"{source.name[-30:]}-{source.split}")[:40]
    folder = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    if folder.is_dir():
        try:
            decoded, about = open_decoded(folder, source.read, source.rows)
        except (FileError, OSError) as fault:
            logger.warning("%s; the images are decoded again", fault)
            _set_aside(folder)
    if not folder.is_dir():
        _write(folder, source, channels, resolution)
        decoded, about = open_decoded(folder, source.read, source.rows)
    _warn_of_unused(about)
    return decoded


def _set_aside(folder: Path) -> None:
    """Delete a folder of the cache that another process may be making again meanwhile."""
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
    with suppress(FileNotFoundError):
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, source: Source, channels: int | None, resolution: int | None) -> None:
    with _naming(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f"{folder.name}.*.part"):
            if left.stat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
        aside.mkdir()
    try:
        _decode_all(aside, source, channels, resolution)
        try:
            os.replace(aside, folder)
        except OSError:  # another process was faster; a folder with content is never replaced
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _naming(cache: Path) -> Iterator[None]:
    """An OSError inside the block becomes one that names the cache and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the cache of decoded images, {cache}, cannot be written: {error}; free some space, or choose "
            "another place with --cache_dir or the environment variable TRILEMMA_CACHE"
        ) from error


def _decode_all(aside: Path, source: Source, channels: int | None, resolution: int | None) -> None:
    """Read every image; write the pixels where there is room, the digests, and which images are bad."""
    count = len(source.rows)
    shape, threads = look(source, channels, resolution)
    size = int(np.prod(shape))
    path = aside / PIXELS if _fits(count * size, aside) else None
    digests, notes = np.zeros((count, 32), np.uint8), _Notes()
    if path:
        path.touch()

    def decode(start: int) -> int:
        rows = source.rows[start : start + chunk]
        pixels = np.zeros((len(rows), *shape), np.uint8)
        for index, (row, encoded) in enumerate(zip(rows, source.read(rows), strict=True)):
            where = _where(row, encoded)
            try:
                image, problem = _read(encoded, where, (shape, channels, resolution), notes)
                if not problem:
                    pixels[index] = to_pixels(image, *shape[:2])
            except Exception as error:  # a damaged file can make a decoder raise anything
                notes.bad[start + index] = f"{where}: {error}"
                continue
            if problem:
                raise ValueError(f"{source.name}, split '{source.split}', {where} {problem}")
            digests[start + index] = digest(pixels[index])
        if path:  # not through a memory map, where a full disk would kill the process
            with _naming(aside.parent), path.open("r+b") as file:
                file.seek(start * size)
                file.write(pixels)
        return len(rows)

    chunk = max(1, min(256, CHUNK_BYTES // size))
    what = f"{'Decoding' if path else 'Checking'} {source.name} ({source.split})"
    with ThreadPoolExecutor(threads) as pool, Progress(what, count, "image") as progress:
        for done in pool.map(decode, range(0, count, chunk)):
            progress.update(done)
    about = {"source": source.name, "split": source.split, "shape": [count, *shape], **notes.as_json()}
    about |= {"stored": path is not None, "digests": all_digests(digests)}
    with _naming(aside.parent):
        if path:
            sync_to_disk(path)
        with written(aside / DIGESTS) as file:
            np.save(file, digests)
        write_json(aside / ABOUT, about)


class _Notes:
    """What decoding notices; several threads add to it."""

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        self.brightest: list[tuple[int, str]] = []  # of 16 bits, and where
        self.several: list[str] = []

    def as_json(self) -> dict[str, Any]:
        brightest, where = max(self.brightest, default=(None, ""))
        return {
            "bad": dict(sorted(self.bad.items())),
            "brightest": brightest,
            "brightest_in": where,
            "several": [len(self.several), *sorted(self.several)[:1]],
        }


def _read(
    encoded: Image.Image | dict | None, where: str, sizes: tuple, notes: _Notes
) -> tuple[Image.Image, str]:
    """A picture, loaded, and how it differs from the others, or ''."""
    image = open_picture(encoded)
    stored = raw_mode(image)
    if image.format in SEVERAL and image.is_animated:
        notes.several.append(where)
    image.load()
    brightest = brightest_of_16_bits(image, stored)
    if brightest is not None:
        notes.brightest.append((brightest, where))
    return image, mismatch(image, *sizes)


def _warn_of_unused(about: dict[str, Any]) -> None:
    """Say what of the pictures the pixels do not show."""
    place = f"{about['source']}, split '{about['split']}'"
    if about["brightest"] is not None and about["brightest"] <= TWELVE_BITS:
        logger.warning(
            "%s: the brightest 16-bit pixel is %d of 65535 (%s), so these images come out nearly black. If "
            "they hold 12-bit data, multiply the pixels by 16 and save them again",
            place, about["brightest"], about.get("brightest_in") or "in a file that is not known",
        )  # fmt: skip
    count, *example = about["several"]
    if count:
        logger.warning(
            "%s: of files that hold several pictures, such as %s (%d in all), only the first is used",
            place, example[0], count,
        )  # fmt: skip


def look(source: Source, channels: int | None, resolution: int | None) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) of the model's images, their own where not given, and the number of threads."""
    # 64 images from all over tell what is usual; one that differs is found when all are decoded.
    rows = source.rows[np.unique(np.linspace(0, len(source.rows) - 1, 64).astype(np.int64))]
    images, example, problem = [], {}, ""
    for row, encoded in zip(rows, source.read(rows), strict=True):
        try:
            images.append(ImageOps.exif_transpose(open_picture(encoded)))
            example.setdefault(images[-1].size, _where(row, encoded))
        except Exception as error:  # reported with all the others later, unless there is nothing else
            problem = f"{_where(row, encoded)}: {error}"
    if not images:
        raise ValueError(
            f"{source.name}: none of the {len(rows)} images looked at can be read, such as {problem}"
        )
    channels = channels or (1 if all(image.mode in GREY_MODES for image in images) else 3)
    sizes = sorted(example)
    if resolution is None and (len(sizes) > 1 or sizes[0][0] != sizes[0][1]):
        shown = ", ".join(f"{w}x{h}, such as {example[w, h]}" for w, h in sizes[:5])
        raise ValueError(
            f"the images of {source.name} are not squares of one size (found {shown}); pass --resolution to "
            "resize and crop them"
        )
    resolution = resolution or sizes[0][0]
    large = np.median([image.width * image.height for image in images]) >= THREADS_FROM_PIXELS
    return (channels, resolution, resolution), min(8, os.cpu_count() or 1) if large else 1


def mismatch(
    image: Image.Image, shape: tuple[int, int, int], channels: int | None, resolution: int | None
) -> str:
    """How a picture differs from the others where their own size or channels were to be used, or ''."""
    if resolution is None and set(image.size) != {shape[1]}:
        size = f"{image.width}x{image.height} and others are {shape[1]}x{shape[1]}"
        return f"is {size}; pass --resolution to resize and crop them"
    if channels is None and shape[0] == 1 and image.mode not in GREY_MODES:
        return "is in colour and others are grey; pass --channels 3 or --channels 1"
    return ""


def _fits(size: int, folder: Path) -> bool:
    free = shutil.disk_usage(folder).free
    if size <= MAX_CACHED_BYTES and size <= free / 2:
        return True
    logger.warning(
        "the decoded images take %.1f GiB, too much for the cache (limit %.0f GiB, and half of the %.1f GiB "
        "that are free); they will be decoded as they are read: raise --dataloader_num_workers",
        *(value / 2**30 for value in (size, MAX_CACHED_BYTES, free)),
    )
    return False


def _where(row: int, encoded: Image.Image | dict | None) -> str:
    path = encoded["path"] if isinstance(encoded, dict) else None
    return f"row {row} ({path})" if path else f"row {row}"
