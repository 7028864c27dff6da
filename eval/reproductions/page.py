"""What a reproduction measured, as JSON and as a page: every number is read from the results of its jobs."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.reproductions.cells import Cell
from trilemma.eval.reproductions.plan import Planned
from trilemma.eval.reproductions.published import STUDIES
from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.studies.grid import lines_of
from trilemma.eval.studies.jobs import Job
from trilemma.eval.studies.repeats import RULE, mean_interval, verdict
from trilemma.eval.studies.tables import markdown
from trilemma.training.output_folder import OutputFolder

OWN = {"loss": "training loss", "seconds": "seconds for ten images"}
"""Measures that are not in lines of results."""
WHOLE = 0.99
"""From this share of the study's images on, a training counts as full length: a step may be cut off."""
LATE = 0.1
"""The training loss is the mean over this share of the log lines, the last ones."""
ONE_SEED = "With one seed, the interval covers only other samples. It says nothing about other trainings."
EQUAL = (
    "Equal compute: in each cell, both recipes have the same network, unless the cell is about networks, and "
    "train on the same number of images, so both evaluate the network equally often. The study's settings "
    "are those that it names. Its network is not known; a row of `training/networks/rows.py` replaces it. "
    "Other settings have the toolkit's defaults. Frechet distances are debiased: a perfect model has about "
    "0. The second table of each study has the plain values, whose bias depends on n, as published ones do."
)


class Measured(NamedTuple):
    """A recipe's estimates, one for each seed, with the line that says how the first was measured.

    seconds: of the steps of training, without the validation and the sheets between them. plain: the
    estimates with their bias, as published figures have it.
    """

    estimates: list[float]
    line: ResultLine
    images: int
    seconds: list[float]
    commands: list[str]
    plain: list[float]


def measured(cell: Cell, jobs: Sequence[Job], folder: Path) -> Measured | None:
    """The results of the jobs of one recipe; None until all of them are done."""
    lines = [_line(cell, job, folder) for job in jobs]
    if not lines or None in lines:
        return None
    runs = [OutputFolder(job.folder).read_run() for job in jobs]
    estimates = [_estimate(cell, job, line) for job, line in zip(jobs, lines, strict=True)]
    commands = [shlex.join(command) for job in jobs for command in (job.train, job.score)]
    seconds = [run["seconds"] - run.get("evaluation_seconds", 0) for run in runs]
    plain = estimates if cell.measure in OWN else [line.value for line in lines]
    return Measured(estimates, lines[0], runs[0]["images_seen"], seconds, commands, plain)


def _line(cell: Cell, job: Job, folder: Path) -> ResultLine | None:
    measure = "fd" if cell.measure in OWN else cell.measure
    lines = [line for line in lines_of(job, folder) if line.measure == measure]
    held_out = [line for line in lines if not measure_row(measure).of_split or line.reference_split == "test"]
    return next(iter(held_out or lines), None)


def _estimate(cell: Cell, job: Job, line: ResultLine) -> float:
    if cell.measure == "seconds":
        return 10 * line.seconds_per_image
    if cell.measure == "loss":
        losses = [entry["loss"] for entry in OutputFolder(job.folder).read_scalars() if "loss" in entry]
        return statistics.fmean(losses[-max(1, round(LATE * len(losses))) :])
    return line.estimate


def row(planned: Planned, folder: Path) -> dict[str, Any]:
    """All that is known of a cell, as JSON takes it."""
    cell = planned.cell
    arms = {name: measured(cell, jobs, folder) for name, jobs in planned.jobs.items()}
    why = planned.why or ("" if all(arms.values()) else "not finished: run the same command again")
    told: dict[str, Any] = {"cell": cell.name, "published": cell.published.text, "not_run": why}
    if why:
        return told
    study, ours = arms["study"], arms.get("ours")
    told |= {
        "measure": OWN.get(cell.measure, study.line.metric),
        "images": study.images,
        "share": study.images / cell.images if cell.length_known else None,
        "n": study.line.n,
        "against_published": against(cell, study, planned.reduced),
        **{name: _arm_json(cell, arm) for name, arm in arms.items()},
    }
    if ours:
        better = "lower" if cell.measure in OWN else measure_row(cell.measure).better
        difference, says = verdict(ours.estimates, study.estimates, better)
        means = [statistics.fmean(arm.estimates) for arm in (ours, study)]
        told |= {"difference": difference, "verdict": says}
        told["ratio"] = means[0] / means[1] if min(means) > 0 else None
    return told


def _arm_json(cell: Cell, arm: Measured) -> dict[str, Any]:
    line, many = arm.line, len(arm.estimates) > 1
    interval = None
    if many:
        mean, _, half = mean_interval(arm.estimates)
        interval = [mean - half, mean + half]
    elif cell.measure not in OWN and line.interval:
        interval = list(line.interval)
    shown = f"{number(statistics.fmean(arm.estimates))}"
    shown += f" ({number(interval[0])} .. {number(interval[1])})" if interval else ""
    return {
        "estimates": arm.estimates,
        "interval": interval,
        "shown": shown,
        "plain": arm.plain,
        "floor": None if cell.measure in OWN else line.floor,
        "nfe": line.nfe,
        "sampler": line.sampler,
        "images": arm.images,
        "training_seconds": arm.seconds,
        "commands": arm.commands,
    }


def against(cell: Cell, study: Measured, reduced: int | None = None) -> str:
    """How the study's settings, run here, compare with its published figure, both plain.

    They agree if they are no further apart than their spreads together. reduced: pixels on a side, if the
    images were made smaller.
    """
    published, line = cell.published, study.line
    if published.value is None:
        return "no figure to compare with"
    share, other = study.images / cell.images, []
    if cell.measure == "seconds":
        other.append("another machine")
    elif not cell.length_known:
        other.append("the study does not say how long it trained")
    elif share < WHOLE:
        other.append(f"{share:.2%} of the study's images")
    if reduced:
        other.append(f"images of {reduced}x{reduced}")
    if published.n and line.feature_extractor != "inception":
        other.append(f"{line.feature_extractor} features")
    if published.n and line.n != published.n:
        other.append(f"n {line.n:,}")
    if published.calls and line.nfe != published.calls:
        other.append(f"{line.nfe:,} calls")
    if other:
        return f"not comparable; here: {', '.join(other)}"
    if len(study.plain) < 2:
        return f"here minus published: {number(study.plain[0] - published.value)}; one training only"
    mean, _, half = mean_interval(study.plain)
    if abs(mean - published.value) <= math.hypot(half, published.spread or 0):
        return "agrees"
    return "lower here" if mean < published.value else "higher here"


def page(rows: Mapping[str, Sequence[Mapping[str, Any]]], about: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    parts = ["# The published studies, run again", f"`{about['command']}`", about["budget_text"]]
    parts += [f"Trained on: {about['hardware']}."] if about["hardware"] else []
    parts += [about["remark"]] if about["remark"] else []
    parts += [EQUAL, RULE, ONE_SEED]
    for name, cells in rows.items():
        study = STUDIES[name]
        parts += [f"## `{name}`: {study.about}", f"Source: {study.source}."]
        parts += [study.note] if study.note else []
        done = [cell for cell in cells if not cell["not_run"]]
        parts += [_results(done), _costs(done)] if done else []
        for figure in about["figures"][name]:
            parts += [figure["caption"], f"![{figure['text']}]({figure['file']})"]
        left = [(cell["cell"], cell["published"], cell["not_run"]) for cell in cells if cell["not_run"]]
        parts += [markdown(["not run here", "published", "why"], left)] if left else []
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _results(cells: Sequence[Mapping[str, Any]]) -> str:
    header = ["cell", "published", "measure", "the study's settings here", "ours", "ours minus the study's"]
    rows = [
        [cell["cell"], cell["published"], cell["measure"], cell["study"]["shown"],
         cell["ours"]["shown"] if "ours" in cell else "", cell.get("difference", ""),
         _number(cell.get("ratio"), 2), cell.get("verdict", ""), cell["against_published"]]
        for cell in cells
    ]  # fmt: skip
    return markdown([*header, "ours over the study's", "verdict on ours", "here against published"], rows)


def _costs(cells: Sequence[Mapping[str, Any]]) -> str:
    header = ["cell", "n", *(f"plain: {whose}" for whose in ("real images", "the study's", "ours"))]
    header += ["images of a training", "share of the study's", "seeds"]
    rows = [
        [cell["cell"], *_plain(cell), f"{cell['images']:,}",
         "" if cell["share"] is None else f"{cell['share']:.2%}", str(len(cell["study"]["estimates"])),
         _cost(cell["study"], cell["measure"]), _cost(cell.get("ours"), cell["measure"])]
        for cell in cells
    ]  # fmt: skip
    return markdown([*header, "study: calls, training s", "ours: calls, training s"], rows)


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else number(value, digits)


def _plain(cell: Mapping[str, Any]) -> list[str]:
    """n, and the plain values of real images and of both recipes where a number has a bias."""
    n, floor = "" if cell["measure"] == OWN["loss"] else f"{cell['n']:,}", cell["study"]["floor"]
    if floor is None:
        return [n, "", "", ""]
    means = [statistics.fmean(cell[arm]["plain"]) if arm in cell else None for arm in ("study", "ours")]
    return [n, *(_number(value) for value in (floor, *means))]


def _cost(arm: Mapping[str, Any] | None, measure: str) -> str:
    if arm is None:
        return ""
    mean = statistics.fmean(arm["training_seconds"])
    if measure == OWN["loss"]:
        return f"{mean:.0f}"
    calls = f"{arm['nfe']} of {arm['sampler']}" if arm["nfe"] else "none"  # a bound needs no image
    return f"{calls}, {mean:.0f}"
