"""Images for training and evaluation: uint8 on disk and in metrics, float32 in [-1, 1] in training.

`load_images` gives the images of a split (`sources.py` chooses the rows, `decode.py` decodes each picture),
decoded once and memory-mapped; `batches.py` streams them for training.

The fingerprint of a set of images is the sha256 of its size, of the sha256 of each image's pixels and of the
labels. It depends only on what a model sees, so it is the same on every machine, and statistics of other data
can be refused.
"""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.training.images.columns import warn_of_empty_classes
from trilemma.training.images.decode import decode_once
from trilemma.training.images.decoded import MemoryMap, Stream, digest
from trilemma.training.images.pixels import in_words
from trilemma.training.images.shards.source import open_images
from trilemma.training.images.sources import Source
from trilemma.training.options.groups import DataConfig

logger = logging.getLogger(__name__)

SHOWN_BAD_IMAGES = 20
HELD_OUT = 2
"""First word of the seed of `hold_out`; `batches.py` has others, so that no two uses share a stream."""


def to_float(pixels: Tensor) -> Tensor:
    """uint8 (...) -> float32 (...) in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float (...) in [0, 1] -> uint8 (...), rounded to nearest; what lies outside is clipped."""
    return (images.to(torch.float32).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Images:
    """A map-style data set that torch's `DataLoader` reads by the batch, through `__getitems__`."""

    pixels: MemoryMap | Stream | np.ndarray  # (M, C, H, W) uint8, of which `rows` are used
    digests: np.ndarray  # (M, 32) uint8, sha256 of each image's pixels
    rows: np.ndarray  # (N,) int64
    labels: np.ndarray | None  # (N,) int64 in 0..K-1
    class_names: tuple[str, ...] | None  # K names
    name: str
    split: str
    skipped: int = 0  # bad images that were left out of the split
    whole: bool = True  # whether these are all images of the split
    part_of: str | None = None  # fingerprint of the images that were loaded, if these are a part of them
    points: bool = False  # whether they are points of the plane, images of one pixel
    options: Mapping[str, Any] | None = None  # with which `trilemma.load_images` read them; None for others

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        classes = None if self.labels is None else len(self.class_names or np.unique(self.labels))
        words = in_words(self.pixels.shape[1:], classes, self.points)
        return f"<{len(self):,} images of {self.name!r}, split {self.split!r}: {words}>"

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, C, H, W) and int64 labels (B,), or None where the data have none."""
        indices = np.asarray(indices, dtype=np.int64)
        pixels = torch.from_numpy(self.pixels[self.rows[indices]])
        return pixels, None if self.labels is None else torch.from_numpy(self.labels[indices])

    def different(self, count: int) -> list[int]:
        """Indices of `count` images that differ: of classes 0, 1, ... in turn; without labels, evenly spaced.

        Classes without images are left out; fewer indices where there are fewer images.
        """
        count = min(count, len(self))
        if self.labels is None:
            return [k * len(self) // count for k in range(count)]
        kinds = np.unique(self.labels)[:count]
        turns = zip_longest(*(np.flatnonzero(self.labels == kind)[:count].tolist() for kind in kinds))
        # The first of each class, then the second of each, and so on.
        return [index for turn in turns for index in turn if index is not None][:count]

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def resolution(self) -> int:
        return self.pixels.shape[2]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the images and labels, in order; see the top of this file."""
        digest = hashlib.sha256(f"{self.channels}x{self.resolution}x{self.resolution}".encode())
        digest.update(self.digests[self.rows].tobytes())
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def split_fingerprint(self) -> str:
        """The fingerprint of the images that were loaded: the same for every part of them."""
        return self.part_of or self.fingerprint

    def require_class_names(self) -> tuple[str, ...]:
        """K names, the numbers where the data have none; ValueError for data without labels."""
        if self.labels is None:
            raise ValueError(
                f"{self.name} has no labels, and this model is trained on them: name their column with "
                "--label_column, use class folders, or train without classes"
            )
        return self.class_names or tuple(str(k) for k in range(int(self.labels.max()) + 1))

    def subset(self, indices: Sequence[int]) -> "Images":
        """These images only, in this order; class names and numbers stay."""
        indices = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[indices]
        return replace(
            self,
            rows=self.rows[indices],
            labels=labels,
            whole=False,
            part_of=self.split_fingerprint,
            options=None,
        )


def cache_folder(cache_dir: str | None) -> Path:
    """`--cache_dir`, else $TRILEMMA_CACHE, else ~/.cache/trilemma."""
    return Path(cache_dir or os.environ.get("TRILEMMA_CACHE") or "~/.cache/trilemma").expanduser()


def load_images(config: DataConfig, split: str | None = None) -> Images:
    """The images of a split (the training split if None), with the size and classes of the flags; of a stream
    the first ones.

    Decodes on its first call, so under several processes let the local main process call it first.
    """
    source = open_images(config, split or config.train_split)
    cache = cache_folder(config.cache_dir) / "images"
    decoded = decode_once(source, config.channels, config.resolution, cache)
    if decoded.bad:
        _report_bad(decoded.bad, source, config.skip_bad_images)
    rows = np.setdiff1d(np.arange(len(source.rows)), list(decoded.bad))
    labels = source.take(rows).labels
    warn_of_empty_classes(labels, source.class_names, source.name, f"split '{source.split}'")
    return Images(
        pixels=decoded.pixels,
        digests=decoded.digests,
        rows=rows,
        labels=labels,
        class_names=source.class_names,
        name=source.name,
        split=source.split,
        skipped=len(decoded.bad),
        whole=not (decoded.bad or config.classes or config.max_train_images or config.streaming),
        points=source.points,
    )


def images_of(
    pixels: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] | None, name: str
) -> Images:
    """Images in memory, all of their split: pixels uint8 (N, C, H, H), C 1 or 3; labels integers (N,) in
    0..K-1, or None; K class names, or None for the numbers. ValueError for others.
    """
    shape = pixels.shape
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or shape[1] not in (1, 3) or shape[2] != shape[3]:
        raise ValueError(
            f"images must be uint8 (N, C, H, H), square and with 1 or 3 channels; got {pixels.dtype} {shape}"
        )
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
            raise ValueError(f"labels must be {shape[0]} integers; got {labels.dtype} {labels.shape}")
        count = len(class_names) if class_names is not None else int(labels.max(initial=0)) + 1
        if len(labels) and not 0 <= labels.min() <= labels.max() < count:
            raise ValueError(f"labels must be in 0..{count - 1}; got {labels.min()}..{labels.max()}")
        class_names = tuple(map(str, range(count) if class_names is None else class_names))
    elif class_names is not None:
        raise ValueError("class_names are the names of labels, and there are no labels")
    if not len(pixels):
        raise ValueError("there are no images")
    labels = labels if labels is None else labels.astype(np.int64)
    pixels = np.ascontiguousarray(pixels)
    digests = np.stack([digest(image) for image in pixels])
    return Images(pixels, digests, np.arange(len(pixels)), labels, class_names, name, "train")


def _report_bad(bad: dict[int, str], source: Source, skip: bool) -> None:
    count = len(source.rows)
    shown = "\n  ".join(list(bad.values())[:SHOWN_BAD_IMAGES])
    more = f"\n  and {len(bad) - SHOWN_BAD_IMAGES} more" if len(bad) > SHOWN_BAD_IMAGES else ""
    where = f"{source.name}, split '{source.split}'"
    problem = f"{len(bad)} of {count} images of {where}, cannot be read:\n  {shown}{more}"
    if not skip:
        raise ValueError(f"{problem}\nRepair or delete them, or pass --skip_bad_images to leave them out.")
    if len(bad) == count:
        raise ValueError(f"{problem}\nNothing is left to train on.")
    logger.warning("%s\nThey are left out (--skip_bad_images).", problem)


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """(the rest, `count` images drawn at random): the split that validation uses; a function of (count,
    seed).
    """
    if len(images) < 2:
        raise ValueError(f"--validation_size needs 2 images or more; {images.name} has {len(images)}")
    if not 0 < count < len(images):
        raise ValueError(
            f"--validation_size must be in 1..{len(images) - 1} with {len(images)} images; got {count}"
        )
    order = np.random.default_rng([HELD_OUT, seed]).permutation(len(images))
    rest, held_out = images.subset(np.sort(order[count:])), images.subset(np.sort(order[:count]))
    warn_of_empty_classes(rest.labels, rest.class_names, rest.name, "left by --validation_size")
    return rest, held_out
