"""CPU seconds and images until samples are as good as those of diffusers' example at its end.

    python benchmarks/time_to_quality.py digits --seeds 0 1 2
    python benchmarks/time_to_quality.py mnist --train_data_dir mnist --seeds 0 1 2

The example (its defaults: batch 16, 1e-4, epsilon, linear schedule, averaged weights) trains the network of
our preset: 100 epochs of the digits, or one of MNIST. Its distance is the target: of samples in 50 calls of
DDIM and, with --all_calls, in all 1,000 calls, whichever is better. Our preset then trains the same network
on the same images, in the precision that it chooses for itself, and is scored every so many steps, with 50
calls, until it passes the target. Both are scored by the same code (the classifier that comes with trilemma,
the same seeds). Seconds are those of training, without scoring, in one thread.

Each seed is kept in benchmarks/results/time_to_quality.json as soon as it is done, and is not measured again
without --again; the table beside it is written from that file.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from speed.diffusers_example import DiffusersLoop, as_dataset, as_pil
from speed.harness import machine
from speed.ours import OurLoop, fresh_state, quietly

from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing
from trilemma.eval.scoring.yardsticks import Reference, score, yardsticks
from trilemma.pipelines import as_ours
from trilemma.training.devices.chosen import has_bf16
from trilemma.training.images.image_set import Images, cache_folder, load_images
from trilemma.training.loop.loop import published
from trilemma.training.networks.build import make_net
from trilemma.training.options.command_line import parse

CALLS, ALL_CALLS = 50, 1000
KEPT = Path(__file__).parent / "results" / "time_to_quality.json"


class Setting(NamedTuple):
    """A data set: our preset, epochs of the example, our longest training, steps between our scores."""

    preset: str
    epochs: int
    most_steps: int
    every: int
    samples: int
    bf16: bool  # whether the rule of `training/devices/chosen.py` takes it for this network


SETTINGS = {
    "digits": Setting("digits", 100, 1500, 125, 1000, False),
    "mnist": Setting("mnist-cpu", 1, 1500, 100, 500, True),
}


class Reached(NamedTuple):
    """Where a training stood when it was scored."""

    cpu_seconds: float
    images: int
    distance: float


class Judge:
    """Frechet distance of samples to the images under the classifier that comes with trilemma."""

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


def theirs(seed: int, setting: Setting, flags: list[str], all_calls: bool) -> dict[str, Any]:
    """diffusers' example at its end, and its distances by way of sampling."""
    config = parse("unconditional", "", [*flags, "--output_dir", "unused"])
    images = load_images(config.data)
    set_seed(seed)
    net = make_net(config, images, out_channels=images.channels)
    data = as_dataset(as_pil(images))
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        loop = DiffusersLoop(net, data, Path(folder), epochs=setting.epochs)
        began = time.process_time()
        while loop.global_step < loop.total:
            loop.step()
            if loop.global_step % 1000 == 0:
                print(f"diffusers' example, step {loop.global_step:,} of {loop.total:,}", flush=True)
        seconds = time.process_time() - began
        pipeline = as_ours(loop.pipeline(), "unconditional")
        fresh_state()
        judge = Judge(images, setting.samples)
        found = {f"{CALLS} calls of ddim": judge(pipeline.with_sampler("ddim"), CALLS)}
        print(f"diffusers' example, {seconds:.0f} CPU seconds: {found}", flush=True)
        if all_calls:
            found[f"{ALL_CALLS} calls"] = judge(pipeline, ALL_CALLS)
    return {"cpu_seconds": seconds, "images": loop.images_seen, "distances": found}


def ours(setting: Setting, flags: list[str], target: float) -> list[Reached]:
    """Our preset, scored on the way; ends once it is below the target."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        trainer = OurLoop(flags, Path(folder))
        judge = Judge(trainer.images, setting.samples)
        seconds, scored = 0.0, []
        while trainer.loop.step < min(trainer.total, setting.most_steps):
            began = time.process_time()
            trainer.step()
            seconds += time.process_time() - began
            if trainer.loop.step % setting.every == 0:
                with published(trainer.loop.method, trainer.loop.ema) as pipeline:
                    distance = judge(pipeline.with_sampler("dpmsolver++"), CALLS)
                scored.append(Reached(seconds, trainer.loop.images_seen, distance))
                print(f"ours, {scored[-1]}", flush=True)
                if distance < target:
                    break
        trainer.loop.runlog.close()
        return scored


def measure(seed: int, data: str, options: argparse.Namespace) -> dict[str, Any]:
    """One seed of both."""
    setting = SETTINGS[data]
    precision = "bf16" if setting.bf16 and has_bf16(torch.device("cpu")) else "no"
    source = ["--train_data_dir", options.train_data_dir] if options.train_data_dir else []
    flags = ["--preset", setting.preset, "--seed", str(seed), *source]
    with quietly():
        end = theirs(seed, setting, flags, options.all_calls)
        scored = ours(setting, [*flags, "--mixed_precision", precision], min(end["distances"].values()))
    return {
        "data": data, "seed": seed, "samples": setting.samples, "example": end, "precision": precision,
        "ours": [reached._asdict() for reached in scored], "machine": machine(),
    }  # fmt: skip


def table(kept: list[dict[str, Any]]) -> str:
    """Markdown of all that is kept."""
    lines = ["| data | seed | training | images | CPU seconds | fd_classifier |", "|---|---|---|---|---|---|"]
    ratios: dict[str, list[float]] = {}
    for one in sorted(kept, key=lambda one: (one["data"], one["seed"])):
        end, last, start = one["example"], one["ours"][-1], f"| {one['data']} | {one['seed']} |"
        target = min(end["distances"].values())
        found = ", ".join(f"{distance:.2f} in {way}" for way, distance in end["distances"].items())
        lines.append(f"{start} diffusers' example | {end['images']:,} | {end['cpu_seconds']:.0f} | {found} |")
        name = f"ours, {'bf16' if one['precision'] == 'bf16' else 'float32'}"
        name += "" if last["distance"] < target else ", target not reached"
        found = f"{last['distance']:.2f} in {CALLS} calls of dpmsolver++"
        lines.append(f"{start} {name} | {last['images']:,} | {last['cpu_seconds']:.0f} | {found} |")
        if last["distance"] < target:
            ratios.setdefault(one["data"], []).append(end["cpu_seconds"] / last["cpu_seconds"])
    for data, found in ratios.items():
        seeds = f"{len(found)} seed{'' if len(found) == 1 else 's'}"
        lines.append(
            f"\n{data}: CPU seconds of diffusers' example over ours, median of {seeds}: "
            f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})."
        )
    if kept:
        lines.append(f"\nMachine of the last: {kept[-1]['machine']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is not kept yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", choices=SETTINGS, help="digits, or mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of training")
    parser.add_argument("--train_data_dir", help="folder of the images, where they are not embedded")
    parser.add_argument("--all_calls", action="store_true", help="score the example in 1,000 calls, too")
    parser.add_argument("--again", action="store_true", help="measure seeds again that are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    for seed in options.seeds:
        same = [one for one in kept if (one["data"], one["seed"]) == (options.data, seed)]
        if same and not options.again:
            continue
        new = measure(seed, options.data, options)
        kept = [one for one in kept if one not in same] + [new]
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    KEPT.with_suffix(".md").write_text(table(kept), encoding="utf-8")
    print(table(kept))


if __name__ == "__main__":
    main()
