"""Is a measure of few samples good enough to choose a checkpoint?

    python benchmarks/ranking.py
    python benchmarks/ranking.py --page_only

Trains twice on the digits, with the flags of TRAININGS, and draws samples every few steps. The distance of
REFERENCE samples under the classifier says which checkpoint is better. Each measure, with each number of
samples in SIZES, is compared with it by Spearman's rank correlation over all checkpoints. Its samples are not
those of the distance; they are cut into sets of each size, and the correlation is the mean over the sets. The
last columns are of the checkpoints of each training alone, with 1,000 samples.

results/ranking.json keeps each checkpoint as soon as it is scored. The table goes into docs/metrics.md,
between the lines `<!-- ranking -->` and `<!-- end of ranking -->`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.logging import disable_progress_bar
from kept_table import Part, run
from scipy.stats import spearmanr
from speed.harness import machine
from speed.ours import OurLoop, fresh_state, quietly

from trilemma.eval.metrics.table import METRICS, measure_row
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing
from trilemma.eval.scoring.yardsticks import BATCH, Batch, Reference, Yardstick, score, yardsticks
from trilemma.eval.studies.tables import markdown
from trilemma.pipelines.files.writing import write_json
from trilemma.training.images.image_set import cache_folder
from trilemma.training.loop.loop import published

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results" / "ranking.json"
PART = Part(ROOT / "docs" / "metrics.md", "<!-- ranking -->\n", "<!-- end of ranking -->\n")
TRAININGS = {
    "preset": "--preset digits --max_train_steps 2400",
    "epsilon": "--preset digits --max_train_steps 2400 --prediction_type epsilon --learning_rate 1e-3",
}
SIZES, REFERENCE = (250, 1_000, 4_000), 10_000
CALLS, EVERY, ENOUGH, ALONE = 10, 400, 0.95, "1000"
NAMES = tuple(
    name for name, row in METRICS.items() if row.best and not row.judge and "labels" not in row.needs
)
"""Metrics that may choose the best model and need neither labels nor a judge."""


def batches(pixels: torch.Tensor) -> Iterator[Batch]:
    """Images in batches, with their indices."""
    for index in torch.arange(len(pixels)).split(BATCH):
        yield index, pixels[index], None


def scored(sticks: list[Yardstick], pixels: torch.Tensor, accelerator) -> dict[str, float]:
    """The estimates for these images of all measures that have a better end."""
    (measured,) = score(sticks, batches(pixels), len(pixels), accelerator, force=True).values()
    return {name: one.estimate for name, one in measured.items() if measure_row(name).better}


def checkpoints(flags: str, options: argparse.Namespace, done: set[int]) -> Iterator[dict[str, Any]]:
    """Each checkpoint that is not scored yet: its step, its distance and the measures at each size."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        trainer = OurLoop(flags.split(), Path(folder))
        accelerator, cache = trainer.accelerator, cache_folder(None)
        reference = Reference(trainer.images)
        judge, sticks = (yardsticks(n, "classifier", reference, accelerator, cache) for n in (("fd",), NAMES))
        while trainer.loop.step < trainer.total:
            trainer.step()
            if trainer.loop.step % options.every or trainer.loop.step in done:
                continue
            total = options.reference + max(options.sizes)
            with published(trainer.loop.method, trainer.loop.ema) as pipeline:
                pipeline.set_progress_bar_config(disable=True)
                sampling = SamplingConfig(num_samples=total, num_inference_steps=CALLS)
                drawing = Drawing(pipeline.with_sampler("dpmsolver++"), "", sampling, BATCH, accelerator)
                pixels = torch.cat([images for _, images, _ in drawing])
            distance = scored(judge, pixels[: options.reference], accelerator)["fd"]
            sizes, seconds = {}, {}
            for size in options.sizes:
                began = time.process_time()
                parts = pixels[options.reference :].split(size)
                found = [scored(sticks, part, accelerator) for part in parts if len(part) == size]
                sizes[str(size)], seconds[str(size)] = found, (time.process_time() - began) / len(found)
            step = trainer.loop.step
            yield {"step": step, "distance": distance, "seconds": seconds, "sizes": sizes}
        trainer.loop.runlog.close()


def measure(options: argparse.Namespace, kept: dict[str, Any]) -> None:
    """Score every checkpoint that is not kept yet."""
    for name, flags in TRAININGS.items():
        flags = f"{flags} {options.more}".strip()
        run = kept.setdefault(name, {"flags": flags, "machine": machine(), "checkpoints": []})
        if run["flags"] != flags:
            raise SystemExit(f"{KEPT.name} has {name} with {run['flags']}; delete it to measure with {flags}")
        last = options.every * (int(flags.split("--max_train_steps ")[-1].split()[0]) // options.every)
        done = {one["step"] for one in run["checkpoints"]}
        if last in done:
            continue
        with quietly():
            for one in checkpoints(flags, options, done):
                run["checkpoints"].append(one)
                write_json(options.kept, kept)
                print(f"{name}, step {one['step']:,}: distance {one['distance']:.4g}", flush=True)


def correlations(kept: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure -> size -> mean rank correlation with the distance, positive if both prefer the same ones."""
    every = [one for run in kept.values() for one in run["checkpoints"]]
    distance = [one["distance"] for one in every]
    found: dict[str, dict[str, float]] = {}
    for size, sets in every[0]["sizes"].items():
        for name in sets[0]:
            sign = 1 if measure_row(name).better == "lower" else -1
            each = [[sign * one["sizes"][size][k][name] for one in every] for k in range(len(sets))]
            # A number that is the same for all checkpoints cannot rank them.
            each = [spearmanr(distance, of).statistic if len(set(of)) > 1 else 0.0 for of in each]
            found.setdefault(name, {})[size] = statistics.fmean(each)
    return found


def table(kept: dict[str, Any]) -> str:
    """Text of the page: the correlations, in bold from ENOUGH on, and the checkpoints behind them."""
    found, runs = correlations(kept), list(kept.values())
    alone = {name: correlations({name: run}) for name, run in kept.items()}
    sizes = list(next(iter(found.values())))
    few = ALONE if ALONE in sizes else sizes[0]
    rows = []
    for name, of in found.items():
        numbers = [*(of[size] for size in sizes), *(each[name][few] for each in alone.values())]
        rows.append([f"`{name}`", *(f"**{r:.3f}**" if r >= ENOUGH else f"{r:.3f}" for r in numbers)])
    head = ["measure", *(f"{int(size):,} samples" for size in sizes)]
    head += [f"{int(few):,}, {name} alone" for name in alone]
    count = sum(len(run["checkpoints"]) for run in runs)
    said = " and ".join(f"`{run['flags']}`" for run in runs)
    return f"{markdown(head, rows)}\n{count} checkpoints of {said}.\n"


def main() -> None:
    """Measure the checkpoints that are not kept yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reference", type=int, default=REFERENCE, help="samples of the distance")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="samples of a measure")
    parser.add_argument("--every", type=int, default=EVERY, help="steps between two checkpoints")
    parser.add_argument("--more", default="", help="more flags for both trainings")
    torch.set_num_threads(1)
    disable_progress_bar()
    run(parser, KEPT, PART, measure, table)


if __name__ == "__main__":
    main()
