"""The output folder of a run: made, never over somebody else's files, and filled by one run at a time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from trilemma.training.config import RunConfig

OURS = ("checkpoints", "config.yaml", "run.json", "model_index.json")
"""Any of these in a folder shows that a run of ours wrote it."""

LOCK = ".lock"
"""Held by the run that fills the folder; the system lets go of it when that process ends, however it ends."""


@contextmanager
def own_folder(run: RunConfig, accelerator: Accelerator) -> Iterator[None]:
    """Have --output_dir, empty or with what an earlier run left, to oneself inside the block."""
    folder, lock = Path(run.output_dir), FileLock(Path(run.output_dir) / LOCK, blocking=False)
    with accelerator.main_process_first():
        found = {path.name for path in folder.iterdir()} - {LOCK} if folder.exists() else set()
        if found and found.isdisjoint(OURS):
            raise ValueError(
                f"--output_dir {str(folder)!r} holds files that are not a run's; name another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            _take(lock, folder)
            if run.overwrite_output_dir:
                _empty(folder)
    try:
        yield
    finally:
        lock.release()


def _take(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire()
    except Timeout as taken:
        raise ValueError(
            f"--output_dir {str(folder)!r} is being filled by another run; stop it, or name another folder"
        ) from taken
    except NotImplementedError:
        pass  # a file system without locks


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
