"""Images for training and evaluation: uint8 on disk and in metrics, float32 in [-1, 1] in training.

`load_images` gives the images of a split (`sources.py` says which rows, `decode.py` what happens to each
picture), decoded once and memory-mapped. `batches` gives the endless stream that trains on them: every epoch
is a permutation drawn from (seed, epoch), the epochs are laid end to end, and global micro-batch k is the
slice [k * B * world, (k + 1) * B * world) of that stream, of which each rank takes its B. So no partial batch
is dropped, no image is seen twice in an epoch, one process with batch B * world sees what `world` processes
with batch B see, and training resumes at any k.

The fingerprint of a set of images is the sha256 of its size, of the sha256 of each image's pixels and of the
labels: it depends on what a model sees and on nothing else, so it is the same on every machine, and
statistics that were computed of a data set can be refused when the data are others.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trilemma.training.images.decode import MemoryMap, Stream, decode_once
from trilemma.training.images.sources import Source, open_source
from trilemma.training.options.groups import DataConfig

logger = logging.getLogger(__name__)

SHOWN_BAD_IMAGES = 20
# what randomness is for: first word of its seed, so that no two uses share a stream
ORDER, FLIP, HELD_OUT = 0, 1, 2


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

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, C, H, W) and int64 labels (B,), or None where the data have none."""
        indices = np.asarray(indices, dtype=np.int64)
        pixels = torch.from_numpy(self.pixels[self.rows[indices]])
        return pixels, None if self.labels is None else torch.from_numpy(self.labels[indices])

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
        """The fingerprint of the images that were loaded, before some were held out: the same for every part."""
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
            self, rows=self.rows[indices], labels=labels, whole=False, part_of=self.split_fingerprint
        )


def cache_folder(given: str | None) -> Path:
    """`--cache_dir`, else $TRILEMMA_CACHE, else ~/.cache/trilemma."""
    return Path(given or os.environ.get("TRILEMMA_CACHE") or "~/.cache/trilemma").expanduser()


def load_images(config: DataConfig, split: str | None = None) -> Images:
    """The images of a split (the training split if None) as the configuration wants them.

    Decodes on its first call, so under several processes let the local main process call it first.
    """
    source = open_source(config, split or config.train_split)
    cache = cache_folder(config.cache_dir) / "images"
    decoded = decode_once(source, config.channels, config.resolution, cache)
    if decoded.bad:
        _report_bad(decoded.bad, source, config.skip_bad_images)
    rows = np.setdiff1d(np.arange(len(source.rows)), list(decoded.bad))
    return Images(
        pixels=decoded.pixels,
        digests=decoded.digests,
        rows=rows,
        labels=source.take(rows).labels,
        class_names=source.class_names,
        name=source.name,
        split=source.split,
        skipped=len(decoded.bad),
        whole=not (decoded.bad or config.classes or config.max_train_images),
    )


def _report_bad(bad: dict[int, str], source: Source, skip: bool) -> None:
    count = len(source.rows)
    shown = "\n  ".join(list(bad.values())[:SHOWN_BAD_IMAGES])
    more = f"\n  and {len(bad) - SHOWN_BAD_IMAGES} more" if len(bad) > SHOWN_BAD_IMAGES else ""
    where = f"{source.name}, split '{source.split}'"
    found = f"{len(bad)} of {count} images of {where}, cannot be read:\n  {shown}{more}"
    if not skip:
        raise ValueError(f"{found}\nMend or delete them, or pass --skip_bad_images to leave them out.")
    if len(bad) == count:
        raise ValueError(f"{found}\nNothing is left to train on.")
    logger.warning("%s\nThey are left out (--skip_bad_images).", found)


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """(the rest, `count` images drawn at random): the split that validation uses; a function of (count,
    seed).
    """
    if not 0 < count < len(images):
        raise ValueError(
            f"--validation_size must be in 1..{len(images) - 1} with {len(images)} images; got {count}"
        )
    order = np.random.default_rng([HELD_OUT, seed]).permutation(len(images))
    return images.subset(np.sort(order[count:])), images.subset(np.sort(order[:count]))


def batches(
    images: Images,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    num_workers: int = 0,
    random_flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Endless (x0 float32 (B, C, H, W) in [-1, 1], labels int64 (B,) or None) on the device.

    The first is micro-batch `start`. Micro-batch k, flips included, is a function of (seed, k, rank, world)
    alone; torch's own generators are not touched.
    """
    if batch_size < 1:
        raise ValueError(f"--train_batch_size must be at least 1; got {batch_size}")
    if not len(images):
        raise ValueError(f"there are no images to train on in {images.name}, split '{images.split}'")
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in 0..{world - 1}; got {rank}")
    device = torch.device(device)
    loader = torch.utils.data.DataLoader(
        images,
        batch_sampler=_MicroBatches(len(images), batch_size, seed, rank, world, start),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        # A stop signal to the process group is for the trainer, which then ends its readers.
        worker_init_fn=_leave_group,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        # or the loader draws from torch's own, and a resumed run draws once more than an uncut one
        generator=torch.Generator(),
    )
    return _on_device(loader, device, (seed, rank, start), random_flip)


def _on_device(loader, device: torch.device, key: tuple[int, int, int], random_flip: bool):
    seed, rank, start = key
    for k, (pixels, labels) in enumerate(loader, start):
        pixels = pixels.to(device, non_blocking=True)
        if random_flip:
            flipped = np.random.default_rng([FLIP, seed, k, rank]).random(len(pixels)) < 0.5
            mask = torch.from_numpy(flipped).to(device, non_blocking=True)
            pixels = torch.where(mask[:, None, None, None], pixels.flip(-1), pixels)
        yield to_float(pixels), None if labels is None else labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class _MicroBatches:
    """A rank's lists of indices, one a micro-batch, from micro-batch `start` on."""

    count: int
    batch_size: int
    seed: int
    rank: int
    world: int
    start: int

    def __iter__(self) -> Iterator[list[int]]:
        # in the stream of epochs laid end to end
        position = (self.start * self.world + self.rank) * self.batch_size
        while True:
            epochs, places = np.divmod(np.arange(position, position + self.batch_size), self.count)
            parts = [_epoch(self.count, self.seed, int(e))[places[epochs == e]] for e in np.unique(epochs)]
            yield np.concatenate(parts).tolist()
            position += self.world * self.batch_size


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([ORDER, seed, epoch]).permutation(count)


def _leave_group(worker: int) -> None:
    os.setpgrp()


def _as_it_is(batch):
    return batch
