"""The recipe for pictures of one's own: what `--minutes` chooses, from the data and a few timed steps.

The network is the largest of those for the size of the images that still sees ENOUGH images in the time; if
none does, the smallest. Batch, learning rate and averaging follow from the network and the number of steps.
docs/recipes.md has the measurements behind the numbers.
"""

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trilemma.training.devices.ranks import decided
from trilemma.training.images.image_set import Images, to_float
from trilemma.training.loop.method import Method
from trilemma.training.networks.rows import NETS
from trilemma.training.output_folder import OutputFolder

ENOUGH = 60_000
"""Images that a network must see before shapes are clear: what three sets of small pictures needed."""

CANDIDATES = {
    8: ("unet_8",),
    32: ("unet_28_small", "unet_28", "unet_16", "unet_cifar10"),
    64: ("unet_64_small", "unet_64"),
}
"""Largest side of the images -> networks for them, the cheapest first; above the last, `unet_128`."""

RATES = ((1_000_000, 2e-3), (5_000_000, 1e-3))
"""Networks of at most this many parameters, and their learning rate; LARGE_RATE for larger ones."""
LARGE_RATE = 2e-4

BATCH = 32
TIMED, UNTIMED = 20, 3
"""Optimizer steps that are timed for each network, the median of which counts, and steps before them."""
SHARE = 0.85
"""Of the minutes, the share for optimizer steps; the rest goes to validation, checkpoints and samples."""


class Timed(NamedTuple):
    """A network: its parameters, and the seconds that one optimizer step of BATCH images a process takes."""

    name: str
    parameters: int
    seconds: float


def candidates(side: int) -> tuple[str, ...]:
    """Networks for images of this side, the cheapest first; only those whose levels can halve it."""
    row = next((names for largest, names in CANDIDATES.items() if side <= largest), ("unet_128",))
    fitting = tuple(name for name in row if side % 2 ** (len(NETS[name]["block_out_channels"]) - 1) == 0)
    return fitting or row[:1]  # building it says which sides it takes


def choose(timed: list[Timed], minutes: float, processes: int = 1) -> dict[str, Any]:
    """The options for a training of this many minutes, with one of the networks; the cheapest comes first."""
    seconds = 60 * minutes * SHARE
    affordable = [one for one in timed if seconds / one.seconds * BATCH * processes >= ENOUGH]
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
    build: Callable[[Any, Images, Accelerator, int], Method],
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
        accelerator.print("The settings that --minutes chose for this run stay; for others, start a new one.")
    else:
        timed = time_networks(config, given, images, accelerator, build)
        chosen = choose(timed, minutes, accelerator.num_processes)
    chosen = {name: value for name, value in chosen.items() if name not in given}
    if "model_config_name_or_path" in given or "init_from" in given:
        chosen.pop("net", None)
    if "num_epochs" in given:
        chosen.pop("max_train_steps", None)
    config = with_options(config, chosen | {"minutes": None})
    if not before:
        _say(config, timed, minutes, images, accelerator)
    return config


def with_options(config: Any, values: dict[str, Any]) -> Any:
    """The configuration with these options, each in its group."""
    groups = {}
    for name in config.__dataclass_fields__:
        group = getattr(config, name)
        own = {key: value for key, value in values.items() if key in group.__dataclass_fields__}
        groups[name] = replace(group, **own)
    return replace(config, **groups)


def time_networks(
    config: Any,
    given: Collection[str],
    images: Images,
    accelerator: Accelerator,
    build: Callable[[Any, Images, Accelerator, int], Method],
) -> list[Timed]:
    """Time the networks for these images, the cheapest first, until one is too slow; collective."""
    fixed = config.net.net or config.net.model_config_name_or_path or config.run.init_from
    names = (config.net.net,) if fixed else candidates(images.resolution)
    timed: list[Timed] = []
    for name in names:
        accelerator.print(f"Timing {name or 'the network'} ...", flush=True)
        small = {"net": name, "train_batch_size": BATCH, "gradient_accumulation_steps": 1}
        trial = with_options(config, small)
        method = build(trial, images, accelerator, TIMED)
        seconds = max(gather_object([_step_seconds(method, images, accelerator.device)]))
        parameters = sum(p.numel() for p in method.net.parameters())
        timed.append(Timed(name, parameters, seconds))
        left = 60 * config.own.minutes * SHARE / seconds * BATCH * accelerator.num_processes
        if left < ENOUGH:
            break
    return timed


def _step_seconds(method: Method, images: Images, device: torch.device) -> float:
    x0, labels = images.__getitems__([i % len(images) for i in range(BATCH)])
    x0, labels = to_float(x0).to(device), None if labels is None else labels.to(device)
    seconds = []
    for _ in range(UNTIMED + TIMED):
        began = time.perf_counter()
        float(method.step(x0, labels)["loss"].sum())  # waits for the device
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[UNTIMED:])


def _say(config: Any, timed: list[Timed], minutes: float, images: Images, accelerator: Accelerator) -> None:
    optim, steps = config.optim, config.run.max_train_steps
    seconds = {one.name: one.seconds for one in timed}.get(config.net.net, timed[-1].seconds)
    seen = (steps or 0) * optim.train_batch_size * accelerator.num_processes
    accelerator.print(
        f"Chosen for {minutes:g} minutes: --net {config.net.net or 'as given'} --max_train_steps {steps} "
        f"--train_batch_size {optim.train_batch_size} --learning_rate {optim.learning_rate:g} "
        f"--ema_max_decay {config.ema.ema_max_decay:g}; {seen:,} images, {seen / len(images):.0f} passes "
        f"over the data, at {1000 * seconds:.0f} ms a step of {BATCH}"
    )
    if seen < ENOUGH:
        accelerator.print(
            f"That is less than the {ENOUGH:,} images after which shapes are usually clear: give more "
            "--minutes, or a smaller --resolution."
        )
