"""Checkpoints that are whole or not there: written aside, synced to disk, then renamed.

`checkpoints/step-00001000/` holds `state.pt` (tensors and plain values only, so that reading it runs no
code) and `manifest.json` with its size and sha256, by which damage is recognised.
"""

import hashlib
import logging
import pickle
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trilemma.pipelines.files.reading import check_types, read_json
from trilemma.pipelines.files.writing import aside_of, remove, sync_to_disk, write_json, written
from trilemma.training.devices.ranks import decided, on_all

logger = logging.getLogger(__name__)

STATE, MANIFEST = "state.pt", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})$")


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are not what was written."""


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps that `folder` has checkpoints of, ascending."""
    names = (_NAME.match(path.name) for path in folder.glob("step-*"))
    return sorted(int(match.group(1)) for match in names if match)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a step's checkpoint, then delete all but the newest `keep`; after an OSError those are whole."""
    target = checkpoint_path(folder, step)
    aside = aside_of(target)
    try:
        aside.mkdir(parents=True)
        with written(aside / STATE) as file:
            torch.save(state, file)
        manifest = {"step": step, "size": (aside / STATE).stat().st_size, "sha256": _sha256(aside / STATE)}
        write_json(aside / MANIFEST, manifest)
        if target.exists():
            remove(target)
        aside.rename(target)
        sync_to_disk(folder)
    except BaseException as problem:
        shutil.rmtree(aside, ignore_errors=True)
        if not isinstance(problem, OSError | RuntimeError):  # torch.save reports a full disk as the latter
            raise
        older = checkpoint_steps(folder)
        left = f"the checkpoint of step {older[-1]} is whole" if older else "there is no earlier one"
        cause = problem.__context__ if isinstance(problem, RuntimeError) else problem
        reason = getattr(cause, "strerror", None) or str(problem).partition("\n")[0]
        raise OSError(
            f"the checkpoint of step {step} could not be written to {folder} ({reason}); {left}. "
            "Free some space, or lower --checkpoints_total_limit, and run the same command again."
        ) from problem
    for old in checkpoint_steps(folder)[:-keep]:
        remove(checkpoint_path(folder, old))
    return target


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state of one checkpoint, on the CPU; DamagedCheckpoint when it is not what was written."""
    try:
        manifest = read_json(path / MANIFEST)
        check_types(manifest, {"size": int, "sha256": str})
        there = {"size": (path / STATE).stat().st_size, "sha256": _sha256(path / STATE)}
        if there != {name: manifest.get(name) for name in there}:
            raise ValueError(f"{path / STATE} does not match its {MANIFEST}")
    except (OSError, ValueError) as problem:
        raise damaged(path, problem) from problem
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise damaged(path, f"{STATE} holds a pickle that could run code; it is not read") from problem
    except Exception as problem:  # torch raises anything for a file that it has not written
        raise damaged(path, f"{STATE} cannot be read: {problem}") from problem
    if not isinstance(state, dict):
        raise damaged(path, f"{STATE} holds no state of a run")
    return state


def damaged(path: Path, problem: object) -> DamagedCheckpoint:
    """The error for a checkpoint."""
    return DamagedCheckpoint(f"checkpoint {path} is damaged: {' '.join(str(problem).split())[:500]}")


def find_checkpoint(
    folder: Path, name: str, unusable: Collection[Path] = ()
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that `--resume_from_checkpoint` names, and its state; None when there is none to resume.

    name: 'latest' (the newest intact one, with a warning for each damaged one), a name, or a path. unusable:
    those that 'latest' passes over.
    """
    if name != "latest":
        path = folder / name if (folder / name).is_dir() else Path(name)
        if not path.is_dir():
            names = ", ".join(checkpoint_path(folder, s).name for s in checkpoint_steps(folder)) or "none"
            raise ValueError(f"--resume_from_checkpoint {name!r} is not a checkpoint; {folder} has: {names}")
        return path, load_checkpoint(path)
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        path = checkpoint_path(folder, step)
        if path in unusable:
            continue
        try:
            return path, load_checkpoint(path)
        except DamagedCheckpoint as damage:
            logger.warning("%s; trying the one before it", damage)
    if steps:
        raise DamagedCheckpoint(
            f"every checkpoint in {folder} is damaged; --overwrite_output_dir starts over"
        )
    return None


def find_same(
    folder: Path, name: str, accelerator: Accelerator, unusable: Collection[Path] = ()
) -> tuple[Path, dict[str, Any]] | None:
    """`find_checkpoint`, where the main process chooses the one that all read; collective."""
    newest: tuple[Path, dict[str, Any]] | None = None

    def choose() -> str | None:
        nonlocal newest
        newest = find_checkpoint(folder, name, unusable)
        if newest is None:
            return None
        path = newest[0]
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path.absolute())

    place = decided(accelerator, choose)
    if place is None:
        return None
    path = folder / place
    return on_all(accelerator, lambda: newest or (path, load_checkpoint(path)))


def set_newer_aside(folder: Path, step: int) -> None:
    """Rename checkpoints after `step`, when an older one is resumed: they are of a branch that was left."""
    for newer in (s for s in checkpoint_steps(folder) if s > step):
        path = checkpoint_path(folder, newer)
        aside = path.with_name(f"left-{path.name}")
        if aside.exists():
            remove(aside)
        path.rename(aside)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
