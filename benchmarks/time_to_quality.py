"""CPU seconds and images until samples are as good as those of diffusers' example at its end.

    python benchmarks/time_to_quality.py digits --seeds 0 1 2
    python benchmarks/time_to_quality.py mnist --train_data_dir mnist --seeds 0 1 2

The example (its defaults: batch 16, 1e-4, epsilon, linear schedule, averaged weights) trains the network of
our preset: 100 epochs of the digits, or one of MNIST. Its distance is the target: of samples in 50 calls of
DDIM and, with --all_calls, in all 1,000 calls, whichever is better. Our preset then trains the same network
on the same images, in the precision that it chooses for itself, with --max_train_steps: each length of
SETTINGS is a whole training, and the shortest whose end passes the target counts. Both are scored by the same
code (the classifier that comes with trilemma, the same seeds), ours with 50 calls, too.

The seconds of a training are its steps times the CPU time of a step. That is the median of `ROUNDS`, in which
both take their turn in one process and one thread: another program slows both alike.

Each number is kept in benchmarks/results/time_to_quality.json as soon as it is there, and is not measured
again without --again; the table beside it is written from that file.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from diffusers.utils.logging import disable_progress_bar
from speed.diffusers_example import DiffusersLoop, as_dataset, as_pil
from speed.harness import machine
from speed.judge import Judge
from speed.ours import OurLoop, fresh_state, quietly

from trilemma.pipelines import as_ours
from trilemma.pipelines.files.writing import write_json, write_text
from trilemma.training.devices.chosen import has_bf16
from trilemma.training.images.image_set import Images, load_images
from trilemma.training.loop.loop import published
from trilemma.training.networks.build import make_net
from trilemma.training.options.command_line import parse

CALLS, ALL_CALLS = 50, 1000
KEPT = Path(__file__).parent / "results" / "time_to_quality.json"


class Setting(NamedTuple):
    """A data set: our preset, flags beside it, epochs of the example, lengths of our trainings in steps."""

    preset: str
    flags: tuple[str, ...]
    epochs: int
    lengths: tuple[int, ...]
    samples: int
    bf16: bool  # whether the rule of `training/devices/chosen.py` takes it for this network


SHORT = ("--ema_max_decay", "0.99", "--snr_gamma", "5")
"""The presets are for longer trainings: here the average is shorter, and min-SNR weights help (digits, 800
steps: 3.1 with them, 3.7 without)."""

SETTINGS = {
    "digits": Setting("digits", SHORT, 100, (400, 600, 800, 1000, 1400), 1000, False),
    "mnist": Setting(
        "mnist-cpu",
        (*SHORT, "--train_batch_size", "32", "--lr_warmup_steps", "40"),
        1,
        (200, 300, 400, 600, 900),
        500,
        True,
    ),
}

ROUNDS, WARM, STEPS = 9, 2, 10
"""Rounds that are timed, rounds before them that are not timed, and steps in a round."""


def theirs(seed: int, setting: Setting, flags: list[str], all_calls: bool) -> dict[str, Any]:
    """diffusers' example at its end, and its distances by way of sampling."""
    with example(setting, [*flags, "--seed", str(seed)]) as (loop, images):
        while loop.global_step < loop.total:
            loop.step()
            if loop.global_step % 1000 == 0:
                print(f"diffusers' example, step {loop.global_step:,} of {loop.total:,}", flush=True)
        pipeline = as_ours(loop.pipeline(), "unconditional")
        fresh_state()
        judge = Judge(images, setting.samples)
        found = {f"{CALLS} calls of ddim": judge(pipeline.with_sampler("ddim"), CALLS)}
        if all_calls:
            found[f"{ALL_CALLS} calls"] = judge(pipeline, ALL_CALLS)
    return {"steps": loop.total, "images": loop.images_seen, "distances": found}


@contextmanager
def example(setting: Setting, flags: list[str]) -> Iterator[tuple[DiffusersLoop, Images]]:
    """diffusers' example before its first step, and its images."""
    config = parse("unconditional", "", [*flags, "--output_dir", "unused"])
    images = load_images(config.data)
    set_seed(config.run.seed)
    net = make_net(config, images, out_channels=images.channels)
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        yield DiffusersLoop(net, as_dataset(as_pil(images)), Path(folder), epochs=setting.epochs), images


def ours(seed: int, setting: Setting, flags: list[str], steps: int) -> dict[str, Any]:
    """A training of this length, and the distance at its end."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        trainer = OurLoop([*flags, "--seed", str(seed), "--max_train_steps", str(steps)], Path(folder))
        judge = Judge(trainer.images, setting.samples)
        while trainer.loop.step < trainer.total:
            trainer.step()
        with published(trainer.loop.method, trainer.loop.ema) as pipeline:
            distance = judge(pipeline.with_sampler("dpmsolver++"), CALLS)
        trainer.loop.runlog.close()
        return {"steps": steps, "images": trainer.loop.images_seen, "distance": distance}


def costs(setting: Setting, flags: list[str], our_flags: list[str]) -> dict[str, float]:
    """CPU seconds of a step of each; the two take turns."""
    times: dict[str, list[float]] = {"example": [], "ours": []}
    with example(setting, flags) as (theirs_loop, _), tempfile.TemporaryDirectory() as folder:
        fresh_state()
        loops = {"example": theirs_loop, "ours": OurLoop(our_flags, Path(folder))}
        for number in range(WARM + ROUNDS):
            for name in sorted(loops, reverse=number % 2 == 1):
                began = time.process_time()
                for _ in range(STEPS):
                    loops[name].step()
                times[name] += [(time.process_time() - began) / STEPS] if number >= WARM else []
        loops["ours"].loop.runlog.close()
    return {name: statistics.median(of) for name, of in times.items()}


def passed(one: dict[str, Any]) -> bool:
    """Whether the last of our trainings is as good as the example."""
    return bool(one["ours"]) and one["ours"][-1]["distance"] < min(one["example"]["distances"].values())


def table(kept: dict[str, Any]) -> str:
    """Markdown of all that is kept."""
    lines = ["| data | seed | training | images | CPU seconds | fd_classifier |", "|---|---|---|---|---|---|"]
    remarks = []
    for data, study in kept.items():
        cost, ratios = study["seconds_per_step"], []
        for seed, one in sorted(study["seeds"].items()):
            end, start = one["example"], f"| {data} | {seed} |"
            seconds = end["steps"] * cost["example"]
            found = ", ".join(f"{distance:.2f} in {way}" for way, distance in end["distances"].items())
            lines.append(f"{start} diffusers' example | {end['images']:,} | {seconds:.0f} | {found} |")
            for run in one["ours"]:
                name = f"ours, {run['steps']:,} steps"
                cells = f"{run['images']:,} | {run['steps'] * cost['ours']:.0f} | {run['distance']:.2f}"
                lines.append(f"{start} {name} | {cells} in {CALLS} calls of dpmsolver++ |")
            ratios += [seconds / (one["ours"][-1]["steps"] * cost["ours"])] if passed(one) else []
        if ratios:
            seeds = f"{len(ratios)} seed{'' if len(ratios) == 1 else 's'}"
            remarks.append(
                f"{data}: CPU seconds of diffusers' example over ours, median of {seeds}: "
                f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}). "
                f"n {study['samples']}, precision {study['precision']}, {study['machine']['processor']}"
            )
    return "\n".join([*lines, "", *remarks]) + "\n"


def measure(study: dict[str, Any], setting: Setting, options: argparse.Namespace) -> Iterator[None]:
    """Measure what is missing; the caller saves each number as it comes."""
    source = ["--train_data_dir", options.train_data_dir] if options.train_data_dir else []
    flags = ["--preset", setting.preset, *source]
    our_flags = [*flags, *setting.flags, "--mixed_precision", study["precision"]]
    if "seconds_per_step" not in study:
        study["seconds_per_step"] = costs(setting, flags, our_flags)
        yield
    for seed in options.seeds:
        one = study["seeds"].setdefault(str(seed), {"ours": []})
        if "example" not in one:
            one["example"] = theirs(seed, setting, flags, options.all_calls)
            yield
        for steps in setting.lengths[len(one["ours"]) :]:
            if passed(one):
                break
            one["ours"].append(ours(seed, setting, our_flags, steps))
            print(one["ours"][-1], flush=True)
            yield


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
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    setting = SETTINGS[options.data]
    precision = "bf16" if setting.bf16 and has_bf16(torch.device("cpu")) else "no"
    new = {"samples": setting.samples, "precision": precision, "machine": machine(), "seeds": {}}
    study = new if options.again else kept.get(options.data, new)
    kept[options.data] = study
    with quietly():
        for _ in measure(study, setting, options):
            write_json(KEPT, kept)
            write_text(KEPT.with_suffix(".md"), table(kept))
    print(table(kept))


if __name__ == "__main__":
    main()
