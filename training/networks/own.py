"""The recipe for pictures of one's own: what `--minutes` chooses, from the data and a few timed steps.

The network is the largest of those for the size of the images that still sees ENOUGH images in the time; if
none does, the smallest. Batch, learning rate and averaging follow from the network and the number of steps.
docs/recipes.md has what was measured.
"""

import math
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trilemma.training.devices.ranks import decided
from trilemma.training.images.image_set import Images, to_float
from trilemma.training.loop.learning_rate import WITH_WARMUP
from trilemma.training.loop.method import Method
from trilemma.training.networks.rows import candidates
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import Progress, in_minutes

ENOUGH = 60_000
"""Images that a network should see. A rule of thumb: 82,592 gave clear shapes of 16x16 pixels."""

NOISE = ENOUGH // 20
"""Fewer images give little but noise."""

RATES = ((1_000_000, 2e-3), (5_000_000, 1e-3))
"""Networks of at most this many parameters, and their learning rate; LARGE_RATE for larger ones."""
LARGE_RATE = 2e-4

BATCH = 32
"""Images of a process in a micro-batch."""
TIMED, UNTIMED = 20, 3
"""Micro-batches that are timed for each network, of which the median counts, and those before them."""
TIMING = 0.1
"""Of the minutes, the share after which no other network is timed, and fewer micro-batches are."""
SHARE = 0.85
"""Of the minutes that are left, the share for optimizer steps; the rest: validation, checkpoints, samples."""

Build = Callable[[Any, Images, Accelerator, int], Method]


class Timed(NamedTuple):
    """A network: its parameters, and the seconds that one optimizer step takes."""

    name: str
    parameters: int
    seconds: float


def choose(timed: list[Timed], minutes: float, per_step: int = BATCH) -> dict[str, Any]:
    """The options for a training of this many minutes, with one of the networks; the cheapest comes first.

    per_step: images that all processes see in one optimizer step.
    """
    seconds = 60 * minutes * SHARE
    affordable = [one for one in timed if seconds / one.seconds * per_step >= ENOUGH]
    best = affordable[-1] if affordable else timed[0]
    steps = max(1, round(seconds / best.seconds))
    rate = next((rate for most, rate in RATES if best.parameters <= most), LARGE_RATE)
    return {
        "net": best.name,
        "train_batch_size": BATCH,
        "max_train_steps": steps,
        "learning_rate": rate,
        "lr_warmup_steps": steps // 25,
        "ema_max_decay": round(min(0.9999, max(0.9, 1 - 5 / steps)), 6),
        "checkpointing_steps": max(20, steps // 10),
        "validation_steps": max(20, steps // 10),
    }


def complete(
    config: Any,
    given: Collection[str],
    images: Images,
    accelerator: Accelerator,
    folder: OutputFolder,
    build: Build,
) -> Any:
    """The configuration with what `--minutes` leaves to be chosen, and without `--minutes`; collective.

    given: flags that were typed, which stay. A run that is resumed keeps what was chosen for it.
    """
    minutes = config.own.minutes
    if minutes is None:
        return config
    before = decided(accelerator, lambda: folder.read_config() if folder.checkpoints.is_dir() else {})
    if before:
        chosen = {name: before[name] for name in choose([Timed("", 1, 1.0)], 1.0) if name in before}
        accelerator.print(
            "The settings that --minutes chose for this run stay. To train longer, use another "
            "--output_dir, from scratch or with --init_from this folder."
        )
    else:
        if "train_batch_size" not in given:
            config = with_options(config, {"train_batch_size": BATCH})
        per_step, began = images_per_step(config, accelerator), time.monotonic()
        timed = time_networks(config, images, accelerator, build)
        left = minutes - max(gather_object([time.monotonic() - began])) / 60
        chosen = choose(timed, left, per_step) | {"train_batch_size": config.optim.train_batch_size}
    chosen = {name: value for name, value in chosen.items() if name not in given}
    if "model_config_name_or_path" in given or "init_from" in given:
        chosen.pop("net", None)
    if "num_epochs" in given:
        chosen.pop("max_train_steps", None)
    if config.optim.lr_scheduler not in WITH_WARMUP:
        chosen.pop("lr_warmup_steps", None)
    config = with_options(config, chosen | {"minutes": None})
    if not before:
        say(config, minutes, images, accelerator)
    return config


def images_per_step(config: Any, accelerator: Accelerator) -> int:
    """Images of all processes in one optimizer step."""
    optim = config.optim
    return optim.train_batch_size * optim.gradient_accumulation_steps * accelerator.num_processes


def with_options(config: Any, values: dict[str, Any]) -> Any:
    """The configuration with these options, each in its group."""
    groups = {field.name: getattr(config, field.name) for field in fields(config)}
    for name, group in groups.items():
        own = {field.name for field in fields(group)} & values.keys()
        groups[name] = replace(group, **{key: values[key] for key in own})
    return replace(config, **groups)


def time_networks(config: Any, images: Images, accelerator: Accelerator, build: Build) -> list[Timed]:
    """Time the networks for these images, the cheapest first, until one is too slow; collective."""
    end = time.monotonic() + 60 * config.own.minutes * TIMING
    fixed = config.net.net or config.net.model_config_name_or_path or config.run.init_from
    names = (config.net.net,) if fixed else candidates(images.resolution, images.points)
    micro_batches, timed = config.optim.gradient_accumulation_steps, []
    for name in names:
        with Progress(f"timing {name or 'the network'}", show=accelerator.is_main_process):
            trial = with_options(config, {"net": name})
            method = build(trial, images, accelerator, TIMED)
            of_each = gather_object([_micro_batch_seconds(method, images, trial, accelerator.device, end)])
        parameters = sum(p.numel() for p in method.net.parameters())
        timed.append(Timed(name, parameters, max(of_each) * micro_batches))
        seen = 60 * config.own.minutes * SHARE / timed[-1].seconds * images_per_step(config, accelerator)
        if seen < ENOUGH or max(gather_object([time.monotonic() - end])) > 0:
            break
    return timed


def _micro_batch_seconds(
    method: Method, images: Images, config: Any, device: torch.device, end: float
) -> float:
    """Median of TIMED micro-batches after UNTIMED ones; fewer where `end` comes first, but one at least."""
    x0, labels = images.__getitems__([i % len(images) for i in range(config.optim.train_batch_size)])
    x0, labels = to_float(x0).to(device), None if labels is None else labels.to(device)
    seconds = []
    while not seconds or (len(seconds) < UNTIMED + TIMED and time.monotonic() < end):
        began = time.perf_counter()
        float(method.step(x0, labels)["loss"].sum())  # waits for the device
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[UNTIMED:] or seconds[-1:])


def say(config: Any, minutes: float, images: Images, accelerator: Accelerator) -> None:
    """Print what was chosen, and whether it is enough."""
    optim, epoch = config.optim, math.ceil(len(images) / images_per_step(config, accelerator))
    steps = config.run.max_train_steps or config.run.num_epochs * epoch
    seen = steps * images_per_step(config, accelerator)
    network = f"--net {config.net.net} " if config.net.net else ""
    accelerator.print(
        f"Chosen for {in_minutes(minutes)}: {network}--max_train_steps {steps} "
        f"--train_batch_size {optim.train_batch_size} --learning_rate {optim.learning_rate:g} "
        f"--ema_max_decay {config.ema.ema_max_decay:g}; {seen:,} images, "
        f"{seen / len(images):.3g} times the data. The minutes are those of training: loading "
        "libraries, reading the images and drawing the last pictures add to them. It takes longer if other "
        "programs use the processor."
    )
    if seen < ENOUGH and not config.run.init_from:
        accelerator.print(
            f"That is less than the {ENOUGH:,} images after which shapes are usually clear"
            f"{', and so few give little but noise' if seen < NOISE else ''}: give more "
            "--minutes, or a smaller --resolution."
        )
