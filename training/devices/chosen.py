"""Threads, precision, compiling and warm-up where the flags leave them open: by rules, the same each time.

They change the last bits of a training, so nothing here is timed, and a run that is resumed keeps what its
run.json and config.yaml say. docs/speed.md has the measurements behind the limits.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from trilemma.pipelines.files.reading import FileError
from trilemma.training.devices.ranks import decided
from trilemma.training.loop.learning_rate import warmup_remark, warmup_steps
from trilemma.training.loop.machine import set_cpu_threads
from trilemma.training.loop.method import Method
from trilemma.training.options.flags import Config
from trilemma.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

C, T = TypeVar("C", bound=Config), TypeVar("T")

ONE_THREAD = 5e9
"""Weights x pixels x images of a micro-batch, below which a training on a CPU has one thread."""
BFLOAT16 = 1.2e8
"""Weights x pixels of an image, from which on bf16 pays."""
COMPILED = 2.5e14
"""Weights x pixels x images of a process, from which on compiling pays on a CPU: hours of a small network."""


class Size(NamedTuple):
    """How much a run computes: weights x pixels of an image, and images of all steps and processes."""

    work_per_image: float
    images: int


def work(net: nn.Module, pixels: int) -> int:
    """Weights x pixels of an image: at most this many products in a forward pass without attention."""
    return sum(p.numel() for p in net.parameters()) * pixels


def threads_for(work_per_batch: int, share: int) -> int:
    """Threads of a process that has `share` cores; work_per_batch: of a micro-batch."""
    return 1 if work_per_batch < ONE_THREAD else share


def settle(
    config: C, accelerator: Accelerator, folder: OutputFolder, size: Size, faster: bool, method: Method
) -> C:
    """The configuration with its precision, and whether the network is compiled; accelerator and method then
    have them, and this process its threads.

    faster: whether the family lets a run choose bf16, and to compile. Collective.
    """
    before = decided(accelerator, lambda: hardware_before(folder))
    lines = []
    if config.run.mixed_precision is None and accelerator.mixed_precision == "no":
        able = all(gather_object([has_bf16(accelerator.device)]))
        pays = faster and able and size.work_per_image >= BFLOAT16
        if before.get("mixed_precision") == "bf16" if before else pays:
            use_bf16(accelerator)
            lines.append("precision bf16, where this network trains faster (--mixed_precision no: float32)")
    share = torch.get_num_threads()
    if accelerator.device.type == "cpu" and not config.run.cpu_threads and share > 1:
        threads = before.get("threads", share)
        if not before:
            threads = threads_for(size.work_per_image * config.optim.train_batch_size, share)
        torch.set_num_threads(max(1, min(share, threads)))
        lines.append(
            f"one thread, to which others add little here (--cpu_threads {share}: all of them)"
            if threads == 1
            else f"{threads} threads (--cpu_threads 1: one, where other programs use the processor)"
        )
    asked = compiles = config.run.compile
    if kept := decided(accelerator, lambda: options_before(folder)):
        if asked is None or asked == bool(kept.get("compile")):
            compiles = kept.get("compile")
    elif asked is None and faster and accelerator.device.type == "cpu":
        long = size.work_per_image * size.images / accelerator.num_processes >= COMPILED
        compiles = True if long else None
    if compiles and not asked:
        method.compile(required=False)
        lines.append("the network compiled, which pays in a run this long (--no-compile: as it is)")
    if lines:
        accelerator.print(f"Chosen: {'; '.join(lines)}.")
    run = replace(config.run, mixed_precision=accelerator.mixed_precision, compile=compiles)
    return replace(config, run=run)


def hardware_before(folder: OutputFolder) -> dict[str, Any]:
    """What the run to resume ran on; nothing where there is none, or where its run.json is damaged."""
    try:
        return folder.read_run().get("hardware", {}) if folder.checkpoints.is_dir() else {}
    except FileError:
        return {}


def options_before(folder: OutputFolder) -> dict[str, Any]:
    """The options of the run to resume; none where there is none, or where its config.yaml is damaged."""
    try:
        return folder.read_config() if folder.checkpoints.is_dir() else {}
    except FileError:
        return {}


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware: NVIDIA's since Ampere; CPUs with AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def with_all_threads(
    config: Config, accelerator: Accelerator, function: Callable[..., T]
) -> Callable[..., T]:
    """The function on the share of the cores: an evaluation has other networks than the training."""

    def call(*arguments: Any) -> T:
        before = torch.get_num_threads()
        set_cpu_threads(accelerator, config.run.cpu_threads)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(before)

    return call


def use_bf16(accelerator: Accelerator) -> None:
    """bf16 for modules that `machine.distribute` has prepared; they look it up at each call."""
    accelerator.state._mixed_precision, accelerator.native_amp = "bf16", True


def with_warmup(config: Config, total_steps: int, folder: OutputFolder, accelerator: Accelerator) -> Config:
    """The configuration with a number of steps of warm-up: where none is given, that of the run to resume."""
    optim = config.optim
    if optim.lr_warmup_steps is None:
        optim = replace(optim, lr_warmup_steps=decided(accelerator, lambda: warmup_before(folder)))
    if remark := warmup_remark(optim, total_steps):
        accelerator.print(remark)
    return replace(config, optim=replace(optim, lr_warmup_steps=warmup_steps(optim, total_steps)))


def warmup_before(folder: OutputFolder) -> int | None:
    """The warm-up of the run to resume; None, with a warning, where its config.yaml is damaged.

    The checkpoint says whether another number fits, and names the flag if not.
    """
    try:
        return folder.read_config().get("lr_warmup_steps") if folder.checkpoints.is_dir() else None
    except FileError as fault:
        logger.warning("%s; it is written again", fault)
        return None
