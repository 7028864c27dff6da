"""The batches of a stream: which shards a process reads, in which order, and where a resumed run goes on.

In each epoch the shards are permuted, a function of (seed, epoch), and dealt to the processes in turn: every
image is on exactly one process. A process reads its shards one after the other, and shuffles each
`--shuffle_buffer` consecutive images of its epoch, a function of their place. Processes with fewer images
begin their next epoch earlier. So the batches of a process are a function of (seed, rank, world), and its
`Place` in them is four numbers, which a checkpoint holds: a resumed run skips the rows before its block in
one shard, reads that block again, and gives the same batches as one that was not stopped.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from trilemma.training.images.batches import Order, leave_group, on_device
from trilemma.training.images.decode import mismatch
from trilemma.training.images.image_set import Images
from trilemma.training.images.pixels import open_picture, to_pixels
from trilemma.training.images.shards.source import encoded, open_shards
from trilemma.training.images.tables import innermost
from trilemma.training.options.groups import DataConfig

logger = logging.getLogger(__name__)

SHARDS, BLOCK = 3, 4
"""First word of a seed, by what it is for; `image_set.py` and `batches.py` of `images/` have others."""

MOST_BAD = 1000
"""Images in a row that cannot be read after which a stream ends, also with --skip_bad_images."""

Example = dict[str, Any]


@dataclass
class Place:
    """Where a process is in its stream: the block that it reads, by its first row, and what is used of it.

    shard: a number of its shards of this epoch. row: of this shard. used: rows of the shuffled block.
    """

    epoch: int = 0
    shard: int = 0
    row: int = 0
    used: int = 0

    def state(self) -> list[int]:
        """Four numbers, for a checkpoint."""
        return list(astuple(self))

    def go_to(self, state: Iterable[int]) -> None:
        """Continue from a `state`; ValueError for anything else."""
        numbers = [int(number) for number in state]
        if len(numbers) != 4 or min(numbers) < 0:
            raise ValueError(f"{numbers} is not a position in a stream")
        self.epoch, self.shard, self.row, self.used = numbers


def shard_batches(
    config: DataConfig, images: Images, order: Order, place: Place, device: torch.device
) -> Callable[[int], Iterator[tuple[Tensor, Tensor | None]]]:
    """A function of k: endless (x0 float32 (B, C, H, W) in [-1, 1], labels int64 (B,) or None) on the device.

    images: the head of the stream, which says size, channels and classes. The batches go on at `place`, which
    follows them; k, the number of the first micro-batch, decides which images are flipped. ValueError for
    data with fewer shards than processes.
    """
    reader = ShardReader(config, images, order, place)

    def stream(k: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        loader = torch.utils.data.DataLoader(
            reader,
            batch_size=None,
            num_workers=min(config.dataloader_num_workers, 1),
            worker_init_fn=leave_group,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # or the loader draws from torch's own
        )
        start = Order(order.batch_size, order.seed, order.rank, order.world, k)
        return on_device(_following(loader, place), device, start, config.random_flip)

    return stream


def _following(loader: Iterable, place: Place) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of a loader; `place` is always behind the last one that was given."""
    for item in loader:
        if isinstance(item, Exception):
            raise item
        pixels, labels, state = item
        place.go_to(state)
        yield pixels, labels


class ShardReader(torch.utils.data.IterableDataset):
    """Micro-batches of one process from its `place` on: (uint8 (B, C, H, W), labels or None, place after it).

    An error is the last item, so that it reaches the trainer as it is from a process that reads.
    """

    def __init__(self, config: DataConfig, images: Images, order: Order, place: Place):
        self.config, self.order, self.place = config, order, place
        self.bad = self.in_a_row = 0
        self.shape = (images.channels, images.resolution, images.resolution)
        self.classes = None if images.labels is None else len(images.require_class_names())
        self.shards = open_shards(config, images.split)
        if self.shards.count < order.world:
            raise ValueError(
                f"--streaming needs at least one shard for each process: {self.shards.name}, split "
                f"'{self.shards.split}', has {self.shards.count}, and there are {order.world} processes; "
                "start fewer, or write the data into more files"
            )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, list[int]] | Exception]:
        threads, closed = self.config.dataloader_num_workers, threading.Event()
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(max(threads, 1)) as decoders:
            try:
                rows = self._rows(reader, closed)
                yield from self._batches(rows, decoders.map if threads else map)
            except ValueError as problem:
                yield problem
            finally:
                closed.set()

    def _batches(self, rows: Iterator[tuple[list[int], Example]], decode_each: Callable) -> Iterator:
        size = self.order.batch_size
        while True:
            good: list[tuple[np.ndarray, int | None]] = []
            while len(good) < size:
                part = list(islice(rows, size - len(good)))
                for image in decode_each(self._decode, [example for _, example in part]):
                    good += self._without_bad(image)
            pixels = torch.from_numpy(np.stack([image for image, _ in good]))
            labels = None if self.classes is None else torch.tensor([label for _, label in good])
            yield pixels, labels, part[-1][0]

    def _without_bad(self, image: tuple[np.ndarray, int | None] | str) -> list[tuple[np.ndarray, int | None]]:
        """The image, or nothing and a warning for one that cannot be read."""
        if not isinstance(image, str):
            self.in_a_row = 0
            return [image]
        self.bad, self.in_a_row = self.bad + 1, self.in_a_row + 1
        if self.bad & (self.bad - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            logger.warning("%s; it is left out (--skip_bad_images), %d in this run", image, self.bad)
        if self.in_a_row >= MOST_BAD:
            raise ValueError(f"{image}; {MOST_BAD:,} images in a row could not be used")
        return []

    def _decode(self, example: Example) -> tuple[np.ndarray, int | None] | str:
        """Pixels and label of a row; what is wrong with a bad image that is skipped."""
        config, channels, side = self.config, self.shape[0], self.shape[1]
        image = example[self.shards.image]
        where = f"{self.shards.name}, split '{self.shards.split}', {(image and image['path']) or 'a row'}"
        try:
            encoded(image, self.shards.name)
            picture = ImageOps.exif_transpose(open_picture(image))
            pixels = to_pixels(picture, channels, side)
        except Exception as error:  # a damaged file can make a decoder raise anything
            if config.skip_bad_images:
                return f"{where}: {error}"
            raise ValueError(
                f"{where}: {error}; repair it, or pass --skip_bad_images to leave bad images out"
            ) from error
        if problem := mismatch(picture, self.shape, config.channels, config.resolution):
            raise ValueError(f"{where} {problem}")
        return pixels, self._label(example, where)

    def _label(self, example: Example, where: str) -> int | None:
        if self.classes is None:
            return None
        label = example[self.shards.label]
        if label is None or not 0 <= label < self.classes:
            raise ValueError(
                f"{where} has the label {label}, and the classes are 0..{self.classes - 1}; correct it, or "
                "pass --label_column none to ignore labels"
            )
        return label

    def _rows(self, reader: ThreadPoolExecutor, closed: threading.Event) -> Iterator[tuple[list, Example]]:
        """Endless (place after it, row); the next block is read while one is used."""
        blocks, used = self._blocks(closed), self.place.used
        ahead = reader.submit(next, blocks)
        while True:
            start, block = ahead.result()
            ahead = reader.submit(next, blocks)
            for number, example in enumerate(block[used:], used + 1):
                yield [*start, number], example
            used = 0

    def _blocks(self, closed: threading.Event) -> Iterator[tuple[list[int], list[Example]]]:
        """Endless ([epoch, shard, row] of the first row of a block, its rows shuffled), from the place on."""
        seed, rank = self.order.seed, self.order.rank
        for epoch in count(self.place.epoch):
            start = [epoch, self.place.shard, self.place.row] if epoch == self.place.epoch else [epoch, 0, 0]
            rows = self._epoch(*start, closed)
            block = list(islice(rows, self.config.shuffle_buffer))
            if not block and start[1:] == [0, 0]:
                raise ValueError(
                    f"the shards of process {rank} have no images in epoch {epoch}: {self.shards.name}, "
                    f"split '{self.shards.split}', has too many empty shards"
                )
            while block:
                order = np.random.default_rng([BLOCK, seed, rank, *start]).permutation(len(block))
                after = block[-1][0]
                yield start, [block[number][1] for number in order]
                start, block = after, list(islice(rows, self.config.shuffle_buffer))

    def _epoch(
        self, epoch: int, first: int, row: int, closed: threading.Event
    ) -> Iterator[tuple[list[int], Example]]:
        """([epoch, shard, row] behind it, row) of an epoch, from a row of a shard on; none once `closed`."""
        total, order = self.shards.count, self.order
        dealt = np.random.default_rng([SHARDS, order.seed, epoch]).permutation(total)
        for shard, number in enumerate(dealt[order.rank :: order.world].tolist()):
            if shard >= first:
                try:
                    rows = islice(self.shards.rows.shard(total, number), row, None)
                    for after, example in enumerate(rows, row + 1):
                        if closed.is_set():
                            return
                        yield [epoch, shard, after], example
                except Exception as error:  # whatever the readers of `datasets` and the network raise
                    raise ValueError(
                        f"{self.shards.name} could not be read any further: {innermost(error)}; run the same "
                        "command again to go on from the last checkpoint"
                    ) from error
                row = 0
