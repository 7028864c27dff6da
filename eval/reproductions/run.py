"""The body of `eval/reproduce.py`: plans all cells, runs those that are not done, writes the page after each.

Jobs are those of a sweep: entry points as processes, resumable, and known by their settings.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trilemma.eval.options import ModelConfig
from trilemma.eval.reproductions.cells import DATA
from trilemma.eval.reproductions.figures import write_figures
from trilemma.eval.reproductions.page import page, row
from trilemma.eval.reproductions.plan import BUDGETS, Budget, Planned, Planner, local_copies
from trilemma.eval.reproductions.published import STUDIES
from trilemma.eval.studies.grid import check_first, lines_of, make_all
from trilemma.eval.studies.jobs import Job, check_scoring
from trilemma.pipelines.files.writing import write_json, write_text
from trilemma.training.options.flags import nearest
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import duration


def reproduce(config, argv: Sequence[str]) -> None:
    """Do what the flags ask for; argv: as they were typed."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "start eval/reproduce.py as one process; --launcher 'accelerate launch --num_processes 8' gives "
            "each training eight"
        )
    folder = Path(config.output_dir or f"outputs/reproduce-{config.study}") / config.budget
    budget = BUDGETS[config.budget]
    plans = plan_all(config, budget, folder)
    if config.dry_run:
        for planned in (each for cells in plans.values() for each in cells):
            print(listed(planned, folder), end="")
        return
    check_scoring([job for cells in plans.values() for each in cells for job in jobs_of(each)], ModelConfig())
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    figures = {name: drawn(name, cells, folder) for name, cells in plans.items()}
    write(plans, figures, folder, config, argv)
    for name, planned in ((name, each) for name, cells in plans.items() for each in cells if each.jobs):
        before = all(lines_of(job, folder) for job in jobs_of(planned))
        try:
            check_first(jobs_of(planned), folder)
            failed += make_all(jobs_of(planned), folder)
        finally:
            if not before:
                figures[name] = drawn(name, plans[name], folder)
                write(plans, figures, folder, config, argv)
    print(f"in {folder / 'reproduce.md'}", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} trainings failed: {', '.join(failed)}")


def plan_all(config, budget: Budget, folder: Path) -> dict[str, list[Planned]]:
    """Every cell of the studies that were asked for."""
    names = tuple(STUDIES) if config.study == "all" else (config.study,)
    cells = [cell.name for name in names for cell in STUDIES[name].cells]
    for word in config.cells or ():
        if word not in cells:
            raise ValueError(f"--cells: {word!r} is not a cell of --study {config.study}, which has "
                             f"{', '.join(cells)}.{nearest(word, cells)}")  # fmt: skip
    planner = Planner(
        budget, folder, local_copies(config.data or ()), tuple(dict.fromkeys(config.seeds or budget.seeds)),
        config.launcher, config.cpu_threads,
    )  # fmt: skip
    plans = {
        name: [
            planner(cell, config.cells is None or cell.name in config.cells) for cell in STUDIES[name].cells
        ]
        for name in names
    }
    return {name: without_repeats(cells) for name, cells in plans.items()}


def without_repeats(cells: Sequence[Planned]) -> list[Planned]:
    """Cells that a budget makes equal to an earlier one, which differed in length alone, are not run."""
    first: dict[str, str] = {}
    told = []
    for planned in cells:
        key = repr([planned.cell.measure, *((job.folder, job.settings) for job in jobs_of(planned))])
        same = first.setdefault(key, planned.cell.name) if planned.jobs else planned.cell.name
        why = f"at this budget it has the trainings of {same}"
        told.append(planned if same == planned.cell.name else Planned(planned.cell, {}, why))
    return told


def jobs_of(planned: Planned) -> list[Job]:
    """All jobs of a cell."""
    return [job for jobs in planned.jobs.values() for job in jobs]


def listed(planned: Planned, folder: Path) -> str:
    """A cell in a dry run."""
    if planned.why:
        return f"{planned.cell.name}: not run here: {planned.why}\n"
    about = (
        "time not estimated" if planned.seconds is None else f"about {duration(planned.seconds)} of a core"
    )
    lines = [f"{planned.cell.name}: {about}"]
    for job in jobs_of(planned):
        done = bool(lines_of(job, folder))
        lines.append(f"  {job.point.name}: {'done' if done else 'to do'}")
        lines += [] if done else [f"    {shlex.join(command)}" for command in (job.train, job.score)]
    return "\n".join(lines) + "\n"


def drawn(study: str, cells: Sequence[Planned], folder: Path) -> list[dict[str, str]]:
    """Write the figures of a study's cells that are done by now."""
    return write_figures(study, [each for each in cells if not row(each, folder)["not_run"]], folder)


def write(
    plans: dict[str, list[Planned]],
    figures: dict[str, list[dict[str, str]]],
    folder: Path,
    config,
    argv: Sequence[str],
) -> None:
    """Write reproduce.json and reproduce.md from the jobs that are done by now."""
    budget = BUDGETS[config.budget]
    rows = {name: [row(each, folder) for each in cells] for name, cells in plans.items()}
    hardware = {
        "{name}, {processes} x {device}, {threads} threads".format(**run["hardware"])
        for cells in plans.values() for each in cells for job in jobs_of(each)
        if (run := OutputFolder(job.folder).read_run())
    }  # fmt: skip
    images = "the study's images" if budget.images is None else f"at most {budget.images:,} images"
    calls = (
        "the calls of each recipe" if budget.calls is None else f"at most {budget.calls} calls for an image"
    )
    small = [f"{name} at {data.reduced}x{data.reduced}" for name, data in DATA.items() if data.reduced]
    sizes = f", {', '.join(small)}" if budget.reduced else ""
    about: dict[str, Any] = {
        "command": shlex.join(["python", "eval/reproduce.py", *public(argv)]),
        "budget": config.budget,
        "budget_text": f"Budget `{config.budget}`: {images} in a training (points of the plane: all){sizes}, "
        f"{budget.samples:,} samples, {calls}.",
        "hardware": "; ".join(sorted(hardware)),
        "remark": config.remark,
        "figures": figures,
    }
    write_json(folder / "reproduce.json", {**about, "studies": rows})
    write_text(folder / "reproduce.md", page(rows, about))


def public(argv: Sequence[str]) -> list[str]:
    """The part of the command line on which the results depend, without folders of this machine."""
    words = []
    for before, word in zip(["", *argv], argv, strict=False):
        if "--output_dir" in (before, word.partition("=")[0]) or word == "--study":
            continue
        words.append(word.partition("=")[0] + "=folder" if "=" in word and os.sep in word else word)
    return words
