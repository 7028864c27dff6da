"""Ratios of two ways to do the same work, measured side by side, and the table of them.

The rows of a case run in turn in every round, and each round has the reversed order of the one before. The
baseline is the first row and comes a second time, under another name: how far its two times lie apart (A/A)
shows which ratios are a tie. A ratio is that of one round, so what slows the machine for a while slows both.
"""

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import Accelerator

from trilemma.pipelines.files.writing import write_json, write_text
from trilemma.training.loop.machine import commit, hardware

PACKAGES = (
    "torch", "diffusers", "accelerate", "datasets", "torchmetrics", "scipy", "denoising-diffusion-pytorch",
    "pytorch-fid",
)  # fmt: skip
AGAIN = "the baseline again"


@dataclass(frozen=True)
class Case:
    """Several ways to do the same work.

    rows: what each of them is called -> one measurement's work; the first is the baseline. clock: cpu, wall,
    children (CPU of the processes that it starts), or what the work returns: memory (MB), reported (seconds),
    operations. warm: untimed calls of each row.
    """

    group: str
    title: str
    rows: Mapping[str, Callable[[], object]]
    rounds: int
    clock: str = "cpu"
    warm: int = 2


@dataclass(frozen=True)
class Row:
    """A row of the table: how many times faster (or smaller) than the baseline, median and range."""

    group: str
    title: str
    what: str
    baseline: str
    ratio: float
    lowest: float
    highest: float
    tie: tuple[float, float]
    value: float
    baseline_value: float
    unit: str
    rounds: int


@dataclass(frozen=True)
class Skipped:
    """A case that this machine cannot measure, and why."""

    group: str
    title: str
    why: str


@dataclass
class Table:
    """All that was measured of one group, by a command on a machine."""

    command: str
    machine: dict[str, object]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def measure(case: Case) -> list[Row]:
    """The rows of one case, that of the baseline left out."""
    baseline = next(iter(case.rows))
    rows = {**case.rows, AGAIN: case.rows[baseline]}
    for name in case.rows:
        for _ in range(case.warm):
            case.rows[name]()
    values: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(case.rounds):
        for name in list(rows)[:: 1 if number % 2 == 0 else -1]:
            gc.collect()
            values[name].append(CLOCKS[case.clock](rows[name]))
    ratios = {name: [a / b for a, b in zip(values[baseline], values[name], strict=True)] for name in rows}
    tie = (min(ratios[AGAIN]), max(ratios[AGAIN]))
    return [
        Row(
            case.group, case.title, name, baseline, statistics.median(ratios[name]), min(ratios[name]),
            max(ratios[name]), tie, statistics.median(values[name]), statistics.median(values[baseline]),
            UNITS[case.clock], case.rounds,
        )
        for name in case.rows
        if name != baseline
    ]  # fmt: skip


def _clocked(clock: Callable[[], float]) -> Callable[[Callable[[], object]], float]:
    def clocked(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    return clocked


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CLOCKS: dict[str, Callable[[Callable[[], object]], float]] = {
    "cpu": _clocked(time.process_time),
    "wall": _clocked(time.perf_counter),
    "children": _clocked(_children),
    "memory": lambda work: work(),
    "reported": lambda work: work(),
    "operations": lambda work: work(),
}
UNITS = {
    "cpu": "s CPU", "wall": "s wall", "children": "s CPU", "memory": "MB", "reported": "s wall",
    "operations": "operations",
}  # fmt: skip


def run_python(*arguments: str, expected: int = 0) -> float:
    """Run a Python of its own with one thread; returns MB of memory at its peak."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root / "benchmarks"), str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    errors = process.stderr.read().decode()  # to its end first: the pipe may be full
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise RuntimeError(f"python {' '.join(arguments)} ended with code {process.returncode}: {errors}")
    return used.ru_maxrss / 1024


def machine() -> dict[str, object]:
    """Processor, cores, load, threads, versions, commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    halves = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    return {
        "processor": hardware(Accelerator(cpu=True))["name"].strip(),
        "bf16 instructions": ", ".join(halves) or "none",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load at the start": round(os.getloadavg()[0], 1),
        "versions": versions,
        "commit": commit(),
    }


def run_cases(cases: Iterable[Case | Skipped], table: Table) -> Iterator[Row | Skipped]:
    """Measure one case after the other into the table."""
    for case in cases:
        new = [case] if isinstance(case, Skipped) else measure(case)
        (table.skipped if isinstance(case, Skipped) else table.rows).extend(new)
        yield from new


def in_words(row: Row | Skipped) -> str:
    """A row in a line of text."""
    if isinstance(row, Skipped):
        return f"{row.group}, {row.title}: not measured, {row.why}"
    return (
        f"{row.group}, {row.title}: {row.what} {row.ratio:.2f}x of {row.baseline} "
        f"[{row.lowest:.2f}, {row.highest:.2f}], tie [{row.tie[0]:.2f}, {row.tie[1]:.2f}]"
    )


def markdown(table: Table) -> str:
    """The table as docs show it."""
    facts = {**table.machine, **table.machine["versions"]}
    facts.pop("versions")
    lines = [
        f"`{table.command}`. " + "; ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        "",
        "| case | what | against | ratio | range | A/A: a tie | value | baseline | rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in table.rows]
    if table.skipped:
        lines += ["", "Not measured:", ""]
        lines += [f"- {each.group}: {each.title}: {each.why}" for each in table.skipped]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    return [
        f"{row.group}: {row.title}",
        row.what,
        row.baseline,
        f"**{row.ratio:.2f}**",
        f"{row.lowest:.2f} to {row.highest:.2f}",
        f"{row.tie[0]:.2f} to {row.tie[1]:.2f}",
        f"{row.value:.4g} {row.unit}",
        f"{row.baseline_value:.4g} {row.unit}",
        str(row.rounds),
    ]


def read(folder: Path) -> dict[str, Table]:
    """The tables of bench.json by group; none where there is no file."""
    file = folder / "bench.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {
        name: Table(
            one["command"],
            one["machine"],
            [Row(**{**row, "tie": tuple(row["tie"])}) for row in one["rows"]],
            [Skipped(**each) for each in one["skipped"]],
        )
        for name, one in kept.items()
    }


def write(tables: Mapping[str, Table], folder: Path) -> None:
    """bench.json and bench.md: a table for each group."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", {name: asdict(table) for name, table in tables.items()})
    write_text(
        folder / "bench.md", "\n".join(f"## {name}\n\n{markdown(one)}" for name, one in tables.items())
    )


def chosen(groups: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """The groups to measure; ValueError for a name that does not exist."""
    unknown = [name for name in only or () if name not in groups]
    if unknown:
        raise ValueError(f"--only must be of {', '.join(groups)}; got {unknown[0]!r}")
    return [name for name in groups if only is None or name in only]
