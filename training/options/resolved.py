"""What `--dry_run` says beside the flags: what a run would find out from its data.

Local data are looked at, and no image is decoded for the cache; nothing is downloaded.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trilemma.training.loop.learning_rate import WITH_WARMUP, warmup_steps
from trilemma.training.networks.rows import NETS, check_side, network_name
from trilemma.training.options.flags import flatten, public_name
from trilemma.training.progress import in_minutes

if TYPE_CHECKING:
    from trilemma.training.options.flags import Config


class Found(NamedTuple):
    """What local data look like: images to train on, (C, H, W), names of the classes or None."""

    count: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    points: bool


def resolved(config: "Config", takes_classes: bool = False) -> Iterator[str]:
    """Lines about data, network and length of the run; ValueError for data that a run would refuse.

    takes_classes: whether it trains a class-conditional model.
    """
    found, unknown = look(config)
    data, optim, run = config.data, config.optim, config.run
    if found:
        from trilemma.training.images.pixels import in_words

        count = "a stream of images" if data.streaming else f"{found.count:,} images"
        looks = in_words(found.shape, found.classes and len(found.classes), found.points)
        yield f"data: {count} to train on, {looks}"
    else:
        yield f"data: images, size, channels and classes are not known: {unknown}"
    start = config.run.init_from
    if found and start and Path(start).is_dir() and not config.run.init_new_classes:
        from trilemma.training.networks.init_from import check_classes

        check_classes(start, found.classes if takes_classes else None)
    resolution, points = found.shape[1] if found else data.resolution, bool(found and found.points)
    name = network_name(flatten(config), resolution, points)
    if name:
        yield f"network: {name}"
    if found and name in NETS:
        check_side(resolution, len(NETS[name].get("block_out_channels", (1,))))
    if minutes := flatten(config).get("minutes"):
        yield f"batch, steps, rate and averaging: chosen for {in_minutes(minutes)} when the run starts"
        return
    world = int(os.environ.get("WORLD_SIZE", 1))
    images = optim.train_batch_size * optim.gradient_accumulation_steps * world
    processes = "1 process" if world == 1 else f"{world} processes"
    steps = run.max_train_steps or (found and run.num_epochs * math.ceil(found.count / images))
    if not steps:
        yield f"length: {run.num_epochs} epochs; the number of steps depends on the number of images"
        return
    epochs = f", {steps * images / found.count:.4g} epochs" if found and not data.streaming else ""
    yield f"length: {steps:,} steps of {images:,} images{epochs}, on {processes}"
    warmup = warmup_steps(optim, steps) if optim.lr_scheduler in WITH_WARMUP else 0
    after = f" after {warmup:,} steps" if warmup else ""
    yield f"learning rate: its peak is {optim.learning_rate:g}{after}"


def look(config: "Config") -> tuple[Found | None, str]:
    """What the data look like, or why that is not known."""
    from trilemma.training.images.decode import look as usual_shape
    from trilemma.training.images.points import SHAPE
    from trilemma.training.images.shards.source import open_images
    from trilemma.training.images.sources import EMBEDDED

    data = config.data
    name = data.dataset_name or ""
    if not (data.train_data_dir or name in ("", *EMBEDDED) or Path(name).is_dir()):
        return None, f"{public_name(name)} is a data set of the Hub, and a dry run downloads nothing"
    if data.train_data_dir and not Path(data.train_data_dir).exists():
        return None, f"--train_data_dir {data.train_data_dir!r} does not exist on this machine"
    source = open_images(data, data.train_split)
    shape = SHAPE if source.points else usual_shape(source, data.channels, data.resolution)[0]
    held_out = (data.validation_size or 0) if data.validation_split is None else 0
    classes = None
    if source.labels is not None:
        classes = source.class_names or tuple(map(str, sorted(set(source.labels.tolist()))))
    return Found(max(len(source.rows) - held_out, 1), tuple(shape), classes, source.points), ""
