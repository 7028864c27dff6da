"""Few network calls an image: GAN, consistency model and flow against solvers of a diffusion model.

    python benchmarks/few_steps.py digits --seeds 0 1 2
    python benchmarks/few_steps.py digits-classes --seeds 0 1 2
    python benchmarks/few_steps.py mnist --train_data_dir <folder>
    python benchmarks/few_steps.py mnist-zoo --train_data_dir <folder> --num_samples 500

Trains what is missing in `--output_dir`, each model by its entry point, with the same seeds: a diffusion
model that predicts v (DDPM), a consistency model tuned from it, a flow with the same number of steps as the
DDPM, and a denoising-diffusion GAN. The GAN gets the CPU seconds of DDPM and consistency model together. The
seconds of a training are its steps times the CPU time of a step. That time is the median of `ROUNDS`, in
which all models take their turn in one process and one thread: another program slows all of them alike.

Then scores every row of CELLS under the classifier: distance and floor, coverage, recall, CPU seconds of one
thread for an image. A study in PUBLISHED trains nothing: it scores models of model_cards/zoo, and the seconds
of their trainings are what float32 would take here. few_steps_table.py has these tables.
`results/few_steps.json` keeps each number as soon as it is there, so a run that was stopped goes on where it
was; `few_steps_page.py` writes the tables and the figure of docs/few_steps.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from few_steps_table import AS_LONG_AS, CELLS, EMBEDDED, FAMILY, JUDGES, PARENT, PUBLISHED, RECIPES
from speed.ours import OurLoop, fresh_state, quietly

from trilemma.eval.features.inception import file_sha256
from trilemma.eval.features.judge_files import BY_DATA
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing, labels_like, load_model
from trilemma.eval.scoring.yardsticks import Reference, Yardstick, score, yardsticks
from trilemma.pipelines.files.writing import write_json
from trilemma.training.images.image_set import Images, cache_folder, load_images
from trilemma.training.loop.machine import commit, hardware
from trilemma.training.options.command_line import parse
from trilemma.training.output_folder import OutputFolder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "few_steps.json"
METRICS = ("fd", "prdc")
ROUNDS, WARM, BATCH = 9, 2, 250


class Study:
    """One data set: its models, what was measured of them, and the file that keeps it."""

    def __init__(self, options: argparse.Namespace):
        self.name, self.options, self.recipes = options.data, options, RECIPES[options.data]
        self.folder = Path(options.output_dir) / options.data
        self.all = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        empty = {"n": options.num_samples, "trainings": {}, "cells": []}
        self.kept: dict[str, Any] = self.all.setdefault(self.name, empty)
        if self.kept["n"] != options.num_samples:
            raise SystemExit(
                f"--num_samples {options.num_samples}: {RESULTS.name} is of {self.kept['n']} samples, "
                "and distances of other numbers cannot be compared; give that one"
            )
        if self.name in PUBLISHED:
            self.forget_replaced()

    def keep(self) -> None:
        """Write what is measured so far."""
        write_json(RESULTS, self.all)

    def forget_replaced(self) -> None:
        """Drop what was measured of models of the zoo that have been trained again since, or left it."""
        for name, run in list(self.kept["trainings"].items()):
            model, seed = name.split()
            if model not in self.recipes or run != self.training(model, int(seed)):
                del self.kept["trainings"][name]
                self.kept["cells"] = [cell for cell in self.kept["cells"] if cell["model"] != model]
                self.kept.pop("seconds_per_step", None)

    def training(self, model: str, seed: int) -> dict[str, Any]:
        """What the page says of a trained model, and the sha256 of its weights."""
        folder = self.model_folder(model, seed)
        run, weights = OutputFolder(folder).read_run(), sorted(folder.glob("*/*.safetensors"))
        return {
            "steps": run["steps"], "images": run["images_seen"], "commit": run["commit"],
            "flags": self.recipes[model], "weights": [file_sha256(path) for path in weights],
        }  # fmt: skip

    def flags(self, model: str, seed: int, folder: Path) -> list[str]:
        """The command line of a model's training, without its length."""
        flags = [*self.recipes[model].split(), "--seed", str(seed), "--cpu_threads", "1"]
        if self.options.train_data_dir:
            flags += ["--train_data_dir", self.options.train_data_dir]
        if model in PARENT:
            flags += ["--init_from", str(self.model_folder(PARENT[model], seed))]
        if self.name in PUBLISHED:  # only to time a step
            flags += ["--mixed_precision", "no"]
        return [*flags, "--output_dir", str(folder)]

    def model_folder(self, model: str, seed: int) -> Path:
        """Where a trained model lies."""
        if self.name in PUBLISHED:
            return ROOT / "model_cards" / "zoo" / PUBLISHED[self.name][model]
        return self.folder / f"{model.lower()}-{seed}"

    def costs(self, seed: int) -> dict[str, float]:
        """Family -> CPU seconds of an optimizer step, measured once."""
        if "seconds_per_step" in self.kept:
            return self.kept["seconds_per_step"]
        models = {FAMILY[model]: model for model in reversed(self.recipes)}  # the first of each family
        for model in PARENT.keys() & models.values():
            self.train(PARENT[model], seed)
        loops, times = {}, {family: [] for family in models}
        with tempfile.TemporaryDirectory() as folder, quietly():
            for family, model in models.items():
                fresh_state()
                flags = self.flags(model, seed, Path(folder) / model)
                loops[family] = OurLoop(flags, Path(folder) / model, family)
            for number in range(WARM + ROUNDS):
                for family in list(models)[:: -1 if number % 2 else 1]:
                    began = time.process_time()
                    loops[family].step()
                    times[family] += [time.process_time() - began] if number >= WARM else []
            for loop in loops.values():
                loop.loop.runlog.close()
        self.kept |= {
            "seconds_per_step": {family: statistics.median(each) for family, each in times.items()},
            "hardware": hardware(Accelerator(cpu=True)),
            "torch": torch.__version__,
        }
        self.keep()
        return self.kept["seconds_per_step"]

    def steps(self, model: str, seed: int) -> int:
        """Optimizer steps of a model: those of its recipe, or the number that fits into its seconds."""
        if model not in AS_LONG_AS:
            return parse(FAMILY[model], "", self.flags(model, seed, self.folder)).run.max_train_steps
        cost = self.costs(seed)
        seconds = sum(
            self.steps(other, seed) * cost[FAMILY[other]]
            for other in AS_LONG_AS[model]
            if other in self.recipes
        )
        return round(seconds / cost[FAMILY[model]])

    def train(self, model: str, seed: int) -> Path:
        """The folder of a trained model; trains it, and its parent before it, unless it is there."""
        folder, family = self.model_folder(model, seed), FAMILY[model]
        if model in PARENT:
            self.train(PARENT[model], seed)
        if not OutputFolder(folder).index.is_file():
            script = [sys.executable, str(ROOT / "training" / f"train_{family}.py")]
            length = ["--max_train_steps", str(self.steps(model, seed))]
            subprocess.run([*script, *self.flags(model, seed, folder), *length], check=True)
        self.kept["trainings"][f"{model} {seed}"] = self.training(model, seed)
        self.keep()
        return folder

    def score(self, model: str, seed: int, images: Images, sticks: list[Yardstick]) -> None:
        """Train a model unless it is there, and measure what is not measured yet of it."""
        done = {(c["model"], c["seed"], c["sampler"], c["steps"]) for c in self.kept["cells"]}
        cells = [
            (cell.sampler, steps) for cell in CELLS if cell.model == model for steps in cell.steps
            if (model, seed, cell.sampler, steps) not in done
        ]  # fmt: skip
        if not cells:
            return
        accelerator = Accelerator(cpu=True)
        pipeline = load_model(str(self.train(model, seed)), accelerator.device)
        for sampler, steps in cells:
            measured = measure(pipeline.with_sampler(sampler), steps, self.kept["n"], images, sticks)
            self.kept["cells"].append(dict(model=model, seed=seed, sampler=sampler, steps=steps) | measured)
            self.keep()
            print(f"{self.name}, {model} {seed}, {sampler} {steps}: {measured}", flush=True)


def measure(pipeline, steps: int, n: int, images: Images, sticks: list[Yardstick]) -> dict[str, Any]:
    """Draw n images with seeds 0..n-1 and score them; seconds are CPU time of drawing alone."""
    accelerator = Accelerator(cpu=True)
    pipeline.set_progress_bar_config(disable=True)
    sampling = SamplingConfig(num_samples=n, num_inference_steps=steps)
    drawing = Drawing(pipeline, "", sampling, BATCH, accelerator)
    drawing.labels = labels_like(drawing, images)
    began = time.process_time()
    drawn = list(drawing)
    seconds = (time.process_time() - began) / n
    numbers = {}
    for part in score(sticks, drawn, n, accelerator, force=True).values():
        numbers |= part
    distance = numbers["fd"]
    return {
        "calls": pipeline.calls(steps, False), "fd": distance.value, "floor": distance.floor,
        "interval": distance.interval, "coverage": numbers["coverage"].value,
        "recall": numbers["recall"].value, "seconds_per_image": seconds, "commit": commit(),
    }  # fmt: skip


def main() -> None:
    """Train and score what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of training")
    parser.add_argument("--models", nargs="+", choices=FAMILY, default=list(FAMILY))
    parser.add_argument("--num_samples", type=int, default=2000, help="samples of a score")
    parser.add_argument("--train_data_dir", help="local folder in place of the Hub's data set")
    parser.add_argument("--output_dir", default="outputs/few_steps", help="where the models lie")
    options = parser.parse_args()
    if options.data in PUBLISHED and options.seeds != [0]:
        parser.error(f"--seeds: the models of {options.data} have one seed, 0")
    if options.data in PUBLISHED and not options.train_data_dir and options.data != EMBEDDED:
        parser.error(f"{options.data} needs --train_data_dir, the folder of the data")
    torch.set_num_threads(1)
    study = Study(options)
    first = next(iter(study.recipes))
    data = parse(FAMILY[first], "", study.flags(first, 0, study.folder)).data
    images = load_images(data)
    judge, cache = JUDGES.get(options.data, BY_DATA), cache_folder(None)
    sticks = yardsticks(METRICS, "classifier", Reference(images), Accelerator(cpu=True), cache, judge=judge)
    study.costs(options.seeds[0])
    for seed in options.seeds:
        for model in [name for name in study.recipes if name in options.models]:
            study.score(model, seed, images, sticks)


if __name__ == "__main__":
    main()
