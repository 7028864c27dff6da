"""The body of `eval/sweep.py`: which points are done, making the others, and the report.

A point is done when the sweep's `results.jsonl` has all its lines with the settings that it has now: the
flags of its training that differ from their defaults and may change weights, and those of its scoring. All
flags are checked before anything is trained. The entry points do the rest: they resume what was interrupted,
and refuse a folder that was trained with other flags. This process starts them one after another.
"""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from trilemma.eval.metrics.table import METRICS, measure_row
from trilemma.eval.plots import charts
from trilemma.eval.scoring import results
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.studies import repeats
from trilemma.eval.studies.jobs import Job, check_scoring, chosen, plan, run_identity
from trilemma.eval.studies.processes import Children, last_lines
from trilemma.eval.studies.questions import Point, Sweep, check_free
from trilemma.eval.studies.tables import cell, markdown, protocol, with_interval
from trilemma.pipelines.files.writing import write_text, written
from trilemma.training.loop.stop import CTRL_C, INTERRUPTED
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import duration

MORE_COLUMNS = ("nfe", "seconds_per_image", "training_seconds", "images_seen")
"""Columns of the table after the metrics, by the name of the entry of a line."""

PLAIN = (
    " The table has debiased estimates with their intervals. The plain values of these samples, as in "
    "published tables, are the entries `value` of `results.jsonl`."
)
"""Said where the two differ."""


def sweep(config, own: Sequence[str], training: Sequence[str]) -> None:
    """Do what the flags of `eval/sweep.py` ask for: `own` before and `training` after the `--`."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "start eval/sweep.py as one process; --launcher 'accelerate launch --num_processes 8' gives each "
            "point eight"
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
    check_first(jobs, folder)
    failed = make_all(jobs, folder)
    report(name, row, jobs, folder)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(jobs)} points failed: {', '.join(failed)}")


def lines_of(job: Job, folder: Path) -> list[ResultLine]:
    """The lines of a point in the sweep's results, the newest of each metric; [] until all are there."""
    lines = results.read(OutputFolder(folder).results)
    newest = list(
        {line.metric: line for line in lines if line.extra.get("settings") == job.settings}.values()
    )
    return newest if newest and len(newest) == newest[-1].extra.get("lines") else []


def check_first(jobs: Sequence[Job], folder: Path) -> None:
    """SystemExit for what would fail at every point, such as data that cannot be read or missing weights.

    A dry run of the first point to do: of its training, or of its evaluation where nothing is trained.
    """
    job = next((job for job in jobs if not lines_of(job, folder)), None)
    if job is None:
        return
    log = folder / "check.log"
    command = [*(job.train or job.score), "--dry_run"]
    print(f"checking the first point, {job.point.name}, before the sweep begins", flush=True)
    log.unlink(missing_ok=True)
    with Children() as children:
        code = children.run(command, log, "checking")
    if code:
        raise SystemExit(children.stopped or f"nothing was started: {shlex.join(command)}\n{last_lines(log)}")


def make_all(jobs: Sequence[Job], folder: Path) -> list[str]:
    """Make what is not done, one after another; the names of those that failed. SystemExit after a signal."""
    failed, began, made = [], time.monotonic(), 0
    left = [job for job in jobs if not lines_of(job, folder)]
    with Children() as children:
        for number, job in enumerate(jobs, 1):
            where = f"[{number}/{len(jobs)}] {job.point.name}"
            if lines_of(job, folder):
                print(f"{where}: done before", flush=True)
                continue
            print(f"{where}: {'training' if job.train else 'scoring'}, log in {job.log}", flush=True)
            problem = make(job, folder, children)
            made += 1
            if problem:
                failed.append(job.point.name)
                print(f"{where} FAILED: {problem}", flush=True)
            else:
                print(results.table(lines_of(job, folder)), flush=True)
            if rest := len(left) - made:
                about = duration((time.monotonic() - began) / made * rest)
                print(f"about {about} left for {rest} of {len(left)} points", flush=True)
    return failed


def make(job: Job, folder: Path, children: Children) -> str | None:
    """Train and score a point and add its lines to the sweep's; the problem, or None."""
    own = OutputFolder(job.folder).results
    for command, what in ((job.train, "training"), (job.score, "scoring")):
        if command is None:
            continue
        before = len(results.read(own))
        code = children.run(command, job.log, f"{what} {job.point.name}")
        if children.stopped or code in (INTERRUPTED, CTRL_C):
            print("interrupted; run the same command again to go on", flush=True)
            raise SystemExit(children.stopped or code)
        if code:
            return f"exit code {code} from\n  {shlex.join(command)}\n{last_lines(job.log)}"
    trained = run_identity(job.folder) if job.train else job.settings["training"]
    new = {line.metric: line for line in results.read(own)[before:]}.values()
    extra = {"point": job.point.name, "training_seconds": trained.get("seconds"), "settings": job.settings}
    extra["lines"] = len(new)  # so that a missing line is noticed
    results.append(OutputFolder(folder).results, [replace(line, extra=line.extra | extra) for line in new])
    return None


def report(name: str, row: Sweep, jobs: Sequence[Job], folder: Path) -> None:
    """Write the figure and the table of the points that are done."""
    done = [(job.point, {line.column: line for line in lines_of(job, folder)}) for job in jobs]
    done = [(point, lines) for point, lines in done if lines]
    if not done:
        return
    columns = columns_of([line for _, lines in done for line in lines.values()])
    rows = [
        [
            point.name,
            *(with_interval(lines[column]) if column in lines else "" for column in columns),
            *(cell(next(iter(lines.values())).to_json().get(entry)) for entry in MORE_COLUMNS),
        ]
        for point, lines in done
    ]
    table = markdown(["point", *columns, *MORE_COLUMNS], rows)
    page, figure = folder / f"{name}.md", folder / f"{name}.png"
    biased = any(line.plain is not None for _, lines in done for line in lines.values())
    text = f"{table}\n{protocol(done[0][1])}{PLAIN if biased else ''}\n"
    text += f"\n{said}\n" if (said := repeats.section(repeated(done, list(columns)))) else ""
    write_text(page, f"# {row.about}\n\n{text}")
    panels = [column for column, charted in columns.items() if charted] or list(columns)[:1]
    with written(figure) as file:
        charts.sweep(done, panels, row.x, row.about).savefig(file, format="png", dpi=150)
    print(f"{text}\nin {page}, figure in {figure}", flush=True)


def repeated(
    done: Sequence[tuple[Point, Mapping[str, ResultLine]]], columns: Sequence[str]
) -> list[repeats.Row]:
    """The estimates of each point that was trained with several seeds; done: points with lines by column."""
    groups: dict[tuple[str, str], list[ResultLine]] = {}
    for column, (point, lines) in product(columns, done):
        if point.repeats and column in lines:
            groups.setdefault((column, point.repeats.name), []).append(lines[column])
    return [
        repeats.Row(
            name, name, column, tuple(line.estimate for line in lines), measure_row(lines[0].measure).better
        )
        for (column, name), lines in groups.items()
    ]


def columns_of(lines: Sequence[ResultLine]) -> dict[str, bool]:
    """Columns of the table, in the order of METRICS, and whether each has a panel in the figure."""
    order = [measure for row in METRICS.values() for measure in row.measures]
    shown = {line.column: line for line in lines if measure_row(line.measure).shown}

    def place(column: str) -> tuple[int, bool, str]:
        line = shown[column]
        return order.index(line.measure), line.reference_split != "train", column

    def charted(line: ResultLine) -> bool:
        row = measure_row(line.measure)
        return row.charted and not (row.of_split and line.reference_split == "train")

    return {column: charted(shown[column]) for column in sorted(shown, key=place)}
