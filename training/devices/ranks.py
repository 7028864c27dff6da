"""What the processes of one run must agree on: decisions, errors, flags, folders, and whose noise is whose.

A process that decides alone whether to take part in a collective, or fails alone before one, leaves the
others waiting for it. So what is read from a disk, which may differ between machines, is read by the main
process and sent to all; and work that may fail on one process fails on all.
"""

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from trilemma.training.loop.machine import commit, versions
from trilemma.training.loop.stop import of_one_process
from trilemma.training.options.flags import flatten

T = TypeVar("T")

OF_ONE_MACHINE = ("output_dir", "cache_dir", "train_data_dir", "cpu_threads", "local_rank")
"""Flags that may differ between machines: places, which are checked by what lies there, and the hardware."""


def decided(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What `decide()` returns on the main process, on every process; its error is an error on all.

    Collective. With several processes the answer is sent as a pickle.
    """
    if accelerator.num_processes == 1:
        return decide()
    answer, problem = None, None
    if accelerator.is_main_process:
        try:
            answer = decide()
        except Exception as error:
            problem = error
    answer, message = broadcast_object_list([answer, None if problem is None else str(problem)])
    if problem is not None:
        raise problem
    if message is not None:
        raise ValueError(message)
    return answer


def on_all(accelerator: Accelerator, work: Callable[[], T], local_main_first: bool = False) -> T:
    """`work()` on every process; where it fails on one, an error on all.

    Collective, and `work` must not be. local_main_first: one process of each machine works before the others,
    which then find its results in the cache.
    """
    if accelerator.num_processes == 1:
        return work()
    result, problem = None, None

    def attempt() -> None:
        nonlocal result, problem
        try:
            result = work()
        except Exception as error:
            problem = error

    if local_main_first and not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
        attempt()
    else:
        attempt()
        if local_main_first:
            accelerator.wait_for_everyone()
    messages = gather_object([None if problem is None else str(problem)])
    if problem is not None:
        raise problem
    for rank, message in enumerate(messages):
        if message is not None:
            raise ValueError(f"{message} (on process {rank})")
    return result


def agreement(accelerator: Accelerator) -> Callable[..., list[int]]:
    """A function that takes numbers and returns the largest of all processes for each of them.

    Collective, to make as to call. It has a group of its own on the CPU, so that asking does not wait for the
    GPU.
    """
    if accelerator.num_processes == 1:
        return of_one_process
    group = torch.distributed.new_group(backend="gloo")

    def largest(*numbers: int) -> list[int]:
        of_all = torch.tensor(numbers)
        torch.distributed.all_reduce(of_all, op=torch.distributed.ReduceOp.MAX, group=group)
        return of_all.tolist()

    return largest


def require_same(accelerator: Accelerator, values: Mapping[str, Any], remedy: str) -> None:
    """ValueError, on every process, that names each value that is not the same on all; collective."""
    if accelerator.num_processes == 1:
        return
    everywhere = gather_object([dict(values)])
    different = []
    for name in dict.fromkeys(name for one in everywhere for name in one):  # so that all see the same
        of_all = [one.get(name) for one in everywhere]
        if any(value != of_all[0] for value in of_all):
            rank = next(r for r, value in enumerate(of_all) if value != of_all[0])
            different.append(f"{name}: {of_all[0]} on process 0, {of_all[rank]} on process {rank}")
    if different:
        raise ValueError(f"processes differ; {remedy}: {'; '.join(different)}")


def require_same_flags(accelerator: Accelerator, config: Any) -> None:
    """ValueError unless all processes were started with the same flags, except places; collective."""
    values = {f"--{name}": value for name, value in flatten(config).items() if name not in OF_ONE_MACHINE}
    values |= {"configuration": type(config).__name__, "mixed precision": accelerator.mixed_precision}
    require_same(accelerator, values, "start all of them with the same flags")


def require_same_code(accelerator: Accelerator, **more: Any) -> None:
    """ValueError unless all processes run the same code, versions and commit, and `more`; collective."""
    if accelerator.num_processes > 1:
        values = {**more, **versions(), "commit": commit()}
        require_same(accelerator, values, "install the same versions on all machines")


def share_folder(folder: Path, accelerator: Accelerator, flag: str) -> None:
    """Make a folder; ValueError unless every process sees the same one, and then nothing is left; collective.

    The main process writes a file with a random name, and every process looks for it.
    """
    if accelerator.num_processes == 1:
        folder.mkdir(parents=True, exist_ok=True)
        return
    made: list[Path] = []
    token: Path | None = None

    def write() -> str:
        nonlocal token
        made.extend(place for place in (folder, *folder.absolute().parents) if not place.exists())
        folder.mkdir(parents=True, exist_ok=True)
        name = f".shared-{secrets.token_hex(16)}"
        (folder / name).touch()
        token = folder / name
        return name

    name = decided(accelerator, write)
    try:
        # Not Path.is_file, which raises where this process may not look.
        seen = gather_object([(socket.gethostname(), str(folder), os.path.isfile(folder / name))])
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    blind = [f"process {rank} on {host} ({place!r})" for rank, (host, place, ok) in enumerate(seen) if not ok]
    if blind:
        with suppress(OSError):
            for place in made:  # the innermost first
                place.rmdir()
        raise ValueError(
            f"all machines must share {flag}: {', '.join(blind)} does not see what process 0 on {seen[0][0]} "
            f"writes to {seen[0][1]!r}. Give all processes one folder on a shared disk, by its full path"
        )


def seed_noise(seed: int, rank: int) -> None:
    """Seed this process's noise, which no other (seed, rank) has.

    The main process keeps the seed itself. The seeds of the others have the highest of their 32 bits set, so
    that they are no seed that somebody would type.
    """
    if rank:
        (word,) = np.random.SeedSequence([seed, rank]).generate_state(1, np.uint32)
        seed = int(word) | 1 << 31
    set_seed(seed)
