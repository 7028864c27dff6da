"""What a run says and leaves behind: progress bar, trackers, scalars.jsonl, config.yaml and run.json.

Means are kept as sums on the device, so that nothing waits for the GPU between log lines.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from trilemma.training.images.points import are_points, picture
from trilemma.training.loop.machine import commit, hardware, versions
from trilemma.training.loop.method import Logs
from trilemma.training.options.flags import flatten, public, to_yaml

IMAGE_OPTIONS = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
"""accelerate's trackers that show images, and what their log_images wants."""


class Means:
    """Running means of logs, over examples, micro-batches and ranks; NaN marks what does not count."""

    def __init__(self, device: torch.device):
        self.device = device
        self.sums: dict[tuple[str, ...], Tensor] = {}
        self.first_bad_step = torch.full((), torch.inf, dtype=torch.float64, device=device)

    def add(self, logs: Logs, step: int) -> None:
        """Add the values of one micro-batch: `loss` is one per example, the others one or one per example."""
        loss, names = logs["loss"], tuple(sorted(logs))
        values = torch.stack([logs[n].detach().to(loss).expand(len(loss)) for n in names]).double()
        pair = torch.stack([values.nansum(1), (~values.isnan()).sum(1)])
        self.sums[names] = self.sums.get(names, 0) + pair
        norms = [logs[name] for name in names if name.startswith("gradient_norm")]
        finite = torch.stack([x.isfinite().all() for x in (loss, *norms)]).all()
        bad = torch.where(finite, torch.inf, float(step))
        self.first_bad_step = torch.minimum(self.first_bad_step, bad)

    def check(self, accelerator: Accelerator) -> None:
        """FloatingPointError, on every rank, if a loss or gradient on any was not finite so far."""
        first_bad = float(accelerator.gather(self.first_bad_step[None]).min())
        if first_bad < float("inf"):
            raise FloatingPointError(
                f"loss or gradient was not finite at step {int(first_bad)}: lower --learning_rate, or take "
                "--mixed_precision bf16 in place of fp16; the last checkpoint is from before it"
            )

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sum and count of each name on this rank since the last call."""
        found: dict[str, tuple[float, float]] = {}
        for names, pair in self.sums.items():
            for name, total, count in zip(names, *pair.tolist(), strict=True):
                before = found.get(name, (0.0, 0.0))
                found[name] = (before[0] + total, before[1] + count)
        self.sums = {}
        return found

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks since the last call, the same on every rank; collective."""
        everywhere: dict[str, tuple[float, float]] = {}
        for part in gather_object([self.totals()]):
            for name, (total, count) in part.items():
                before = everywhere.get(name, (0.0, 0.0))
                everywhere[name] = (before[0] + total, before[1] + count)
        return {name: total / count for name, (total, count) in sorted(everywhere.items()) if count}


class RunLog:
    """Progress and records of one run. Collective where it says so; only the main process writes."""

    def __init__(self, accelerator: Accelerator, folder: Path, config, logging_dir: str):
        self.accelerator, self.folder = accelerator, folder
        self.scalars = folder / logging_dir / "scalars.jsonl"
        self.facts = {"hardware": hardware(accelerator), "versions": versions(), "commit": commit()}
        self.bar: tqdm | None = None
        # Logs are published with the model; and TensorBoard takes plain values only.
        told = public(flatten(config))
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in told.items()}
        if accelerator.is_main_process:
            write_text(folder / "config.yaml", to_yaml(config))
        accelerator.init_trackers(folder.name, config=plain)

    def start(self, step: int, total: int, seconds: float) -> None:
        """Begin, or go on, at `step` of `total` after `seconds` of earlier training."""
        self.before, self.began, self.window = seconds, time.perf_counter(), (step, time.perf_counter())
        self.bar = tqdm(
            total=total,
            initial=step,
            disable=not self.accelerator.is_main_process,
            unit="step",
            smoothing=0.05,
        )
        if self.accelerator.is_main_process:
            self.scalars.parent.mkdir(parents=True, exist_ok=True)
            # What came after the checkpoint was of weights that are gone.
            for path in (self.scalars, self.folder / "results.jsonl"):
                keep_lines(path, lambda line: (line.get("step") or 0) <= step)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier runs of the same folder counted in."""
        return self.before + time.perf_counter() - self.began

    def tick(self) -> None:
        """One optimizer step is done."""
        self.bar.update()

    def throughput(self, step: int, images_per_step: int) -> float:
        """Images per second of all ranks since the last call."""
        (last, then), now = self.window, time.perf_counter()
        self.window = (step, now)
        return (step - last) * images_per_step / max(now - then, 1e-9)

    def write(self, values: dict[str, float], step: int, show: tuple[str, ...] = ()) -> None:
        """Send numbers to the trackers and the scalars file; `show` names those for the progress bar."""
        self.accelerator.log(values, step=step)
        if not self.accelerator.is_main_process:
            return
        with open(self.scalars, "a") as file:
            file.write(json.dumps({"step": step, "seconds": round(self.seconds, 3), **values}) + "\n")
        self.bar.set_postfix({n: f"{values[n]:.3g}" for n in show if n in values})

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Show uint8 images (N, C, H, W) in the trackers that can; points are dots of one image."""
        images = picture(images)[None] if are_points(images) else images
        pictures = images.permute(0, 2, 3, 1).numpy()
        pictures = np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures
        for tracker in self.accelerator.trackers:
            if tracker.name in IMAGE_OPTIONS:
                tracker.log_images({name: pictures}, step=step, **IMAGE_OPTIONS[tracker.name])

    def write_run(self, step: int, images_seen: int) -> None:
        """Bring run.json up to date."""
        if self.accelerator.is_main_process:
            state = {"steps": step, "images_seen": images_seen, "seconds": round(self.seconds, 1)}
            rate = {"images_per_second": round(images_seen / max(self.seconds, 1e-9), 1)}
            write_text(self.folder / "run.json", json.dumps({**state, **rate, **self.facts}, indent=2) + "\n")

    def close(self) -> None:
        """Flush the trackers."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def write_text(path: Path, text: str) -> None:
    """Replace a file in one go."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    os.replace(aside, path)


def keep_lines(path: Path, wanted) -> None:
    """Keep the objects of a JSON-lines file that `wanted(line)` accepts, and drop a half-written last one.

    A line that is no object stays, for whoever reads the file to complain of.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(parsed, dict) or wanted(parsed):
            kept.append(line + "\n")
    write_text(path, "".join(kept))
