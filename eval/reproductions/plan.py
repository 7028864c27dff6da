"""The part of the studies that a budget allows: trainings as jobs, and why a cell is not run."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from trilemma.eval.options import ModelConfig, SamplingConfig, ScoreConfig
from trilemma.eval.reproductions.cells import DATA, Arm, Cell
from trilemma.eval.studies.grid import lines_of
from trilemma.eval.studies.jobs import Job, plan
from trilemma.eval.studies.questions import Flags, Point, Sweep
from trilemma.training import families
from trilemma.training.progress import duration


@dataclass(frozen=True)
class Budget:
    """How much of a study is run.

    images: most images of a training; None: those of the study. seeds: of the trainings. samples: to score.
    calls: most network calls for an image. seconds: a cell with a longer estimate is not run. net: index of
    the network among those of the data. gpu: whether it needs one. reduced: whether images are reduced to
    the size that their row of DATA has for this.
    """

    images: int | None
    seeds: tuple[int, ...]
    samples: int
    calls: int | None
    seconds: float | None
    net: int = 0
    gpu: bool = False
    reduced: bool = False

    def reduced_side(self, cell: Cell, arm: Arm) -> int | None:
        """Pixels on a side to which a recipe's images are reduced; None: they keep their own size."""
        return DATA[cell.data].reduced if self.reduced and "resolution" not in arm.flags else None

    def side_of(self, cell: Cell, arm: Arm) -> int:
        """Pixels on a side of the images that a recipe trains on."""
        return self.reduced_side(cell, arm) or int(arm.flags.get("resolution", DATA[cell.data].side))

    def images_of(self, cell: Cell) -> int:
        """Images that each training of a cell sees; points of the plane are cheap and have no limit."""
        return min(cell.images, self.images or cell.images) if DATA[cell.data].side > 1 else cell.images

    def samples_of(self, cell: Cell) -> int:
        """Samples that a model of the cell is scored on."""
        return cell.samples or self.samples

    def calls_of(self, arm: Arm) -> int:
        """The largest divisor of the recipe's calls within the budget, since DDIM needs a divisor."""
        most = min(arm.calls, self.calls or arm.calls)
        return next(calls for calls in range(most, 0, -1) if arm.calls % calls == 0)

    def net_of(self, cell: Cell, arm: Arm) -> str | None:
        """Row of NETS; None for a family that has its own network."""
        nets = DATA[cell.data].nets if arm.nets is None else arm.nets
        return nets[self.net] if nets else None


TIMED = 3
"""Forward passes that are timed for an estimate."""
COURSE, HELD_OUT = 10, 256
"""How often in a training a bound is logged, and the number of test images that it is measured on."""

BUDGETS = {
    "cpu-small": Budget(12_800, (0,), 250, 20, 30 * 60, reduced=True),
    "cpu": Budget(200_000, (0, 1, 2), 2_000, 100, 24 * 3600),
    "gpu": Budget(None, (0, 1, 2), 12_800, None, None, net=1, gpu=True),
}


class Planned(NamedTuple):
    """A cell with the jobs of each of its recipes, a job for each seed; or why there are none.

    seconds: estimated. reduced: pixels on a side, if the budget makes images smaller.
    """

    cell: Cell
    jobs: Mapping[str, Sequence[Job]]
    why: str = ""
    seconds: float | None = None
    reduced: int | None = None


@dataclass(frozen=True)
class Planner:
    """Makes the jobs of cells. folders: local copies by the name of the data."""

    budget: Budget
    folder: Path
    folders: Mapping[str, str]
    seeds: Sequence[int]
    launcher: str | None
    cpu_threads: int

    def __call__(self, cell: Cell, chosen: bool = True) -> Planned:
        """A cell's jobs; chosen: whether the command line asks for it."""
        why = cell.why or ("" if chosen else "left out by --cells") or self.missing(cell)
        if why:
            return Planned(cell, {}, why)
        jobs = {name: [self.job(cell, arm, seed) for seed in self.seeds] for name, arm in cell.arms.items()}
        done = all(lines_of(job, self.folder) for of_arm in jobs.values() for job in of_arm)
        seconds, most = self.seconds(cell), self.budget.seconds
        if not done and seconds is not None and most is not None and seconds > most:
            return Planned(
                cell, {}, f"about {duration(seconds)}; the budget allows {duration(most)} for a cell"
            )
        reduced = self.budget.reduced_side(cell, cell.study) if cell.study else None
        return Planned(cell, jobs, seconds=seconds, reduced=reduced)

    def missing(self, cell: Cell) -> str:
        """The data or the hardware that a cell lacks here, or ''."""
        hub = DATA[cell.data].hub
        if self.budget.gpu and not _has_gpu():
            return "no GPU here"
        if hub is None or cell.data in self.folders or _on_hub(hub):
            return ""
        return f"no copy of {hub} here (--data {cell.data}=folder), and the Hub does not answer"

    def training_flags(self, cell: Cell, arm: Arm, seed: int) -> Flags:
        """Flags of a training of this budget's length."""
        images, data = self.budget.images_of(cell), DATA[cell.data]
        steps = max(1, images // arm.batch)
        flags: dict[str, str] = dict(arm.flags)
        if arm.milestones:
            flags["lr_milestones"] = " ".join(str(max(1, round(share * steps))) for share in arm.milestones)
        if arm.warmup:
            flags["lr_warmup_steps"] = str(min(arm.warmup, steps // 10))
        if side := self.budget.reduced_side(cell, arm):
            flags["resolution"] = str(side)
        if cell.data in self.folders:
            flags["train_data_dir"] = shlex.quote(self.folders[cell.data])
        elif data.hub:
            flags["dataset_name"] = data.hub
        if net := self.budget.net_of(cell, arm):
            flags["net"] = net
        flags |= held_out(cell.bound, steps) if data.side > 1 else {}
        if cell.epochs and arm is cell.study and seed == self.seeds[0]:  # whose samples the page shows
            between = steps * math.gcd(*cell.epochs) // cell.all_epochs
            flags["sample_steps"] = str(max(1, between))
        return flags | {"max_train_steps": str(steps), "eval_batch_size": "16", "seed": str(seed)}

    def job(self, cell: Cell, arm: Arm, seed: int) -> Job:
        """A training of a recipe and its scoring; exits where their entry points would refuse the flags."""
        budget, data = self.budget, DATA[cell.data]
        calls = budget.calls_of(arm)
        sampler = "ddim" if arm.sampler == "ddpm" and calls < arm.calls else arm.sampler
        guidance = arm.score.get("guidance_scale")
        sampling = SamplingConfig(
            num_samples=budget.samples_of(cell), sampler=sampler,
            num_inference_steps=None if arm.family == "vae" else calls,
            guidance_scale=float(guidance) if guidance else None,
        )  # fmt: skip
        points, bound = data.side == 1, cell.bound
        side = budget.side_of(cell, arm)
        judge = data.judge if side == data.side else f"{data.judge}-{side}"
        score = ScoreConfig(
            metrics=("energy",) if points else ("fd", "bpd") if bound else ("fd",),
            feature_extractor="pixels" if points else None if budget.gpu else "classifier",
            judge=None if points else judge,
            bpd_timesteps=budget.calls if bound and arm.family != "vae" else None,
            bpd_images=budget.samples if bound else None,
            force=cell.samples is not None,
        )  # fmt: skip
        flags = self.training_flags(cell, arm, seed)
        point = Point(arm.family, flags, f"{arm.name}-{flags['max_train_steps']}-{seed}")
        config = SimpleNamespace(
            grid=SimpleNamespace(launcher=self.launcher), model=ModelConfig(cpu_threads=self.cpu_threads),
            sampling=sampling, score=score,
        )  # fmt: skip
        row = Sweep(cell.name, arm.family, {}, (point,), metrics=score.metrics)
        return plan(point, row, self.folder, config, [])

    def seconds(self, cell: Cell) -> float | None:
        """Estimate from a timed forward pass of each network: a step of training counts as three.

        A call with guidance counts as two, and a step through a chain as its calls in addition. None for
        networks without a row in NETS, which a GAN's discriminator is too, and on a GPU.
        """
        budget, total = self.budget, 0.0
        for arm in cell.arms.values():
            net, data = budget.net_of(cell, arm), DATA[cell.data]
            if net is None or budget.gpu or arm.family == "ddgan":
                return None
            side = budget.side_of(cell, arm)
            passes = 3 * budget.images_of(cell) * calls_in_training(arm)
            guided = 2 if float(arm.score.get("guidance_scale", 1)) != 1 else 1
            passes += guided * budget.calls_of(arm) * budget.samples_of(cell)
            total += len(self.seeds) * passes * forward_seconds(net, side, data.channels, arm.batch)
        return total


def held_out(bound: bool, steps: int) -> Flags:
    """Flags of a training: no image is held out, or, for a bound, its course on test images is logged."""
    if not bound:
        return {"validation_size": "0"}
    often = str(max(1, steps // COURSE))
    shown = {"logging_steps": often, "validation_steps": often}
    return {"validation_split": "test", "validation_size": str(HELD_OUT), **shown}


def calls_in_training(arm: Arm) -> int:
    """Calls of the network for an image of a step: those of a shortcut model's chain in addition."""
    preset = families.family(arm.family).presets.get(arm.flags.get("preset", ""))
    return 1 + (preset.options.get("shortcut_steps") or 0 if preset else 0)


@cache
def forward_seconds(net: str, side: int, channels: int, batch: int) -> float:
    """CPU seconds of a forward pass for one image, on this machine in one thread, in float32.

    The smallest of TIMED tries: other programs can only make a try slower.
    """
    import torch

    from trilemma.training.networks.build import build_network
    from trilemma.training.networks.rows import NETS

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = build_network(NETS[net], channels=channels, resolution=side)
    x, t = torch.zeros(batch, channels, side, side), torch.zeros(batch, dtype=torch.long)
    seconds = []
    with torch.no_grad():
        for _ in range(TIMED):
            began = time.process_time()
            model(x, t)
            seconds.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return min(seconds) / batch


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@cache
def _on_hub(name: str) -> bool:
    """Whether the Hub has a data set and answers, or a copy of it was downloaded before."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(name, "README.md", repo_type="dataset", etag_timeout=5)
    except (HfHubHTTPError, OSError):  # LocalEntryNotFoundError, where it does not answer, is an OSError
        return False
    return True


def local_copies(words: Sequence[str]) -> dict[str, str]:
    """'mnist=/path' ... -> folder by the name of the data; ValueError for any other text."""
    folders: dict[str, Any] = {}
    for word in words:
        name, _, place = word.partition("=")
        if name not in DATA or not place:
            taken = ", ".join(known for known, data in DATA.items() if data.hub)
            raise ValueError(f"--data takes name=folder, a name of {taken}; got {word!r}")
        if DATA[name].hub is None:
            raise ValueError(f"--data {name}: these points are embedded; leave it out")
        if not Path(place).is_dir():
            raise ValueError(f"--data {word!r}: there is no folder {place!r}")
        folders[name] = str(Path(place).resolve())
    return folders
