"""The output folder of a run: made, never over somebody else's files, and filled by one run at a time."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from trilemma.training.options.groups import RunConfig

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OURS = ("checkpoints", "config.yaml", "run.json", "model_index.json")
"""Any of these in a folder shows that a run of ours wrote it."""

LOCK = ".lock"
"""Locked by the run that fills the folder, until its process ends, however it ends."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What some network file systems answer, where nothing is locked."""


@contextmanager
def own_folder(run: RunConfig, accelerator: Accelerator) -> Iterator[None]:
    """Have --output_dir, empty or with what an earlier run left, to oneself inside the block."""
    folder, lock = Path(run.output_dir), None
    with accelerator.main_process_first():
        found = {path.name for path in folder.iterdir()} - {LOCK} if folder.exists() else set()
        if found and found.isdisjoint(OURS):
            raise ValueError(
                f"--output_dir {str(folder)!r} holds files that are not a run's; name another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
            _take(lock, folder)
            if run.overwrite_output_dir:
                _empty(folder)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _take(lock: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        os.close(lock)
        raise ValueError(
            f"--output_dir {str(folder)!r} is being filled by another run; stop it, or name another folder"
        ) from taken
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
