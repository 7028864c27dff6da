"""What a run says and leaves behind: progress bar, trackers, scalars.jsonl, config.yaml and run.json.

Means are kept as sums on the device, so that nothing waits for the GPU between log lines.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trilemma.pipelines.files.reading import FileError, fits
from trilemma.pipelines.files.text import as_text
from trilemma.pipelines.files.writing import (
    append_lines,
    keep_lines,
    naming,
    write_json,
    write_text,
)
from trilemma.pipelines.shared import exact_device
from trilemma.training.devices.profile import Profile
from trilemma.training.devices.ranks import decided, on_all
from trilemma.training.images.points import picture
from trilemma.training.loop.ema import drop_snapshots
from trilemma.training.loop.machine import commit, hardware, versions
from trilemma.training.loop.method import SKIPPED, Logs
from trilemma.training.options.flags import Config, flatten, public, to_yaml
from trilemma.training.options.plugins import digests
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import Progress, say

logger = logging.getLogger(__name__)

IMAGE_OPTIONS = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
"""accelerate's trackers that show images, and the arguments of their log_images."""

CALLED = {"validate": "validation", "sample": "sample sheet", "evaluate": "evaluation", "save": "saving"}
CALLED |= {"snapshot": "snapshot of the averages"}
"""What is done between steps, as the user reads it."""


class Means:
    """Running means of logs, over examples, micro-batches and ranks; NaN marks what does not count."""

    def __init__(self, device: torch.device):
        # Where a device has no float64, float32 is enough for the sums between two log lines.
        self.dtype = torch.float64 if exact_device(device) == device else torch.float32
        self.sums: dict[tuple[str, ...], Tensor] = {}
        self.first_bad_step = torch.full((), torch.inf, dtype=self.dtype, device=device)

    def add(self, logs: Logs, step: int) -> None:
        """Add the values of one micro-batch: `loss` is one per example, the others one or one per example."""
        loss, names = logs["loss"], tuple(sorted(logs.keys() - {SKIPPED}))
        values = torch.stack([logs[n].detach().to(loss).expand(len(loss)) for n in names]).to(self.dtype)
        pair = torch.stack([values.nansum(1), (~values.isnan()).sum(1)])
        self.sums[names] = self.sums.get(names, 0) + pair
        # fp16's scaler watches its gradients itself: one that overflows is skipped.
        norms = [logs[n] for n in names if n.startswith("gradient_norm") and SKIPPED not in logs]
        finite = torch.stack([x.isfinite().all() for x in (loss, *norms)]).all()
        bad = torch.where(finite, torch.inf, float(step))
        self.first_bad_step = torch.minimum(self.first_bad_step, bad)

    def check(self, accelerator: Accelerator) -> None:
        """FloatingPointError, on every rank, if a loss or gradient on any was not finite so far."""
        first_bad = float(accelerator.gather(self.first_bad_step[None]).min())
        if first_bad < float("inf"):
            raise FloatingPointError(
                f"loss or gradient was not finite at step {int(first_bad)}: lower --learning_rate, or use "
                "--mixed_precision bf16 instead of fp16; the last checkpoint is from before that step"
            )

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sum and count of each name on this rank since the last call."""
        totals: dict[str, tuple[float, float]] = {}
        for names, pair in self.sums.items():
            for name, total, count in zip(names, *pair.tolist(), strict=True):
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + total, before[1] + count)
        self.sums = {}
        return totals

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks since the last call, the same on every rank; collective."""
        everywhere: dict[str, tuple[float, float]] = {}
        for part in gather_object([self.totals()]):
            for name, (total, count) in part.items():
                before = everywhere.get(name, (0.0, 0.0))
                everywhere[name] = (before[0] + total, before[1] + count)
        return {name: total / count for name, (total, count) in sorted(everywhere.items()) if count}


def came_before(line: Mapping[str, Any], step: int, left: Collection[str]) -> bool:
    """Whether a line of scalars or results is older than a checkpoint of `step`, with `left` still to do."""
    of_line = line.get("step")
    if not fits(of_line, float):  # of no step, or damaged
        return True
    if of_line != step or "images_per_second" in line:  # the means of training, written first
        return of_line <= step
    validation = any(name.startswith("validation_") for name in line)
    return ("validate" if validation else "evaluate") not in left


class RunLog:
    """Progress and records of one run. Collective where it says so; only the main process writes."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: OutputFolder,
        config: Config,
        family: str,
        more: Mapping[str, Any] = MappingProxyType({}),
    ):
        """more: further entries of run.json."""
        self.accelerator, self.folder, self.config = accelerator, folder, config
        self.facts = {"hardware": hardware(accelerator), "versions": versions(), "commit": commit()}
        self.facts |= {**more, **({"plugins": plugins} if (plugins := digests()) else {})}
        self.family, self.logs = family, folder.path / config.log.logging_dir
        self.bar: Progress | None = None
        self.profile = Profile(folder.trace, config.run.profile if accelerator.is_main_process else 0)
        self.seconds_aside = self.aside_in_window = 0.0  # those of what is done between steps

    def start(self, step: int, total: int, seconds: float, left: Collection[str] = ()) -> None:
        """Begin, or go on, at `step` of `total` after `seconds` of earlier training; left: what is done again
        after this step.
        """
        decided(self.accelerator, lambda: self._begin_files(step, left))
        # Logs are published with the model; and TensorBoard takes plain values only.
        values = public(flatten(self.config))
        plain = {
            k: v if isinstance(v, (int, float, bool)) else as_text(str(v), "replace")
            for k, v in values.items()
        }
        # TensorBoard hides what an earlier run logged after the checkpoint.
        purge = {"tensorboard": {"purge_step": step + 1}}
        threading.excepthook = _report
        init = self.accelerator.init_trackers
        with naming(self.logs):
            on_all(self.accelerator, lambda: init(self.folder.path.name, config=plain, init_kwargs=purge))
        self.before, self.began, self.window = seconds, time.perf_counter(), (step, time.perf_counter())
        self.bar = Progress("training", total, "step", step, self.accelerator.is_main_process)

    def _begin_files(self, step: int, left: Collection[str]) -> None:
        """Write config.yaml; drop lines that are of weights that are gone, or of what is done again."""

        def is_before(line: dict[str, Any]) -> bool:
            return came_before(line, step, left)

        with suppress(FileError):  # a damaged run.json is written again
            self.seconds_aside = self.folder.read_run().get("evaluation_seconds", 0.0) if step else 0.0
        drop_snapshots(self.folder.averages, step)
        write_text(self.folder.config, to_yaml(self.config))
        self.scalars, results = self.folder.scalars, self.folder.results
        keep_lines(self.scalars, is_before)
        aside = results.with_name("results.dropped.jsonl")
        if count := keep_lines(results, is_before, aside):
            logger.warning(
                "%d lines of %s are damaged or of steps after %d, where this run goes on; moved to %s",
                count, results.name, step, aside,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier runs of the same folder counted in."""
        return self.before + time.perf_counter() - self.began

    def tick(self) -> None:
        """One optimizer step is done."""
        self.bar.update()
        self._say(self.profile.tick())

    @contextmanager
    def aside(self, task: str, step: int) -> Iterator[None]:
        """Work inside the block whose time counts neither for images per second nor for the time left."""
        began = time.perf_counter()
        try:
            with self.bar.pause(f"{CALLED[task]} at step {step:,}"):
                yield
        finally:
            seconds = time.perf_counter() - began
            self.seconds_aside += seconds
            self.aside_in_window += seconds

    def throughput(self, step: int, images_per_step: int) -> float:
        """Images per second of all ranks since the last call."""
        (last, then), now = self.window, time.perf_counter()
        seconds, self.aside_in_window = now - then - self.aside_in_window, 0.0
        self.window = (step, now)
        return (step - last) * images_per_step / max(seconds, 1e-9)

    def write(self, values: dict[str, float], step: int, show: tuple[str, ...] = ()) -> None:
        """Send numbers to the scalars file and the trackers; `show` names those for the progress bar.

        Collective.
        """
        line = json.dumps({"step": step, "seconds": round(self.seconds, 3), **values}) + "\n"
        decided(self.accelerator, lambda: append_lines(self.scalars, line, sync=False))
        self._track(lambda: self.accelerator.log(values, step=step))
        if show:
            self.bar.note(**{n: f"{values[n]:.3g}" for n in show if n in values})

    def images(self, name: str, images: Tensor, step: int, points: bool = False) -> None:
        """Show uint8 images (N, C, H, W) in the trackers that can; points are dots of one image."""
        images = picture(images)[None] if points else images
        pictures = images.permute(0, 2, 3, 1).numpy()
        pictures = np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures

        def show() -> None:
            for tracker in self.accelerator.trackers:
                if tracker.name in IMAGE_OPTIONS:
                    tracker.log_images({name: pictures}, step=step, **IMAGE_OPTIONS[tracker.name])

        self._track(show)

    def write_run(self, step: int, images_seen: int) -> None:
        """Bring run.json up to date; collective."""
        state = {"steps": step, "images_seen": images_seen, "seconds": round(self.seconds, 1)}
        state["evaluation_seconds"] = round(self.seconds_aside, 1)  # of these: all that is done between steps
        rate = {"images_per_second": round(images_seen / max(self.seconds - self.seconds_aside, 1e-9), 1)}
        facts = {"family": self.family, **state, **rate, **self.facts}
        decided(self.accelerator, lambda: write_json(self.folder.run, facts))

    def close_bar(self) -> None:
        """Say no more how far it is, and end a profile; a second call does nothing."""
        if self.bar:
            self.bar.close()
            self._say(self.profile.close())

    def _say(self, line: str | None) -> None:
        if line:
            say(line)

    def close(self) -> None:
        """Flush the trackers; collective."""
        self.close_bar()

        def finish() -> None:
            for tracker in self.accelerator.trackers:
                tracker.finish()

        self._track(finish)

    def _track(self, call: Callable[[], None]) -> None:
        """Call the trackers; what the main process cannot write is an error on all that names the logs.

        Collective, so once for all trackers: only some processes may have them.
        """
        with naming(self.logs):
            on_all(self.accelerator, call)


def _report(problem: threading.ExceptHookArgs) -> None:
    """Print an error of a thread; not that of TensorBoard's on a full disk, which its next call raises."""
    of_tensorboard = type(problem.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(problem.exc_value, OSError)):
        threading.__excepthook__(problem)
