"""What training costs on 1 to 512 GPUs, on paper, and how well the same formulas predict two processes here.

    python benchmarks/cost_model.py            # counts the networks again, and writes the tables
    python benchmarks/cost_model.py --check    # also measures one and two processes on this machine, in 4
                                               # minutes on two busy cores

The numbers are kept in benchmarks/results/cost_model.json, and the tables go between the two markers of
docs/scaling.md. benchmarks/cost/model.py has the formulas, with the source of every assumption.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cost.check import SHAPES, compared, measure
from cost.model import (
    HARDWARE,
    MACHINE,
    PER_OPERATION,
    STATE_BYTES,
    UPDATE_BYTES,
    UTILISATION,
    Work,
    count,
    ring_volume,
    sampling,
    step,
)
from kept_table import Part

from trilemma.training.objectives.ddpm import output_channels
from trilemma.training.options.command_line import parse

KEPT = Path(__file__).parent / "results" / "cost_model.json"
PART = Part(
    Path(__file__).resolve().parents[1] / "docs" / "scaling.md",
    "<!-- written by benchmarks/cost_model.py -->\n",
    "<!-- end of what it writes -->\n",
)
PRESETS = {"cifar10": (32, 3), "imagenet-64": (64, 3)}
"""Preset of the unconditional family -> side and channels of its images."""
GPUS, FEW = (1, 8, 64, 512), 16
"""FEW: images of a GPU, between the recipe's batch shared by all GPUs and the whole of it on each."""
SAMPLES, CALLS = 50_000, (50, 1000)


class Recipe(NamedTuple):
    """Of a preset: its network for one image, images of a step, and steps."""

    work: Work
    batch: int
    steps: int


def recipe(preset: str) -> Recipe:
    """Count a preset."""
    config = parse("unconditional", "", ["--preset", preset, "--output_dir", "unused"])
    side, channels = PRESETS[preset]
    work = count(config.net.net, side, channels, output_channels(config.objective, channels))
    return Recipe(work, config.optim.train_batch_size, config.run.max_train_steps)


def counted() -> dict[str, Any]:
    """All that is counted, as it is kept."""
    recipes = {name: recipe(name) for name in PRESETS}
    return {
        "presets": {name: {**each._asdict(), "work": each.work._asdict()} for name, each in recipes.items()},
        "checked": {name: count(*shape)._asdict() for name, shape in SHAPES.items()},
    }


def section(kept: Mapping[str, Any]) -> str:
    """Markdown of all that is kept."""
    recipes = {name: Recipe(Work(**each["work"]), each["batch"], each["steps"])
               for name, each in kept["presets"].items()}  # fmt: skip
    here = kept.get("here")
    parts = [_networks(recipes, here), _hardware(), _gpus(recipes)]
    if here:
        parts.append(_check(here, {name: Work(**each) for name, each in kept["checked"].items()}))
    return "\n\n".join("\n".join(lines) for lines in parts)


def table(head: str, rows: Iterator[str]) -> list[str]:
    """A Markdown table of rows whose cells are separated by bars."""
    return [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {row} |" for row in rows)]


def _networks(recipes: Mapping[str, Recipe], here: Mapping[str, Any] | None) -> list[str]:
    columns = list(recipes.values())
    h100 = HARDWARE[-1]

    def row(name: str, value) -> str:
        return f"{name} | " + " | ".join(value(each) for each in columns)

    def rows() -> Iterator[str]:
        yield row("parameters", lambda one: f"{one.work.parameters / 1e6:.1f}M")
        yield row("FLOPs of a forward pass, one image", lambda one: f"{one.work.forward / 1e9:.1f}e9")
        yield row("operations of a forward and a backward pass", lambda one: f"{one.work.operations:,}")
        for name, size in STATE_BYTES.items():
            yield row(f"bytes of {name}", lambda one, size=size: _bytes(size * one.work.parameters))
        yield row("activations of one image, in float32", lambda one: _bytes(one.work.activations))
        yield row("activations of the recipe's batch", lambda one: _bytes(one.work.activations * one.batch))
        for gpus in GPUS[1:]:
            volume = f"sent by each of {gpus} GPUs in a step (ring)"
            yield row(volume, lambda one, gpus=gpus: _bytes(ring_volume(gpus, one.work.gradient_bytes)))
        yield row("images of the recipe", lambda one: f"{one.batch * one.steps / 1e6:.1f}M")
        for calls in CALLS:
            name = f"{SAMPLES:,} samples of {calls:,} calls, one {h100.name}, float32"
            yield row(name, lambda one, calls=calls: _time(sampling(one.work, h100, SAMPLES, calls)))
        if here:
            name = "cores that decode for one " + h100.name + " (`--streaming`)"
            yield row(name, lambda one: f"{_speed(one, h100, 1, one.batch) / here['decoded']:.1f}")

    return table("preset | " + " | ".join(f"`{name}`" for name in recipes), rows())


def _hardware() -> list[str]:
    rows = (
        f"{one.name} | {one.bf16 / 1e12:g} | {one.float32 / 1e12:g} | {one.memory / 1e9:,.0f} | "
        f"{one.nvlink / 1e9:g} | {one.network / 1e9:g} | {one.source}"
        for one in HARDWARE
    )
    head = "GPU | bf16, TFLOP/s | float32, TFLOP/s | memory, GB/s | NVLink, GB/s | network of a machine, GB/s"
    return [
        f"Assumed: {UTILISATION:.0%} of the peak, in bf16 and in float32 (what follows from the speed on a "
        "TPU in the paper of the CIFAR-10 recipe), "
        f"{PER_OPERATION * 1e6:g} microseconds of the host for each operation, machines of {MACHINE} GPUs, "
        f"and {sum(UPDATE_BYTES.values())} bytes of memory traffic for each parameter after the backward "
        f"pass ({', '.join(f'{name} {size}' for name, size in UPDATE_BYTES.items())}).",
        "",
        *table(head + " | source", rows),
    ]


def _gpus(recipes: Mapping[str, Recipe]) -> list[str]:
    other, main = HARDWARE
    head = "preset | GPUs | images of a GPU | images of a step | step, ms | all-reduce, ms | "
    head += "of it latency, ms | share not hidden | images/s | of linear | the recipe's images | in steps "
    head += f"| takes most | {other.name}, images/s"

    def rows() -> Iterator[str]:
        for name, one in recipes.items():
            for gpus in GPUS:
                if gpus > one.batch:
                    yield f"`{name}` | {gpus} | less than 1 | {one.batch} | impossible" + " | " * 9
                for batch in sorted({one.batch // gpus, FEW, one.batch} - {0}):
                    yield _row(f"`{name}`", one, gpus, batch)

    def _row(name: str, one: Recipe, gpus: int, batch: int) -> str:
        on = step(one.work, main, gpus, batch)
        linear = gpus * _speed(one, main, 1, one.batch)
        speed = on.images / on.seconds
        return " | ".join([
            name, str(gpus), str(batch), f"{on.images:,}", f"{on.seconds * 1e3:.1f}",
            f"{on.reduce * 1e3:.2f}", f"{on.latency * 1e3:.2f}", f"{on.exposed / on.seconds:.1%}",
            _round(speed), f"{speed / linear:.0%}", _time(one.batch * one.steps / speed),
            f"{one.batch * one.steps / on.images:,.0f}", on.limit, _round(_speed(one, other, gpus, batch)),
        ])  # fmt: skip

    return [f"On {main.name}, in bf16; the last column is another GPU:", "", *table(head, rows())]


def _check(here: Mapping[str, Any], works: Mapping[str, Work]) -> list[str]:
    about = here["machine"]
    rows = (
        f"{SHAPES[one.network][0]} | {one.processes} | {one.images} | "
        + ("gives the FLOP/s" if one.predicted is None else f"{one.predicted:.3f}")
        + f" | {one.measured:.3f} | "
        + ("" if one.predicted is None else f"{one.measured / one.predicted:.2f}")
        + f" | {one.flops / 1e9:.1f} | {one.reduce:.1%}"
        for one in compared(here, works)
    )
    load = " at the start and ".join(str(value) for value in here["load"])
    head = "network | processes | images of a process | predicted, s | measured, s | measured / predicted | "
    head += "GFLOP/s of a process | all-reduce, predicted"
    return [
        f"Two processes of one thread on {about['cores']} cores ({about['processor']}, torch "
        f"{about['versions']['torch']}, float32, gloo; load average {load} at the end, with "
        f"other programs; rounds: {here['rounds']}). Measured beside it: a small all-reduce takes "
        f"{here['latency'] * 1e3:.2f} ms, a large one moves {here['bandwidth'] / 1e9:.2f} GB/s, and a core "
        f"decodes {_round(here['decoded'])} PNGs of 64x64 pixels in a second.",
        "",
        *table(head, rows),
    ]


def _speed(one: Recipe, hardware, gpus: int, batch: int) -> float:
    on = step(one.work, hardware, gpus, batch)
    return on.images / on.seconds


def _round(value: float) -> str:
    """To three digits."""
    return f"{float(f'{value:.3g}'):,.0f}"


def _bytes(size: float) -> str:
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{size / unit:.3g} {name}"


def _time(seconds: float) -> str:
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (0, "s"))
    unit, name = next((max(unit, 1), name) for unit, name in units if seconds >= unit)
    return f"{seconds / unit:.1f} {name}"


def main() -> None:
    """Count, measure if asked to, keep the numbers, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="measure one and two processes on this machine")
    parser.add_argument("--rounds", type=int, default=1, help="with --check: how often each run is measured")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    if options.rounds > 1 and not options.check:
        parser.error(f"--rounds {options.rounds} needs --check")
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept |= counted()
    if options.check:
        kept["here"] = measure(options.rounds)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PART.write(f"\n{section(kept)}\n\n")
    print(section(kept))


if __name__ == "__main__":
    main()
