"""The endless stream of batches that a model trains on.

Every epoch is a permutation drawn from (seed, epoch), the epochs are laid end to end, and global micro-batch
k is the slice [k * B * world, (k + 1) * B * world) of that stream, of which each rank takes its B. So no
partial batch is dropped, no image is seen twice in an epoch, one process with batch B * world sees what
`world` processes with batch B see, and training resumes at any k.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trilemma.training.images.image_set import Images, to_float

ORDER, FLIP = 0, 1
"""First word of a seed, by what it is for; `image_set.py` has another one."""

RESIDENT = 0.1
"""Share of a GPU's free memory that the images may take there."""
AT_ONCE = 4096
"""Images that are sent there at once, before the training."""


@dataclass(frozen=True)
class Order:
    """Which images a rank sees: micro-batches of `batch_size` from the `start`-th on."""

    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    start: int = 0

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"--train_batch_size must be at least 1; got {self.batch_size}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be in 0..{self.world - 1}; got {self.rank}")


def batches(
    images: Images,
    order: Order,
    *,
    device: torch.device | str,
    num_workers: int = 0,
    random_flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Endless (x0 float32 (B, C, H, W) in [-1, 1], labels int64 (B,) or None) on the device.

    The first is micro-batch `order.start`. Micro-batch k, flips included, is a function of (seed, k, rank,
    world) alone; torch's own generators are not touched.
    """
    if not len(images):
        raise ValueError(f"there are no images to train on in {images.name}, split '{images.split}'")
    device = torch.device(device)
    if fits(images, device):
        return on_device(_resident(images, order, device), device, order, random_flip)
    loader = torch.utils.data.DataLoader(
        images,
        batch_sampler=_MicroBatches(len(images), order),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        # A stop signal to the process group is for the trainer, which then ends its readers.
        worker_init_fn=leave_group,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        # or the loader draws from torch's own, and a resumed run draws once more than an uncut one
        generator=torch.Generator(),
    )
    return on_device(loader, device, order, random_flip)


def fits(images: Images, device: torch.device) -> bool:
    """Whether a GPU holds the images, as bytes, beside all else; elsewhere nothing is gained."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(images) * math.prod(images.pixels.shape[1:]) <= RESIDENT * free


def _resident(images: Images, order: Order, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The micro-batches of `order` as uint8, gathered on the device: only their numbers are sent."""
    count = len(images)
    pixels = torch.empty((count, *images.pixels.shape[1:]), dtype=torch.uint8, device=device)
    labels = None if images.labels is None else torch.from_numpy(images.labels).to(device)
    for start in range(0, count, AT_ONCE):
        part, _ = images.__getitems__(range(start, min(start + AT_ONCE, count)))
        pixels[start : start + len(part)] = part.to(device)
    for numbers in _MicroBatches(count, order):
        rows = torch.tensor(numbers, pin_memory=device.type == "cuda" and torch.cuda.is_available())
        rows = rows.to(device, non_blocking=True)
        yield pixels[rows], None if labels is None else labels[rows]


def on_device(
    loader: Iterable[tuple[Tensor, Tensor | None]], device: torch.device, order: Order, random_flip: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Micro-batches of uint8 (B, C, H, W) and labels from `order.start` on, as `batches` gives them."""
    for k, (pixels, labels) in enumerate(loader, order.start):
        pixels = pixels.to(device, non_blocking=True)
        if random_flip:
            flipped = np.random.default_rng([FLIP, order.seed, k, order.rank]).random(len(pixels)) < 0.5
            mask = torch.from_numpy(flipped).to(device, non_blocking=True)
            pixels = torch.where(mask[:, None, None, None], pixels.flip(-1), pixels)
        yield to_float(pixels), None if labels is None else labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class _MicroBatches:
    """A rank's lists of indices, one a micro-batch, of `count` images."""

    count: int
    order: Order

    def __iter__(self) -> Iterator[list[int]]:
        size, seed, world = self.order.batch_size, self.order.seed, self.order.world
        # in the stream of epochs laid end to end
        position = (self.order.start * world + self.order.rank) * size
        while True:
            epochs, places = np.divmod(np.arange(position, position + size), self.count)
            parts = [_epoch(self.count, seed, int(e))[places[epochs == e]] for e in np.unique(epochs)]
            yield np.concatenate(parts).tolist()
            position += world * size


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([ORDER, seed, epoch]).permutation(count)


def leave_group(worker: int) -> None:
    """What a process that reads does first: a stop signal to the group is for the trainer alone."""
    leave = getattr(os, "setpgrp", None)  # Windows has no process groups
    if leave:
        leave()


def _as_it_is(batch):
    return batch
