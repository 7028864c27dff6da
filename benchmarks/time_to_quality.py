"""CPU seconds and images until samples are as good as those of diffusers' example at its end.

    python benchmarks/time_to_quality.py [--seeds 0 1 2]

The example (its defaults: batch 16, 1e-4, epsilon, linear schedule, averaged weights) trains the network of
our digits preset for 100 epochs of the 1,797 digits. Its distance is that of 1,000 samples, drawn with all
1,000 calls of the network and with 50 of DDIM; the better one is the target. Our preset then trains the same
network on the same images, and is scored every --eval_steps steps, with 50 calls, until it passes the target.
Both are scored by the same code (the classifier of the digits that comes with trilemma, seeds 0 to 999).
Seconds are those of training, without scoring, in one thread.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from speed.diffusers_example import DiffusersLoop, as_dataset, as_pil
from speed.ours import OurLoop, fresh_state, quietly

from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing
from trilemma.eval.scoring.yardsticks import Reference, score, yardsticks
from trilemma.pipelines import as_ours
from trilemma.training.images.image_set import Images, cache_folder, load_images
from trilemma.training.loop.loop import published
from trilemma.training.networks.build import make_net
from trilemma.training.options.command_line import parse
from trilemma.training.options.groups import DataConfig

CALLS, ALL_CALLS, SAMPLES = 50, 1000, 1000


class Reached(NamedTuple):
    """Where a training stood when it was scored."""

    cpu_seconds: float
    images: int
    distance: float


class Judge:
    """Frechet distance of samples to the digits under the classifier that comes with trilemma."""

    def __init__(self, images: Images, samples: int):
        self.accelerator, self.samples = Accelerator(cpu=True), samples
        reference = Reference(images)
        self.sticks = yardsticks(("fd",), "classifier", reference, self.accelerator, cache_folder(None))

    def __call__(self, pipeline: DiffusionPipeline, steps: int) -> float:
        pipeline.set_progress_bar_config(disable=True)
        sampling = SamplingConfig(num_samples=self.samples, num_inference_steps=steps)
        drawing = Drawing(pipeline, "model", sampling, 250, self.accelerator)
        scores = score(self.sticks, drawing, self.samples, self.accelerator, force=True)
        return next(iter(scores.values()))["fd"].value


def theirs(seed: int, options: argparse.Namespace, images: Images) -> tuple[Reached, float]:
    """diffusers' example at its end: scored with all calls, and the distance in 50 calls of DDIM."""
    set_seed(seed)
    config = parse("unconditional", "", ["--output_dir", "unused"])
    net = make_net(config, images, out_channels=images.channels)
    data = as_dataset(as_pil(images))
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        loop = DiffusersLoop(net, data, Path(folder), epochs=options.epochs)
        began = time.process_time()
        while loop.global_step < loop.total:
            loop.step()
            if loop.global_step % 1000 == 0:
                print(f"diffusers' example, step {loop.global_step:,} of {loop.total:,}", flush=True)
        seconds = time.process_time() - began
        pipeline = as_ours(loop.pipeline(), "unconditional")
        fresh_state()
        judge = Judge(images, options.num_samples)
        few = judge(pipeline.with_sampler("ddim"), CALLS)
        print(
            f"diffusers' example in {CALLS} calls of DDIM: {few:.3f}; {seconds:.0f} CPU seconds", flush=True
        )
        every = few if options.few_calls else judge(pipeline, ALL_CALLS)
        return Reached(seconds, loop.images_seen, every), few


def ours(seed: int, options: argparse.Namespace, target: float) -> list[Reached]:
    """Our preset, scored on the way; ends once it is below the target."""
    flags = ["--preset", "digits", "--seed", str(seed), "--max_train_steps", str(options.max_train_steps)]
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        trainer = OurLoop(flags, Path(folder))
        judge = Judge(trainer.images, options.num_samples)
        seconds, scored = 0.0, []
        while trainer.loop.step < trainer.total:
            began = time.process_time()
            trainer.step()
            seconds += time.process_time() - began
            if trainer.loop.step % options.eval_steps == 0 or trainer.loop.step == trainer.total:
                with published(trainer.loop.method, trainer.loop.ema) as pipeline:
                    distance = judge(pipeline.with_sampler(options.sampler), CALLS)
                scored.append(Reached(seconds, trainer.loop.images_seen, distance))
                print(f"ours, {scored[-1]}", flush=True)
                if distance < target:
                    break
        trainer.loop.runlog.close()
        return scored


def _cells(seed: int, what: str, reached: Reached, found: str) -> str:
    return f"| {seed} | {what} | {reached.images:,} | {reached.cpu_seconds:.0f} | {found} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of training")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of diffusers' example")
    parser.add_argument("--max_train_steps", type=int, default=1500, help="longest training of ours")
    parser.add_argument("--eval_steps", type=int, default=125, help="steps between two of our scores")
    parser.add_argument("--num_samples", type=int, default=SAMPLES, help="samples of a score")
    parser.add_argument("--sampler", default="dpmsolver++", help="our sampler")
    parser.add_argument("--target", type=float, help="a distance; without it, that of diffusers' example")
    skip = "score diffusers' example with 50 calls alone: 1,000 of them take longer than its training"
    parser.add_argument("--few_calls", action="store_true", help=skip)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    rows, ratios = [], []
    images = load_images(DataConfig(dataset_name="digits"))
    for seed in options.seeds:
        with quietly():
            end, few = theirs(seed, options, images) if options.target is None else (None, options.target)
            target = min(end.distance, few) if end else few
            last = ours(seed, options, target)[-1]
        if end:
            every = "" if options.few_calls else f"{end.distance:.2f} in {ALL_CALLS:,} calls, "
            found = f"{every}{few:.2f} in {CALLS} of DDIM"
            rows.append(_cells(seed, "diffusers' example", end, found))
        won = last.distance < target
        found = f"{last.distance:.2f} in {CALLS} calls of {options.sampler}"
        rows.append(_cells(seed, "ours" if won else "ours, target not reached", last, found))
        ratios += [end.cpu_seconds / last.cpu_seconds] if won and end else []
    print("\n| seed | training | images | CPU seconds | fd_classifier |\n|---|---|---|---|---|")
    print("\n".join(rows))
    if ratios:
        print(f"\nCPU seconds of diffusers' example over ours: median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
