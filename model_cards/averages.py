"""Model folders of averages that no training tracked: the body of `training/average.py`.

Such a folder looks like that of a training with `--ema_std`: the flags in its config.yaml train it again. Its
run.json has the facts of the training, and how the average was made.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from trilemma.eval.plots.sheets import sheet
from trilemma.eval.scoring.model_images import load_model
from trilemma.eval.studies.processes import Children, last_lines
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.rendering.render import write_card
from trilemma.pipelines.files.writing import write_json, write_text, written
from trilemma.training.images.points import draws_points
from trilemma.training.loop.ema import kept_profiles, weighted_sum
from trilemma.training.options.flags import dump
from trilemma.training.output_folder import OutputFolder, own_sampling
from trilemma.training.post_hoc import (
    TRACKS,
    UNIFORM,
    WORST_FIT,
    Profile,
    combine,
    halflife_of,
    power_of,
    power_of_halflife,
    std_of,
)
from trilemma.training.progress import Progress
from trilemma.training.sampling import every_class, sample

EVALUATE, COMPARE = "trilemma.eval.evaluate", "trilemma.eval.compare"
OURS = ("--model", "--images", "--output")
"""Flags of `eval/evaluate.py` that are not the user's to give here."""


@dataclass(frozen=True)
class Planned:
    """An average to make: its folder, its length, and the factors of the snapshots in its sum.

    made: an earlier run has made it.
    """

    folder: OutputFolder
    std: float
    weights: list[float]
    facts: dict[str, float]
    made: bool


def average(config, scoring: Sequence[str] | None) -> None:
    """Do what the flags of `training/average.py` ask for; scoring: flags of `eval/evaluate.py`, or None."""
    if not config.model:
        raise ValueError("--model must name the output folder of a training")
    parent = OutputFolder(Path(config.model))
    if wrong := [word for word in scoring or () if word.split("=")[0] in OURS]:
        raise ValueError(f"after the --, {wrong[0]} has no place: each average is scored, in its own folder")
    plans = plan(config, parent)
    folder = plans[0].folder.path.parent
    with Children() as children:
        if scoring is not None:
            _run(children, [EVALUATE, "--model", config.model, *scoring, "--dry_run"], folder / "check.log")
        for planned in plans:
            if not planned.made:
                make(planned, parent)
            write_card(planned.folder.path)
            print(f"{planned.folder.path}: the average of --ema_std {planned.std:g}", flush=True)
            if scoring is not None:
                log = folder / f"{planned.folder.path.name}.log"
                _run(children, [EVALUATE, "--model", str(planned.folder.path), *scoring], log)
                write_card(planned.folder.path)
    if scoring is not None:
        models = [str(planned.folder.path) for planned in plans]
        subprocess.run(
            [sys.executable, "-m", COMPARE, "--models", *models, "--output_dir", folder], check=True
        )


def _run(children: Children, words: Sequence[str], log: Path) -> None:
    """Run an entry point; SystemExit with the end of its log where it fails or a signal ends it."""
    code = children.run([sys.executable, "-m", *words], log)
    if children.stopped or code:
        raise SystemExit(children.stopped or f"{words[0]} failed:\n{last_lines(log)}")


def plan(config, parent: OutputFolder) -> list[Planned]:
    """The averages to make of the model; ValueError, before any is made, if one is not possible."""
    run, kept = parent.read_run(), kept_profiles(parent.averages)
    parent.read_index()
    if not kept or kept[-1].step != run.get("steps"):
        last = f"end at step {kept[-1].step}" if kept else "are not there"
        raise ValueError(
            f"the snapshots of {parent.path} {last}, and its model is of step {run.get('steps')}: train "
            "another one, from the beginning to the end, with --ema_snapshot_steps"
        )
    powers = _powers(config, run["images_seen"])
    root, plans = Path(config.output_dir or f"{parent.path}-averages"), []
    for name, power in powers.items():
        folder = OutputFolder(root / name)
        weights, error = combine(kept, Profile(power, kept[-1].step))
        if error > WORST_FIT:
            raise ValueError(
                f"{name}: {len(kept) // len(TRACKS)} snapshots leave its profile an error of {error:.0%}; "
                f"take a length nearer to {TRACKS[0]:g} .. {TRACKS[1]:g}, or train with more snapshots "
                "(--ema_snapshot_steps)"
            )
        std = float(f"{std_of(power):.10g}")  # as it was typed, but for the rounding of its power
        facts = {"std": std, "halflife_images": halflife_of(power) * run["images_seen"]}
        facts |= {"snapshots": len(kept) // len(TRACKS), "profile_error": error}
        made = folder.run.is_file() and folder.read_run() == run | {"average": facts}
        if folder.path.exists() and not made:
            raise ValueError(f"--output_dir: {folder.path} exists; delete it, or name another folder")
        plans.append(Planned(folder, std, weights.tolist(), facts, made))
    return plans


def _powers(config, images: int) -> dict[str, float]:
    """Name of the folder -> power, for each length; images: that the training saw."""
    if not config.std and not config.halflife:
        raise ValueError("give lengths: --std, or --halflife in images")
    for std in config.std or ():
        if not 0 < std <= UNIFORM:
            raise ValueError(
                f"--std must be above 0 and at most {UNIFORM:.6f} (all steps count the same); got {std:g}"
            )
    for halflife in config.halflife or ():
        if not 0 < halflife <= images / 2:
            raise ValueError(
                f"--halflife must be above 0 and at most half of the {images:,} images of the training; "
                f"got {halflife:g}"
            )
    powers = [(f"std-{std:g}", power_of(std)) for std in config.std or ()]
    powers += [(f"halflife-{h:g}", power_of_halflife(h / images)) for h in config.halflife or ()]
    names = [name for name, _ in powers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two of the lengths would have the folder {twice[0]}; give one of them")
    return dict(powers)


def make(planned: Planned, parent: OutputFolder) -> None:
    """Write the folder of an average, but for its card; it has another name until it is whole."""
    whole, config = planned.folder.path, parent.read_config()
    folder = OutputFolder(whole.with_name(f"{whole.name}.partial"))
    shutil.rmtree(folder.path, ignore_errors=True)  # of a run that was stopped
    pipeline = load_model(str(parent.path), torch.device("cpu"))
    weights = weighted_sum(parent.averages, planned.weights)
    own = dict(pipeline.network.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: w.shape for n, w in weights.items()}:
        raise ValueError(f"the snapshots in {parent.averages} are of another network than the model's")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    save_bundle(pipeline, folder.path)
    flags = {"ema_std": planned.std, "ema_halflife_images": None, "ema_snapshot_steps": 0, "use_ema": True}
    write_text(folder.config, dump(config | flags | {"output_dir": str(whole)}))
    write_json(folder.run, parent.read_run() | {"average": planned.facts})
    if parent.about.exists():
        shutil.copy(parent.about, folder.about)
    with Progress("drawing the sample sheet"):
        _draw(pipeline, config, folder)
    folder.path.rename(whole)


def _draw(pipeline: DiffusionPipeline, config: dict[str, Any], folder: OutputFolder) -> None:
    """samples.png, with the seeds and the sampler of the training's own samples."""
    count, names = config["eval_batch_size"], pipeline.class_names
    sampler, steps = own_sampling(config)
    pipeline = pipeline.with_sampler(sampler)
    labels = every_class(len(names) if names else None, count)
    steps = pipeline.steps(steps)
    images = sample(pipeline, range(count), batch_size=count, num_inference_steps=steps, class_labels=labels)
    with written(folder.samples) as file:
        sheet(images, points=draws_points(pipeline), class_names=names).save(file, format="png")
