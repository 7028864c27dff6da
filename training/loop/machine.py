"""What a run runs on: threads, hardware, versions, the commit of the code."""

import gc
import importlib
import os
import platform
import subprocess
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from trilemma.training.options.flags import Config

PROCESS_GROUP = InitProcessGroupKwargs(timeout=timedelta(hours=3))
"""Processes wait for each other; one that decodes a large data set may need more than ten minutes."""
GRADIENTS = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
"""Gradients lie where they are sent from: a copy of the network's size less."""


WHOLE_MODEL = "set distributed_type MULTI_GPU there (plain DDP): each process holds the whole model"

UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": ("FSDP", WHOLE_MODEL),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", WHOLE_MODEL),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", WHOLE_MODEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism_config", WHOLE_MODEL),
    "ACCELERATE_DYNAMO_BACKEND": (
        "a dynamo_backend",
        "set dynamo_backend 'no' there and train with --compile, which compiles the network alone",
    ),
    "ACCELERATE_MIXED_PRECISION": ("fp8", "use --mixed_precision bf16"),
}
"""Variable by which `accelerate launch` asks for it -> what is not supported, and what to use instead."""

SUPPORTED = {"ACCELERATE_MIXED_PRECISION": ("no", "fp16", "bf16")}


def refuse_unsupported(environment: Mapping[str, str]) -> None:
    """ValueError where accelerate's configuration asks for what would train something else, or not at all."""
    for variable, (what, instead) in UNSUPPORTED.items():
        value = environment.get(variable, "").lower()
        if value not in ("", "0", "n", "no", "f", "false", "off", *SUPPORTED.get(variable, ())):
            raise ValueError(
                f"accelerate's configuration asks for {what} ({variable}={environment[variable]}), which is "
                f"not supported: {instead}"
            )


def make_accelerator(config: Config) -> Accelerator:
    """accelerate's view of this process: precision, accumulation, trackers; on a CPU also its threads."""
    run = config.run
    trackers = [str(tracker) for tracker in get_available_trackers()]
    if config.log.logger not in ("all", *trackers):
        raise ValueError(
            f"--logger {config.log.logger!r} is not installed; installed: {', '.join(trackers) or 'none'}"
        )
    if run.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(run.local_rank))
    logs = Path(run.output_dir) / config.log.logging_dir
    accelerator = _open(
        mixed_precision=run.mixed_precision,
        # As a number it would give way to a variable of the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.optim.gradient_accumulation_steps),
        log_with=config.log.logger,
        project_config=ProjectConfiguration(project_dir=run.output_dir, logging_dir=str(logs)),
    )
    set_cpu_threads(accelerator, run.cpu_threads)
    accelerator.backward = record_function("backward")(accelerator.backward)
    torch.backends.cudnn.benchmark = True  # batches of a training have one shape: the fastest kernel for it
    return accelerator


def evaluation_accelerator(threads: int = 0) -> Accelerator:
    """accelerate's view of this process, for entry points that do not train; threads: `set_cpu_threads`."""
    accelerator = _open()
    set_cpu_threads(accelerator, threads)
    return accelerator


def _open(**settings: Any) -> Accelerator:
    refuse_unsupported(os.environ)
    # DistributedDataParallel needs it. Imported after a group is open, it keeps the group's threads for ever.
    importlib.import_module("torch._dynamo")
    return Accelerator(kwargs_handlers=[PROCESS_GROUP, GRADIENTS], **settings)


def distribute(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """The module as all processes train it; its buffers, the same on all, are not sent at each step.

    It runs in the precision that the accelerator has then: a rule may choose one for a network that is built
    (`training/devices/chosen.py`), while accelerate looks it up when it prepares the module.
    """
    forward = module.forward

    def in_precision(*arguments: Any, **options: Any) -> Any:
        part = "forward" if torch.is_grad_enabled() else "forward without gradients"
        with record_function(part), accelerator.autocast():
            return forward(*arguments, **options)

    module.forward = in_precision
    module = accelerator.prepare(module)
    if isinstance(module, DistributedDataParallel):
        module.broadcast_buffers = False
    return module


@contextmanager
def closing_groups() -> Iterator[None]:
    """Close every process group that was opened inside the block, however the block ends.

    A gloo group has threads, which run as long as anything refers to it. Where they still run when the
    interpreter ends, the program may end with SIGABRT after all its work was done. So what opens groups
    must be local to functions that the block calls: what they still hold is then let go, too.
    """
    try:
        yield
    except SystemExit as stop:  # all processes have agreed on it, as they have on an end
        _close_groups(stop)
        raise
    except BaseException as problem:
        _close_groups(problem, failed=True)
        raise
    else:
        _close_groups()


def _close_groups(problem: BaseException | None = None, failed: bool = False) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        return
    if failed and dist.get_backend() != "gloo":
        # NCCL closes a group together with the other processes, which may never come to that.
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()
    while problem is not None:  # its traceback still tells every line, but holds no objects
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__cause__ or problem.__context__
    gc.collect()  # DistributedDataParallel and its hooks refer to each other


def set_cpu_threads(accelerator: Accelerator, threads: int) -> None:
    """On a CPU, this many threads, or 0 for an equal share of the cores: `accelerate launch` gives one."""
    if accelerator.device.type == "cpu":
        allowed = getattr(os, "sched_getaffinity", None)  # Linux has it
        cores = len(allowed(0)) if allowed else os.cpu_count()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(threads or max(1, cores // local))


def hardware(accelerator: Accelerator) -> dict[str, Any]:
    """What the run runs on."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": device.type,
        "name": name,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
    }


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    packages = ("trilemma", "torch", "diffusers", "accelerate", "datasets")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def commit() -> str | None:
    """The checkout's commit, `+` when it has changes; None in an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, encoding="utf-8", check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
