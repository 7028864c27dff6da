"""The points of a sweep as jobs: their commands, their settings, and the check of their flags."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilemma.eval.options import SAVED, ModelConfig, SamplingConfig, ScoreConfig, check_choices, samplers_of
from trilemma.eval.studies.questions import (
    SWEEPS,
    Flags,
    Point,
    Sweep,
    own_sweep,
    typed,
    with_seeds,
    words,
)
from trilemma.training import families
from trilemma.training.options import plugins
from trilemma.training.options.command_line import parse
from trilemma.training.options.flags import HUB_ID, flags_of, flatten
from trilemma.training.options.parser import parse_flags
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import loading_libraries


@dataclass(frozen=True)
class Scoring:
    """The flags of `eval/evaluate.py` on which a point's numbers depend."""

    sampling: SamplingConfig
    score: ScoreConfig


@dataclass(frozen=True)
class Job:
    """A point, the commands that make it, and the settings that its lines must have.

    samplers: the choices of --sampler. takes_classes: whether its model is class-conditional. Both as far as
    the flags of its training say.
    """

    point: Point
    folder: Path
    train: list[str] | None
    score: list[str]
    settings: dict[str, Any]
    samplers: tuple[str, ...] = ()
    takes_classes: bool = True

    @property
    def log(self) -> Path:
        """What the commands print; beside the folder, which is the training's own."""
        return self.folder.with_name(f"{self.folder.name}.log")


def chosen(config, training: Sequence[str]) -> tuple[str, Sweep]:
    """Name and row of the question."""
    grid, model = config.grid, config.model.model
    if (grid.question is None) == (grid.grid is None):
        raise ValueError("give one of --question and --grid")
    row = SWEEPS[grid.question] if grid.question else own_sweep(grid.grid, None if model else grid.family)
    if row.family is None and model is None:
        raise ValueError(f"--question {grid.question} samples a trained model: give its --model")
    if row.family and model:
        raise ValueError(f"--question {grid.question} trains its models; --model has no effect on it")
    from_hub = model and HUB_ID.fullmatch(model) and not Path(model).exists()
    if model and not from_hub and not OutputFolder(Path(model)).index.is_file():
        raise ValueError(f"--model {model!r} is neither a folder with a model_index.json nor a Hub id")
    if model and training:
        raise ValueError(f"with --model nothing is trained, so {training[0]!r} has no effect")
    if any(word.split("=")[0] == "--output_dir" for word in training):
        raise ValueError("the sweep's own --output_dir, before the `--`, says where its points go")
    return grid.question or "-".join(row.grid), with_seeds(row, grid.repeat_seeds, model)


def plan(point: Point, row: Sweep, folder: Path, config, training: Sequence[str]) -> Job:
    """The commands and the settings of a point; exits where its training would refuse its flags."""
    launcher = shlex.split(config.grid.launcher) if config.grid.launcher else [sys.executable]
    place = OutputFolder(folder / point.name)
    shared = {"cpu_threads": str(config.model.cpu_threads)}
    shared |= {"plugin": typed(plugins.paths())} if plugins.paths() else {}
    scoring = scoring_flags(point, row, config)
    if point.family:
        no_evaluation = {"eval_steps": "0"}  # it is scored when it is done, with the flags of all points
        own = [*words(shared | no_evaluation), *training, *words(point.flags)]
        module = f"trilemma.training.train_{point.family}"
        train = [*launcher, "-m", module, *own, "--output_dir", str(place.path)]
        trained = parse_training(point, own)
        settings = {"family": point.family, "training": changed_flags(trained)}
        family = families.family(point.family)
        samplers, takes_classes = family.samplers_for(trained), family.takes_classes(trained)
    else:
        train, samplers = None, samplers_of(config.model.model)
        takes_classes = True  # scoring asks the model
        settings = {"model": config.model.model, "training": run_identity(Path(config.model.model))}
    model = str(place.path) if train else config.model.model
    run = {"model": typed(model), "output": typed(str(place.results))}
    run |= shared | {"batch_size": str(config.model.batch_size)}
    run |= {"trust_remote_code": "true"} if config.model.trust_remote_code else {}
    run |= {"force": "true"} if config.score.force else {}
    # That of the saved pipeline, whatever a training draws its own samples with.
    run |= {"sampler": SAVED} if train and "sampler" not in scoring else {}
    run |= {"calibration_images": "0"}  # it is the same for all points
    score = [*launcher, "-m", "trilemma.eval.evaluate", *words(run), *words(scoring)]
    plain = json.loads(json.dumps({**settings, "scoring": scoring}))  # as it will be read back
    return Job(point, place.path, train, score, plain, samplers, takes_classes)


def scoring_flags(point: Point, row: Sweep, config) -> Flags:
    """Flags of `eval/evaluate.py` on which a point's numbers depend.

    A repeated point draws other samples each time. Models of one recipe draw nearly the same image from the
    same seed, so with equal seeds their spread would leave out a part of the variation between samples.
    """
    values = asdict(config.sampling) | asdict(config.score)
    values.pop("force")  # it lets a number through and does not change it
    flags = {**row.sampling, "metrics": typed(row.metrics)}
    flags |= {name: typed(value) for name, value in values.items() if value is not None}
    if point.repeats:
        before = row.seeds.index(point.flags["seed"]) * config.sampling.num_samples
        flags["seed"] = typed(config.sampling.seed + before)
    return flags if point.family else {**flags, **point.flags}


def parse_training(point: Point, command_line: Sequence[str]) -> Any:
    """The configuration of a point's training; exits where its entry point would refuse the flags."""
    with refusals_named(point, command_line):
        return parse(point.family, "", [*command_line])


def changed_flags(config) -> dict[str, Any]:
    """Flags of a training that differ from their defaults and may change the weights."""
    flags, values = flags_of(type(config)), flatten(config)
    return {n: v for n, v in values.items() if not flags[n].meta["free"] and v != flags[n].field.default}


@contextmanager
def refusals_named(point: Point, command_line: Sequence[str]) -> Iterator[None]:
    """When a parser refuses flags, which it does by exiting, say which point they belong to."""
    try:
        yield
    except SystemExit as refused:
        if refused.code:
            print(f"(the flags of point {point.name}: {shlex.join(command_line)})", file=sys.stderr)
        raise


def check_scoring(jobs: Sequence[Job], model: ModelConfig) -> None:
    """ValueError for what scoring would refuse after a point is trained; a model on the Hub is not opened."""
    parsed = []
    for job in jobs:
        line = words(job.settings["scoring"])
        with refusals_named(job.point, line):
            parsed.append((job, parse_flags(Scoring, "", line)))
    for job, scoring in parsed:
        _check_point(job, scoring)
    if model.model and Path(model.model).is_dir():
        _check_samplers(model, [scoring.sampling.sampler for _, scoring in parsed])


def _check_point(job: Job, scoring: Scoring) -> None:
    sampling = scoring.sampling
    if not job.takes_classes and (sampling.guidance_scale is not None or sampling.classes):
        raise ValueError(
            "--classes and --guidance_scale are for class-conditional models; that of point "
            f"{job.point.name} has no classes"
        )
    try:
        check_choices(
            metrics=scoring.score.metrics,
            extractor=scoring.score.feature_extractor,
            judge=scoring.score.judge,
            sampler=sampling.sampler,
            samplers=job.samplers,
        )
    except ValueError as problem:
        raise ValueError(f"point {job.point.name}: {problem}") from problem


def _check_samplers(model: ModelConfig, samplers: Sequence[str | None]) -> None:
    """ValueError unless a model folder can be sampled by each of these samplers."""
    with loading_libraries():  # after every flag was parsed: nothing else here needs torch
        import torch

        from trilemma.eval.scoring.model_images import load_model

    pipeline = load_model(model.model, torch.device("cpu"))
    for name in {*samplers} - {None, SAVED}:
        pipeline.with_sampler(name)


def run_identity(model: Path) -> dict[str, Any]:
    """What distinguishes a model from another one that was trained into the same folder."""
    run = OutputFolder(model).read_run()
    return {name: run[name] for name in ("steps", "images_seen", "seconds") if name in run}
