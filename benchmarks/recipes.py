"""Which change of a recipe pays: each alone, at equal CPU seconds of training, over training seeds.

    python benchmarks/recipes.py digits --seeds 0 1 2
    python benchmarks/recipes.py mnist --train_data_dir mnist --seeds 0 1 2 --only "noise as target"
    python benchmarks/recipes.py airplanes-16 --train_data_dir cifar10

Every variation trains the network of the base for the same CPU seconds: its steps are those seconds over the
CPU time of its own step, which is the median of rounds in which the base and the variation take their turn,
in one process and one thread. The trained model is scored by `fd_classifier` (plain value) of samples of
seeds 0, 1, ..., drawn with its family's best few-step sampler (so "flow" changes two things). The verdict
compares its trainings with those of the base (Welch's t, 95%, for each pair alone: of 14, one may be by
chance).

Each number is kept in benchmarks/results/recipes.json as soon as it is there, and is not measured again; the
table beside it is written from that file.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils.logging import disable_progress_bar
from speed.harness import chosen, machine
from speed.judge import Judge
from speed.ours import OurLoop, fresh_state, quietly

from trilemma.eval.scoring.naming import number
from trilemma.eval.studies.repeats import mean_interval, verdict
from trilemma.eval.studies.tables import markdown
from trilemma.pipelines.files.writing import write_json, write_text
from trilemma.training.loop.loop import published

KEPT = Path(__file__).parent / "results" / "recipes.json"
BASE = "the base"


class Variation(NamedTuple):
    """What is changed: flags beside those of the base, which they override; or another family."""

    flags: tuple[str, ...] = ()
    family: str = "unconditional"


class Setting(NamedTuple):
    """A data set: flags of the base, CPU seconds of a training, samples and calls, the judge if not the
    data's own."""

    flags: tuple[str, ...]
    seconds: int
    samples: int
    judge: str | None = None
    calls: int = 10


COMMON = (
    "--lr_scheduler", "cosine", "--lr_warmup_steps", "40", "--adam_beta2", "0.99", "--ema_max_decay", "0.99",
    "--train_batch_size", "32",
)  # fmt: skip
DDPM = ("--prediction_type", "v_prediction", "--ddpm_beta_schedule", "squaredcos_cap_v2")
SMALL = (*COMMON, "--net", "unet_28_small", "--learning_rate", "2e-3", "--mixed_precision", "no")
AIRPLANES = ("--classes", "airplane", "--resolution", "16", "--random_flip")
SETTINGS = {
    "digits": Setting(
        ("--dataset_name", "digits", *COMMON, "--net", "unet_8", "--learning_rate", "4e-3"), 40, 1000
    ),
    "mnist": Setting(SMALL, 100, 500),
    "airplanes-16": Setting((*SMALL, *AIRPLANES), 60, 500, "cifar10-16"),
}
VARIATIONS = {
    BASE: Variation(),
    "noise as target": Variation(("--prediction_type", "epsilon")),
    "the image as target": Variation(("--prediction_type", "sample")),
    "linear schedule": Variation(("--ddpm_beta_schedule", "linear")),
    "min-SNR weights": Variation(("--snr_gamma", "5")),
    "Huber loss": Variation(("--loss_type", "huber")),
    "half the rate": Variation(("--learning_rate", "x0.5")),
    "twice the rate": Variation(("--learning_rate", "x2")),
    "batches of 16": Variation(("--train_batch_size", "16")),
    "batches of 64": Variation(("--train_batch_size", "64")),
    "longer average": Variation(("--ema_max_decay", "0.999")),
    "beta2 0.999": Variation(("--adam_beta2", "0.999")),
    "flow": Variation(family="flow"),
    "flow, logit-normal times": Variation(("--time_density", "logit_normal"), "flow"),
    "flow, optimal coupling": Variation(("--coupling", "optimal"), "flow"),
}
SAMPLERS = {"unconditional": "dpmsolver++", "flow": "shifted-dpmsolver++"}
ROUNDS, WARM, STEPS = 5, 1, 8
"""Rounds that are timed, rounds before them that are not timed, and steps in a round."""


def flags_of(setting: Setting, variation: Variation, source: list[str]) -> list[str]:
    """The command line of a variation, without seed and length."""
    base = [*setting.flags, *(DDPM if variation.family == "unconditional" else ())]
    changed = list(variation.flags)
    if changed and changed[1].startswith("x"):
        before = float(base[base.index(changed[0]) + 1])
        changed[1] = str(before * float(changed[1][1:]))
    return [*base, *source, *changed]


def step_seconds(setting: Setting, variations: dict[str, Variation], source: list[str]) -> dict[str, list]:
    """CPU seconds of a step in each round; the variations take turns."""
    found: dict[str, list[float]] = {name: [] for name in variations}
    with tempfile.TemporaryDirectory() as folder:
        loops = {}
        for name, each in variations.items():
            fresh_state()
            flags = [*flags_of(setting, each, source), "--max_train_steps", "100000"]
            loops[name] = OurLoop(flags, Path(folder) / name, each.family)
        for round_number in range(WARM + ROUNDS):
            for name in list(loops)[:: 1 if round_number % 2 else -1]:
                began = time.process_time()
                for _ in range(STEPS):
                    loops[name].step()
                found[name].append((time.process_time() - began) / STEPS)
        for loop in loops.values():
            loop.loop.runlog.close()
    return {name: seconds[WARM:] for name, seconds in found.items()}


def cost(setting: Setting, variation: Variation, source: list[str]) -> float:
    """The CPU time of a step of the variation over that of the base."""
    seconds = step_seconds(setting, {BASE: VARIATIONS[BASE], "changed": variation}, source)
    return statistics.median(a / b for a, b in zip(seconds["changed"], seconds[BASE], strict=True))


def trained(setting: Setting, variation: Variation, flags: list[str]) -> float:
    """The distance at the end of a training."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_state()
        trainer = OurLoop(flags, Path(folder), variation.family)
        while trainer.loop.step < trainer.total:
            trainer.step()
        judge = Judge(trainer.images, setting.samples, setting.judge)
        with published(trainer.loop.method, trainer.loop.ema) as pipeline:
            distance = judge(pipeline.with_sampler(SAMPLERS[variation.family]), setting.calls)
        trainer.loop.runlog.close()
        return distance


def measure(study: dict[str, Any], setting: Setting, options: argparse.Namespace) -> Iterator[None]:
    """Measure what is missing; the caller saves each number as it comes."""
    source = ["--train_data_dir", options.train_data_dir] if options.train_data_dir else []
    if "seconds_per_step" not in study:
        seconds = step_seconds(setting, {BASE: VARIATIONS[BASE]}, source)
        study["seconds_per_step"] = statistics.median(seconds[BASE])
        yield
    for seed in options.seeds:
        for name in options.only:
            variation = VARIATIONS[name]
            one = study["variations"].setdefault(name, {"cost": None, "distances": {}})
            if one["cost"] is None:
                one["cost"] = 1.0 if name == BASE else cost(setting, variation, source)
            if str(seed) in one["distances"]:
                continue
            steps = round(setting.seconds / (study["seconds_per_step"] * one["cost"]))
            flags = [*flags_of(setting, variation, source), "--seed", str(seed)]
            distance = trained(setting, variation, [*flags, "--max_train_steps", str(steps)])
            one["steps"], one["distances"][str(seed)] = steps, distance
            print(f"{name}, seed {seed}: {steps} steps, {distance:.2f}", flush=True)
            yield


def all_kept() -> dict[str, Any]:
    """What is kept of every data set."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def table(kept: dict[str, Any]) -> str:
    """Markdown of all that is kept, the best first."""
    parts = []
    for data, study in kept.items():
        setting = SETTINGS[data]
        values = {name: list(one["distances"].values()) for name, one in study["variations"].items()}
        values = {name: found for name, found in values.items() if found}
        rows = []
        for name, found in sorted(values.items(), key=lambda item: statistics.fmean(item[1])):
            one = study["variations"][name]
            error = f" +- {number(mean_interval(found)[1])}" if len(found) > 1 else ""
            said = ["", ""] if name == BASE else verdict(found, values[BASE], "lower")
            rows.append([
                name, f"{one['steps']:,}", f"{one['cost']:.2f}", f"{number(statistics.fmean(found))}{error}",
                str(len(found)), *said,
            ])  # fmt: skip
        header = ["change", "steps", "cost of a step", "fd_classifier", "seeds", "less the base", "verdict"]
        flags = " ".join([*setting.flags, *DDPM])
        parts += [
            f"## {data}\n",
            f"{setting.seconds} CPU seconds of training in one thread of {study['machine']['processor']}, "
            f"n {setting.samples}, {setting.calls} calls; mean and standard error over seeds.\n",
            f"Base: `train_unconditional.py {flags}`\n",
            markdown(header, rows),
        ]
    return "\n".join(parts)


def main() -> None:
    """Measure what is not kept yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", choices=SETTINGS, help="the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of training")
    parser.add_argument("--train_data_dir", help="folder of the images, where they are not embedded")
    parser.add_argument("--only", nargs="+", metavar="CHANGE", help=", ".join(VARIATIONS))
    options = parser.parse_args()
    try:
        options.only = chosen(list(VARIATIONS), options.only and [BASE, *options.only])
    except ValueError as problem:
        parser.error(str(problem))
    torch.set_num_threads(1)
    disable_progress_bar()
    kept = all_kept()
    study = kept.setdefault(options.data, {"machine": machine(), "variations": {}})
    with quietly():
        for _ in measure(study, SETTINGS[options.data], options):
            kept = {**all_kept(), options.data: study}  # another data set may be measured at the same time
            write_json(KEPT, kept)
            write_text(KEPT.with_suffix(".md"), table(kept))
    print(table(kept))


if __name__ == "__main__":
    main()
