"""Run the toolkit's entry points, and judge how they ended."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import entry  # noqa: E402  the fork server of the tests: a run starts in a tenth of a second

LIMIT = 300.0
"""Seconds after which a run counts as hung; the slowest takes 10 alone on one core."""

GOOD = ("right", "refused")
BAD = ("traceback", "hang", "unnamed", "half-written", "silent")
VERDICTS = (*GOOD, *BAD)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code (negative for a signal, None for a hang), what it printed, seconds."""

    code: int | None
    output: str
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A command with a bad input, and what may come of it.

    names: a refusal has at least one of them in its text. right: what is wrong with a run that ended well, or
    None; by default such a run is a silent failure. untouched: files and folders that a refusal leaves as
    they were. environment: for a run in an interpreter of its own. after: called when the run has ended.
    """

    what: str
    script: str
    flags: tuple[str, ...]
    names: tuple[str, ...]
    right: Callable[[Outcome], str | None] = lambda outcome: "was accepted"
    untouched: tuple[Path, ...] = ()
    environment: dict[str, str] | None = None
    after: Callable[[], None] = field(default=lambda: None)

    def state(self) -> dict[str, str]:
        """What lies in the files and folders that a refusal leaves as they were."""
        return contents(self.untouched)


def run(
    script: str, flags: tuple[str, ...], cwd: Path, kill_after: float | None = None, limit: float = LIMIT
) -> Outcome:
    """Run an entry point as `python script flags` would, with SIGKILL after some seconds if asked."""
    began = time.monotonic()
    running = entry.start(script, *flags, cwd=cwd)
    running.process.join(limit if kill_after is None else kill_after)
    if running.process.exitcode is None:
        running.process.kill()
        running.process.join()
        code = None if kill_after is None else -signal.SIGKILL
    else:
        code = running.process.exitcode
    output = running.output
    running.log.unlink()
    return Outcome(code, output, time.monotonic() - began)


def run_alone(trial: Trial, cwd: Path) -> Outcome:
    """The same in an interpreter of its own, for environment variables that are read at import."""
    began = time.monotonic()
    command = [sys.executable, str(ROOT / trial.script), *trial.flags]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=trial.environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired as hung:
        return Outcome(None, str(hung.stdout) + str(hung.stderr), LIMIT)
    return Outcome(done.returncode, done.stdout + done.stderr, time.monotonic() - began)


def contents(paths: tuple[Path, ...]) -> dict[str, str]:
    """Path -> digest of every file in files and folders; locks are no content."""
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"
        for file in files
        if file.name != ".lock" and (file.exists() or file.is_symlink())
    }


def judge(trial: Trial, cwd: Path) -> tuple[str, Outcome, str]:
    """Run a trial; one of VERDICTS, the outcome, and a word on what was wrong."""
    before = trial.state()
    outcome = run_alone(trial, cwd) if trial.environment else run(trial.script, trial.flags, cwd)
    trial.after()
    name, word = verdict(trial, outcome, before)
    return name, outcome, word


def verdict(trial: Trial, outcome: Outcome, before: dict[str, str]) -> tuple[str, str]:
    """One of VERDICTS on how a trial ended, and a word on what was wrong."""
    if outcome.code is None:
        return "hang", f"no end within {LIMIT:.0f} s"
    if outcome.code < 0:
        return "traceback", f"ended by signal {-outcome.code}"
    if "Traceback (most recent call last)" in outcome.output:
        return "traceback", outcome.output.strip().splitlines()[-1]
    if outcome.code == 0:
        try:
            wrong = trial.right(outcome)
        except Exception as problem:  # what it left could not even be read
            wrong = f"cannot be checked: {problem!r}"
        return ("silent", wrong) if wrong else ("right", "")
    if not any(name in outcome.output for name in trial.names):
        return "unnamed", f"none of {trial.names} is in the error"
    if (after := trial.state()) != before:
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        return "half-written", "changed: " + ", ".join(map(os.path.basename, sorted(changed)))
    return "refused", ""
