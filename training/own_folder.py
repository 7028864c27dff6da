"""Who may fill an output folder: one run at a time, and only a folder that is empty or that a run has filled.

What killed runs left is cleared up before anything else is done, by the run that holds the lock.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.staging import finish_stages
from trilemma.pipelines.files.writing import naming, remove, target_of
from trilemma.training.devices.ranks import decided, share_folder
from trilemma.training.options.groups import RunConfig
from trilemma.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Held by the run that fills the folder, until its process ends, however it ends."""

OF_DISKS = ("lost+found",)
"""What a disk has at its root, where it is mounted."""

CHECKPOINT = re.compile(r"(left-)?step-\d{8,}|\..+\.partial|\.partial-\d{8,}")
"""What is deleted in a checkpoints/ that is a link."""

LEFT_BY_0_1 = re.compile(
    r"\.partial-\d{8,}"
    r"|\.(config\.yaml|run\.json|README\.md|results\.jsonl|scalars\.jsonl|judge-\w+\.safetensors)\.partial"
)

WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What flock says on a network disk without locks."""


@contextmanager
def own_folder(run: RunConfig, accelerator: Accelerator) -> Iterator[OutputFolder]:
    """Exclusive use of --output_dir, empty or with what an earlier run left, inside the block."""
    folder, held = OutputFolder(Path(run.output_dir)), ExitStack()
    new = accelerator.is_main_process and not folder.path.exists()

    def take() -> None:
        new = not (folder.path / LOCK).exists()
        lock = _take(folder.path)
        if lock:
            held.callback(lock.release)
        try:
            _refuse_foreign(folder)
        except ValueError:
            if new:
                (folder.path / LOCK).unlink(missing_ok=True)
            raise
        if run.overwrite_output_dir:
            _empty(folder)
        if lock:
            _clear_up(folder)

    with held:
        decided(accelerator, lambda: _refuse_lost_links(folder))
        share_folder(folder.path, accelerator, "--output_dir")
        decided(accelerator, take)
        try:
            yield folder
        except ValueError:
            if new:
                _remove_if_empty(folder.path)
            raise


def _remove_if_empty(folder: Path) -> None:
    """Delete a folder that has nothing but the lock: a run that was refused made it."""
    with suppress(OSError):  # Windows deletes no file that is open
        if all(path.name == LOCK for path in folder.iterdir()):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _refuse_lost_links(folder: OutputFolder) -> None:
    """ValueError for a link to a place that is not there, such as a disk that is not mounted."""
    for path in (folder.path, folder.checkpoints, folder.best):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"--output_dir: {path} is a link to {os.readlink(path)}, which is not there; mount that "
                "disk, make that folder, or delete the link"
            )


def _refuse_foreign(folder: OutputFolder) -> None:
    """ValueError for a folder that has files, but none that a run writes."""
    names = {path.name for path in folder.path.iterdir()} - {LOCK, *OF_DISKS}
    names = {name for name in names if not _is_left(name)}
    ours = {path.name for path in (folder.checkpoints, folder.run, folder.index)}
    if names and names.isdisjoint(ours) and not _has_flags(folder):
        raise ValueError(
            f"--output_dir {str(folder.path)!r} holds files but no run of this toolkit; name another folder"
        )


def _has_flags(folder: OutputFolder) -> bool:
    """Whether there is a config.yaml that may be a run's: other projects have a file of that name, too."""
    if not folder.config.exists():
        return False
    try:
        return "output_dir" in folder.read_config()
    except FileError:  # a damaged one is no reason to refuse a run
        return True


def _take(folder: Path) -> FileLock | None:
    """The lock of a folder, held; None on a disk that has no locks."""
    if _has_no_locks(folder / LOCK):
        logger.warning(
            "The disk of %s has no locks: see to it that no other run fills this folder, and delete hidden "
            "files that end in .partial yourself.", folder,
        )  # fmt: skip
        return None
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as taken:
        raise ValueError(
            f"--output_dir {str(folder)!r} is being filled by another run; stop it, or name another folder"
        ) from taken
    return lock


def _has_no_locks(path: Path) -> bool:
    """Whether a file lies on a network disk without locks; the file is made."""
    try:
        import fcntl
    except ImportError:  # Windows, where every disk has locks
        return False
    with naming(path), open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as problem:
            return problem.errno in WITHOUT_LOCKS
    return False


def _empty(folder: OutputFolder) -> None:
    """Delete what is in the folder; where checkpoints/ is a link, the checkpoints, and the link stays."""
    for path in folder.path.iterdir():
        if path == folder.checkpoints and path.is_symlink():
            for checkpoint in path.iterdir():
                if CHECKPOINT.fullmatch(checkpoint.name):
                    remove(checkpoint)
        elif path.name not in (LOCK, *OF_DISKS):
            remove(path)


def _clear_up(folder: OutputFolder) -> None:
    """Finish or delete what killed processes left: stages of models, checkpoints and files written aside."""
    for place in (folder.path, folder.best):
        finish_stages(place)
    _remove_asides(folder.path)
    for place in [path for path in folder.path.iterdir() if path.is_dir() and not path.is_symlink()]:
        _remove_asides(place)
    here = folder.path.absolute()
    for parent, name in ((here.parent, here.name), (here, folder.best.name)):
        stage = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}")  # of version 0.1, beside the folder
        with suppress(OSError):  # where the parent cannot be read, nothing of ours is in it
            for path in [path for path in parent.iterdir() if stage.fullmatch(path.name)]:
                if path.is_dir() and {entry.name for entry in path.iterdir()} <= {"new", "old"}:
                    remove(path)


def _remove_asides(place: Path) -> None:
    for path in [path for path in place.iterdir() if _is_left(path.name)]:
        remove(path)


def _is_left(name: str) -> bool:
    """Whether this is the name of something that a killed run, also one of version 0.1, wrote aside."""
    return target_of(name) is not None or LEFT_BY_0_1.fullmatch(name) is not None
