"""Run the entry points as processes of their own, which signals can kill, without importing torch each time.

A fork server imports what every run needs, once and without running any of it; each run is a fork of it that
executes the script as `python script flags` would.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import runpy
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "_class_name": "UNet2DModel",
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
    "dropout": 0.1,
}
"""Configuration of a network that takes milliseconds a step."""
WITHOUT_THREADS = ("model_cards/", "eval/compare.py", "training/average.py")
"""Entry points that have no flag `--cpu_threads`."""
LAUNCHERS = ("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "trilemma.training.run",
        "trilemma.training.objectives.ddpm",
        "trilemma.pipelines.unconditional",
        "trilemma.eval.scoring.after_training",
        "torch.utils.tensorboard",
    ]
)


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without a launcher's traces, one thread, the Hub out of reach."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    return {**keep, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def command(script: str, *flags: str) -> list[str]:
    """How a shell would run an entry point of the checkout."""
    threads = () if script.startswith(WITHOUT_THREADS) else ("--cpu_threads", "1")
    return [sys.executable, str(ROOT / script), *threads, *flags]


@dataclass
class Run:
    """A running entry point; its output goes to a file."""

    process: multiprocessing.Process
    log: Path

    def wait(self) -> int:
        """Exit code, the negative signal number for a run that was killed."""
        self.process.join()
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")


def start(script: str, *flags: str, cwd: Path | None = None, signal_at: tuple[int, int] | None = None) -> Run:
    """Start an entry point, in the folder `cwd` if given; signal_at: see `signal_after`."""
    handle, log = tempfile.mkstemp(suffix=".log")
    os.close(handle)
    with _environment(environment()):
        multiprocessing.forkserver.ensure_running()
    process = _CONTEXT.Process(
        target=_enter,
        args=(*command(script, *flags)[1:],),
        kwargs={"log": log, "cwd": cwd, "signal_at": signal_at},
    )
    process.start()
    return Run(process, Path(log))


def run(script: str, *flags: str, check: bool = True, cwd: Path | None = None) -> Run:
    """Run an entry point to its end; its output is shown when it fails unexpectedly."""
    running = start(script, *flags, cwd=cwd)
    assert running.wait() == 0 or not check, running.output
    return running


def from_child(queue: multiprocessing.Queue, *children: multiprocessing.Process) -> Any:
    """The next that a child puts into the queue, however slow the machine; an error if none will come."""
    while True:
        codes = [child.exitcode for child in children]
        with contextlib.suppress(Empty):
            return queue.get(timeout=1)
        assert None in codes, codes
        assert not any(codes), codes


def signal_after(step: int, number: int) -> None:
    """A signal to this process within 20 ms after it has logged the loss of a step.

    From inside, since another process that watched the log might come too late on a busy machine.
    """
    from trilemma.training.loop.records import RunLog

    write = RunLog.write

    def write_and_signal(self, values, now, show=()):
        write(self, values, now, show)
        if now == step and "loss" in values:
            threading.Timer(0.02 * random.random(), os.kill, (os.getpid(), number)).start()

    RunLog.write = write_and_signal


def _enter(script: str, *flags: str, log: str, cwd: Path | None, signal_at: tuple[int, int] | None) -> None:
    os.chdir(cwd or os.getcwd())
    handle = os.open(log, os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # What this process was forked from had its own streams.
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
    if signal_at:
        signal_after(*signal_at)
    sys.argv = [script, *flags]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


@contextlib.contextmanager
def _environment(values: dict[str, str]):
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def two_ranks(worker: str, folder: Path, *flags: str) -> tuple[dict, dict]:
    """What each of two processes of a training reported: `tests/<worker>` is called with a file for that."""
    report = folder / "report.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(ROOT / "tests" / worker), str(report), *flags, "--cpu_threads", "1"]
    done = subprocess.run(
        [*launch, *words, "--output_dir", str(folder / "out")], capture_output=True, text=True,
        env=environment(ACCELERATE_USE_CPU="true"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = json.loads(report.read_text(encoding="utf-8"))
    return one, two
