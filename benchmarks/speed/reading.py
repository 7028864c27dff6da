"""A folder of PNGs: how long until every image was read once, and once more."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import torch
from datasets import disable_progress_bars, load_dataset

from speed.diffusers_example import enlarged, folder_of, transformed
from speed.harness import Case
from trilemma.training.images.batches import Order, batches
from trilemma.training.images.image_set import Images, load_images
from trilemma.training.options.groups import DataConfig

GROUP = "reading a folder of PNGs"
BATCH, SIDE = 64, 64


def cases(full: bool, folder: Path) -> Iterator[Case]:
    """From a folder that neither has seen, and a later epoch."""
    pictures = folder_of(enlarged(SIDE, "RGB"), folder / "pictures")
    disable_progress_bars()
    numbers = count()

    def ours_opened() -> Images:
        cache = folder / f"ours{next(numbers)}"
        return load_images(DataConfig(train_data_dir=str(pictures), cache_dir=str(cache)))

    def theirs_opened() -> torch.utils.data.DataLoader:
        cache = folder / f"theirs{next(numbers)}"
        data = load_dataset("imagefolder", data_dir=str(pictures), split="train", cache_dir=str(cache))
        return torch.utils.data.DataLoader(transformed(data, SIDE, "RGB"), batch_size=BATCH, shuffle=True)

    images, loader = ours_opened(), theirs_opened()
    title = f"{len(images):,} of {SIDE}x{SIDE} RGB"
    first: dict[str, Callable[[], object]] = {
        "load_dataset and its DataLoader": lambda: theirs_epoch(theirs_opened()),
        "ours": lambda: ours_epoch(ours_opened()),
    }
    later = {
        "load_dataset and its DataLoader": lambda: theirs_epoch(loader),
        "ours": lambda: ours_epoch(images),
    }
    yield Case(GROUP, f"{title}, opened and read once", first, 9 if full else 5, warm=1)
    yield Case(GROUP, f"{title}, a later epoch", later, 9 if full else 5, warm=1)


def ours_epoch(images: Images) -> None:
    """Read one epoch, in batches."""
    stream = batches(images, Order(BATCH, 0), device="cpu")
    for _ in range(-(-len(images) // BATCH)):
        next(stream)


def theirs_epoch(loader: torch.utils.data.DataLoader) -> None:
    """Read one epoch."""
    for _ in loader:
        pass
