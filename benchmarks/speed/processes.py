"""What whole processes cost: start-up, memory, and two of them on two cores."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from speed.harness import Case, Skipped, run_python
from speed.steps import SETTINGS, Setting
from trilemma.training.devices.chosen import threads_for, work
from trilemma.training.networks.build import build_network
from trilemma.training.networks.rows import NETS

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "training" / "train_unconditional.py")
EXAMPLE_IMPORTS = """
import accelerate, datasets, diffusers, torch
import torch.nn.functional
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
"""
"""What diffusers' example imports before it reads its flags, without torchvision."""


def startup(full: bool, _folder: Path) -> Iterator[Case]:
    """Help, a mistyped flag, and the first step of a training."""
    rounds = 7 if full else 2
    answers = {"--help": (["--help"], 0), "a mistyped flag": (["--max_train_step", "1"], 2)}
    for title, (flags, code) in answers.items():
        rows = {
            "the imports of diffusers' example": partial(run_python, "-c", EXAMPLE_IMPORTS),
            "ours": partial(run_python, TRAIN, *flags, expected=code),
        }
        yield Case("start-up", title, rows, rounds, clock="children", warm=0)
    yield Case("start-up", "until the first step on the digits", _first_steps(1), rounds, "children", 0)


def memory(full: bool, _folder: Path) -> Iterator[Case]:
    """The peak of a short training, imports included."""
    yield Case("memory", "20 steps on the digits", _first_steps(20), 2, clock="memory", warm=0)
    if full:
        yield Case(
            "memory", "5 steps of the 35.7M network, batch 8", _first_steps(5, "large"), 3, "memory", 0
        )


def _first_steps(steps: int, network: str = "digits") -> dict[str, partial]:
    return {
        "diffusers' example": partial(run_python, "-m", "speed.steps", "theirs", str(steps), network),
        "ours": partial(run_python, "-m", "speed.steps", "ours", str(steps), network),
    }


def two_processes(full: bool, _folder: Path) -> Iterator[Case | Skipped]:
    """The same number of images in a step: one process, one with two threads, two of one thread each."""
    group = "two processes on two cores"
    if (os.cpu_count() or 1) < 2:
        yield Skipped(group, "digits", "this machine has one core")
        return
    rows = {
        "one process, one thread": partial(steps_in, 1, 1),
        "one process, two threads": partial(steps_in, 1, 2),
        "two processes, one thread each": partial(steps_in, 2, 1),
    }
    # The clock is the seconds that the processes report, start-up left out.
    yield Case(
        group, "digits, 64 images a step, wall time of 100 steps", rows, 5 if full else 2, "reported", 0
    )


def busy_core(full: bool, _folder: Path) -> Iterator[Case | Skipped]:
    """The speed that is left while another program uses a core; needs a machine where nothing else runs."""
    group = "another program uses a core"
    if (os.cpu_count() or 1) < 2:
        yield Skipped(group, "all cases", "this machine has one core")
        return
    for network, steps in {"digits": 100, "small": 12, **({"large": 4} if full else {})}.items():
        setting = SETTINGS[network]
        threads = threads_chosen(setting)
        rows = {
            f"idle, {threads} of {os.cpu_count()} threads": partial(
                steps_in, 1, threads, setting.batch, steps, network
            ),
            "one core busy": partial(beside_a_busy_core, threads, setting.batch, steps, network),
        }
        title = f"{setting.net}, {setting.side}x{setting.side}, batch {setting.batch}, {steps - 1} steps"
        yield Case(group, title, rows, 5 if full else 3, "reported", 0)


def threads_chosen(setting: Setting) -> int:
    """What a training without --cpu_threads takes on this machine."""
    network = build_network(NETS[setting.net], channels=setting.channels, resolution=setting.side)
    return threads_for(work(network, setting.side**2) * setting.batch, os.cpu_count() or 1)


def beside_a_busy_core(threads: int, batch: int, steps: int, network: str) -> float:
    """`steps_in` beside a program that never waits."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return steps_in(1, threads, batch, steps, network)
    finally:
        other.kill()
        other.wait()


def steps_in(
    processes: int, threads: int, images: int = 64, steps: int = 100, network: str = "digits"
) -> float:
    """Seconds of all steps but the first. images: of all processes in a step; threads: of each process."""
    batch = images // processes
    return float(torchrun(processes, threads, "speed.steps", "ours", str(steps), network, str(batch)))


def torchrun(processes: int, threads: int, module: str, *arguments: str) -> str:
    """Run a module of this folder in several CPU processes; returns what it writes to $SECONDS_FILE."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--standalone", "-m", module, *arguments]
        path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        seconds = Path(folder) / "seconds"
        environment = {**os.environ, "PYTHONPATH": path, "SECONDS_FILE": str(seconds)}
        environment |= {"OMP_NUM_THREADS": str(threads), "CPU_THREADS": str(threads)}
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_WAIT_POLICY": "PASSIVE"}  # as entry points do
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return seconds.read_text(encoding="utf-8")
