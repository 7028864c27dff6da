"""The body of `eval/sweep.py`: which points are done, making the others, and what is written of them.

A point is done when the sweep's `results.jsonl` has all its lines with the settings that it has now: the
flags of its training that differ from their defaults and may change weights, and those of its scoring. All
flags are checked before anything is trained. The rest is left to the entry points, which resume what was
interrupted and refuse a folder that was trained otherwise. This process starts them one after another.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilemma.eval.options import SamplingConfig, ScoreConfig
from trilemma.eval.plots import charts
from trilemma.eval.scoring import results
from trilemma.eval.studies.processes import Children, last_lines
from trilemma.eval.studies.questions import SWEEPS, Flags, Point, Sweep, check_free, own_sweep, typed, words
from trilemma.training import families
from trilemma.training.options.command_line import parse
from trilemma.training.options.flags import HUB_ID, flags_of, flatten, nearest, parse_flags

INTERRUPTED = os.EX_TEMPFAIL
"""Exit code after a signal, as that of a training: run the same command again."""

PANELS = ("fd", "energy", "coverage", "class_accuracy", "bpd_test")
FACTS = ("nfe", "seconds_per_image", "training_seconds", "images_seen")


@dataclass(frozen=True)
class Scoring:
    """The flags of `eval/evaluate.py` on which a point's numbers depend."""

    sampling: SamplingConfig
    score: ScoreConfig


@dataclass(frozen=True)
class Job:
    """A point, the commands that make it, and the settings by which its lines are known."""

    point: Point
    folder: Path
    train: list[str] | None
    score: list[str]
    settings: dict[str, Any]

    @property
    def log(self) -> Path:
        """What the commands print; beside the folder, which is the training's own."""
        return self.folder.with_name(f"{self.folder.name}.log")


def sweep(config, own: Sequence[str], training: Sequence[str]) -> None:
    """Do what the flags of `eval/sweep.py` ask for: `own` before and `training` after the `--`."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "start eval/sweep.py as one process; --launcher 'accelerate launch --num_processes 8' gives as "
            "many to each point"
        )
    name, row = chosen(config, training)
    check_free(row, training if row.family else own)
    folder = Path(config.grid.output_dir or f"outputs/sweep-{name}")
    jobs = [plan(point, row, folder, config, training) for point in row.points()]
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError("--grid gives two points one name; write their values differently")
    check_scoring(jobs, config.model)
    if config.grid.dry_run:
        for job in jobs:
            done = bool(lines_of(job, folder))
            commands = [] if done else [job.train, job.score]
            print(f"{job.point.name}: {'done' if done else 'to do'}")
            print("".join(f"  {shlex.join(command)}\n" for command in commands if command), end="")
        return
    folder.mkdir(parents=True, exist_ok=True)
    failed = make_all(jobs, folder)
    report(name, row, jobs, folder)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(jobs)} points failed: {', '.join(failed)}")


def chosen(config, training: Sequence[str]) -> tuple[str, Sweep]:
    """Name and row of the question that is asked."""
    grid, model = config.grid, config.model.model
    if (grid.question is None) == (grid.grid is None):
        raise ValueError("give one of --question and --grid")
    row = SWEEPS[grid.question] if grid.question else own_sweep(grid.grid, None if model else grid.family)
    if row.family is None and model is None:
        raise ValueError(f"--question {grid.question} samples a model that is there: give its --model")
    if row.family and model:
        raise ValueError(f"--question {grid.question} trains its models; --model has no effect on it")
    from_hub = model and HUB_ID.fullmatch(model) and not Path(model).exists()
    if model and not from_hub and not (Path(model) / "model_index.json").is_file():
        raise ValueError(f"--model {model!r} is neither a folder with a model_index.json nor a Hub id")
    if model and training:
        raise ValueError(f"with --model nothing is trained, so {training[0]!r} has no effect")
    if any(word.split("=")[0] == "--output_dir" for word in training):
        raise ValueError("the sweep's own --output_dir, before the `--`, says where its points go")
    return grid.question or "-".join(row.grid), row


def plan(point: Point, row: Sweep, folder: Path, config, training: Sequence[str]) -> Job:
    """The commands and the settings of a point; exits where its training would refuse its flags."""
    launcher = shlex.split(config.grid.launcher) if config.grid.launcher else [sys.executable]
    place = folder / point.name
    threads = {"cpu_threads": str(config.model.cpu_threads)}
    scoring = scoring_flags(point, row, config)
    if point.family:
        never = {"eval_steps": "0"}  # it is scored when it is done, with the flags of all points
        own = [*words(threads | never), *training, *words(point.flags)]
        train = [*launcher, "-m", f"trilemma.training.train_{point.family}", *own, "--output_dir", str(place)]
        settings = {"family": point.family, "training": trained_flags(point, own)}
    else:
        train, settings = None, {"model": config.model.model, "training": run_facts(Path(config.model.model))}
    run = {"model": str(place) if train else config.model.model, "output": str(place / results.RESULTS)}
    run |= threads | {"batch_size": str(config.model.batch_size)}
    run |= {"trust_remote_code": "true"} if config.model.trust_remote_code else {}
    run |= {"force": "true"} if config.score.force else {}
    score = [*launcher, "-m", "trilemma.eval.evaluate", *words(run), *words(scoring)]
    plain = json.loads(json.dumps({**settings, "scoring": scoring}))  # as it will be read back
    return Job(point, place, train, score, plain)


def scoring_flags(point: Point, row: Sweep, config) -> Flags:
    """Flags of `eval/evaluate.py` on which a point's numbers depend."""
    values = asdict(config.sampling) | asdict(config.score)
    values.pop("force")  # it lets a number through and does not change it
    given = {name: typed(value) for name, value in values.items() if value is not None}
    flags = {**row.sampling, "metrics": typed(row.metrics), **given}
    return flags if point.family else {**flags, **point.flags}


def trained_flags(point: Point, command_line: Sequence[str]) -> dict[str, Any]:
    """Flags that differ from their defaults and may change the weights of a point."""
    with refusals_named(point, command_line):
        config = parse(point.family, "", [*command_line])
    flags, values = flags_of(type(config)), flatten(config)
    return {n: v for n, v in values.items() if not flags[n].meta["free"] and v != flags[n].field.default}


@contextmanager
def refusals_named(point: Point, command_line: Sequence[str]) -> Iterator[None]:
    """Says whose flags they were when a parser refuses them, which it does by exiting."""
    try:
        yield
    except SystemExit as refused:
        if refused.code:
            print(f"(the flags of point {point.name}: {shlex.join(command_line)})", file=sys.stderr)
        raise


def check_scoring(jobs: Sequence[Job], model) -> None:
    """Refuse what scoring would refuse when a point is trained; of a model on the Hub it is left to scoring.

    model: the ModelConfig of the sweep.
    """
    asked = []
    for job in jobs:
        line = words(job.settings["scoring"])
        with refusals_named(job.point, line):
            asked.append((job, parse_flags(Scoring, "", line)))

    import torch  # after every flag was parsed, since it takes seconds and nothing else here needs it

    from trilemma.eval.metrics.distances import METRICS
    from trilemma.eval.scoring.model_images import load_model
    from trilemma.pipelines.samplers import SAMPLERS

    metrics, pipeline = ("bpd", *METRICS), None
    if model.model and Path(model.model).is_dir():
        pipeline = load_model(model.model, torch.device("cpu"))
    for job, scoring in asked:
        for name in scoring.score.metrics:
            if name not in metrics:
                known = ", ".join(metrics)
                raise ValueError(f"--metrics must be of {known}; got {name!r}.{nearest(name, metrics)}")
        sampling, trained = scoring.sampling, job.settings["training"]
        conditional = job.point.family == "class_conditional" or trained.get("class_conditional")
        if job.train and not conditional and (sampling.guidance_scale is not None or sampling.classes):
            raise ValueError(
                f"--classes and --guidance_scale are for class-conditional models; {job.point.name} is none"
            )
        if sampling.sampler and pipeline:
            pipeline.with_sampler(sampling.sampler)
        elif sampling.sampler:
            family = job.point.family  # None for a model on the Hub
            able = families.family(family).samplers if family else every_sampler()
            target = trained.get("prediction_type", "epsilon")
            able = [name for name in able if name not in SAMPLERS or target in SAMPLERS[name].targets]
            if sampling.sampler not in able:
                raise ValueError(
                    f"--sampler must be one of {', '.join(able)} for point {job.point.name}; got "
                    f"{sampling.sampler!r}"
                )


def every_sampler() -> list[str]:
    """The samplers of all families."""
    return sorted({sampler for name in families.names() for sampler in families.family(name).samplers})


def run_facts(model: Path) -> dict[str, Any]:
    """By what a model is told from another one that was trained into the same folder."""
    path = model / "run.json"
    facts = json.loads(path.read_text()) if path.is_file() else {}
    return {name: facts[name] for name in ("steps", "images_seen", "seconds") if name in facts}


def lines_of(job: Job, folder: Path) -> list[dict[str, Any]]:
    """The lines of a point in the sweep's results, the newest of each metric; [] until all are there."""
    lines = [line for line in results.read(folder / results.RESULTS) if line.get("settings") == job.settings]
    newest = list({line["metric"]: line for line in lines}.values())
    return newest if newest and len(newest) == newest[-1].get("lines") else []


def make_all(jobs: Sequence[Job], folder: Path) -> list[str]:
    """Make what is not done, one after another; the names of those that failed. SystemExit after a signal."""
    children, failed = Children(), []
    for number, job in enumerate(jobs, 1):
        where = f"[{number}/{len(jobs)}] {job.point.name}"
        if lines_of(job, folder):
            print(f"{where}: done before", flush=True)
            continue
        print(f"{where}: {'training' if job.train else 'scoring'}, log in {job.log}", flush=True)
        problem = make(job, folder, children)
        if problem:
            failed.append(job.point.name)
            print(f"{where} FAILED: {problem}", flush=True)
        else:
            print(results.table(lines_of(job, folder)), flush=True)
    return failed


def make(job: Job, folder: Path, children: Children) -> str | None:
    """Train and score a point and add its lines to the sweep's; what went wrong, or None."""
    own = job.folder / results.RESULTS
    for command in filter(None, (job.train, job.score)):
        before = len(results.read(own))
        code = children.run(command, job.log)
        if children.stopped or code == INTERRUPTED:
            print("interrupted; run the same command again to go on", flush=True)
            raise SystemExit(INTERRUPTED)
        if code:
            return f"exit code {code} from\n  {shlex.join(command)}\n{last_lines(job.log)}"
    facts = run_facts(job.folder) if job.train else job.settings["training"]
    new = {line["metric"]: line for line in results.read(own)[before:]}.values()
    told = {"point": job.point.name, "training_seconds": facts.get("seconds"), "settings": job.settings}
    told["lines"] = len(new)  # by which it is seen when one of them is gone
    results.append(folder / results.RESULTS, [{**line, **told} for line in new])
    return None


def report(name: str, row: Sweep, jobs: Sequence[Job], folder: Path) -> None:
    """Write the figure and the table of the points that are done."""
    found = [(job.point, {results.kind(line): line for line in lines_of(job, folder)}) for job in jobs]
    found = [(point, lines) for point, lines in found if lines]
    if not found:
        return
    kinds = [kind for kind in results.HIGHER_IS_BETTER if any(kind in lines for _, lines in found)]
    rows = [
        [
            point.name,
            *(results.with_interval(lines[kind]) if kind in lines else "" for kind in kinds),
            *(results.cell(next(iter(lines.values())), key) for key in FACTS),
        ]
        for point, lines in found
    ]
    table = results.markdown(["point", *kinds, *FACTS], rows)
    (folder / f"{name}.md").write_text(f"# {row.about}\n\n{table}\n{results.protocol(found[0][1])}\n")

    panels = [kind for kind in PANELS if kind in kinds] or kinds[:1]
    charts.sweep(found, panels, row.x, row.about).savefig(folder / f"{name}.png", dpi=150)
    print(f"{table}\nin {folder / name}.md, figure in {folder / name}.png", flush=True)
