"""How several files and folders of one folder are replaced together.

The new ones are written to a stage, a hidden folder inside the folder itself, which may be a mount point, lie
on another disk, or in a parent where nothing can be written. When they are whole, the old ones are moved out
and the new ones in. A process that is killed meanwhile leaves its stage, which says what was to be moved;
`finish_stages` moves the rest.
"""

import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from trilemma.pipelines.files.names import inside
from trilemma.pipelines.files.reading import FileError, check_types, read_json
from trilemma.pipelines.files.writing import (
    aside_of,
    naming,
    share_as_new,
    sync_to_disk,
    target_of,
    write_json,
)

logger = logging.getLogger(__name__)

NEW, OLD, MOVES = "new", "old", "moves.json"

_NAME = "stage"


@contextmanager
def stage_in(folder: Path) -> Iterator[Path]:
    """An empty stage inside `folder`, which is made if need be: write to its `new`, then `put_in_place`.

    Unless the moves have begun, nothing is left of it after the block.
    """
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    stage = aside_of(folder / _NAME)
    try:
        with naming(folder):
            (stage / NEW).mkdir(parents=True)
        yield stage
    finally:
        if not (stage / MOVES).exists():
            shutil.rmtree(stage, ignore_errors=True)
            for place in made:  # the innermost first
                if place.is_dir() and not any(place.iterdir()):
                    place.rmdir()


def put_in_place(stage: Path, leaving: Collection[str], last: str) -> None:
    """Move what is in the stage's `new` to its folder, in place of it and of the entries named `leaving`.

    last: the entry that says that all others are there; the old one goes first, the new one comes last.
    """
    new, folder = stage / NEW, stage.parent
    arriving = sorted({entry.name for entry in new.iterdir()} - {last})
    with naming(folder):
        share_as_new(new)
        for path in (*new.rglob("*"), new):
            sync_to_disk(path)
        moves = {"out": [last, *sorted({*leaving, *arriving} - {last})], "in": [*arriving, last]}
        write_json(stage / MOVES, moves)
        _move(stage)


def finish_stages(folder: Path) -> None:
    """Finish what killed processes left: a stage that is whole goes into place, any other is deleted.

    One whose list of moves is damaged, or that leads out of the folder by a link, is put aside. Call it where
    no other process saves to this folder.
    """
    for stage in list(folder.iterdir()) if folder.is_dir() else ():
        if target_of(stage.name) != _NAME or not stage.is_dir():
            continue
        if stage.is_symlink() or any((stage / part).is_symlink() for part in (NEW, OLD, MOVES)):
            _put_aside(stage, "has a link, which a save never makes")
        elif not (stage / MOVES).is_file():
            shutil.rmtree(stage, ignore_errors=True)
        else:
            try:
                with naming(folder):
                    _move(stage)
            except FileError as problem:
                _put_aside(stage, str(problem))


def _put_aside(stage: Path, problem: str) -> None:
    """Under a name that no run takes for a stage of its own."""
    aside = stage.with_name(f"left{stage.name.removesuffix('.partial')}")
    stage.rename(aside)
    logger.warning("%s, left by a save that was cut, is put aside as %s: it %s", stage, aside.name, problem)


def _move(stage: Path) -> None:
    """Do the moves that are not done yet; an entry that is still in `new` has not arrived."""
    folder, new, old = stage.parent, stage / NEW, stage / OLD
    moves = read_json(stage / MOVES)
    if moves.keys() != {"out", "in"}:
        raise FileError(stage / MOVES, "is no list of moves")
    try:
        check_types(moves, {"out": list[str], "in": list[str]})
    except ValueError as problem:
        raise FileError(stage / MOVES, problem) from problem
    for name in (*moves["out"], *moves["in"]):  # nothing is moved unless all of it can be
        inside(folder, name, stage / MOVES)
    old.mkdir(exist_ok=True)
    for name in moves["out"]:
        here = inside(folder, name, stage / MOVES)
        if os.path.lexists(here) and (name not in moves["in"] or os.path.lexists(new / name)):
            here.rename(old / name)
    for name in moves["in"]:
        if os.path.lexists(new / name):
            (new / name).rename(inside(folder, name, stage / MOVES))
    sync_to_disk(folder)
    shutil.rmtree(stage, ignore_errors=True)
