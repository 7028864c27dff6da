"""How a file is written: aside in its own folder, synced to the disk, then renamed.

Whoever reads it sees the old file or the new one. Where writing fails, as on a full disk, the old file is
whole, nothing lies beside it, and the error names the file. Only a killed process leaves what it wrote aside;
`target_of` knows it by its name.
"""

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial", re.DOTALL)

_REMEDIES = {
    "free some space": (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)),
    "raise the limit on the size of a file": (errno.EFBIG,),
    "make its folder writable": (errno.EACCES, errno.EPERM, errno.EROFS),
}

_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What some network disks say of a sync."""


class WriteError(OSError):
    """A file that could not be written: its name, the reason and the remedy in one line."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside the block becomes a WriteError that names `path`."""
    try:
        yield
    except WriteError:
        raise
    except OSError as problem:
        raise WriteError(refusal(path, problem)) from problem


def refusal(path: Path, problem: Exception) -> str:
    """Why a file could not be written, and what to do."""
    number = getattr(problem, "errno", None)
    remedy = next((words for words, numbers in _REMEDIES.items() if number in numbers), "free some space")
    reason = str(getattr(problem, "strerror", None) or problem).partition("\n")[0]
    return f"{path} could not be written ({reason}): {remedy}, or name another place, and run it again"


def aside_of(path: Path) -> Path:
    """A name in the same folder that no other process takes, to be renamed to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def target_of(name: str) -> str | None:
    """The name of what a file or folder was to become that `aside_of` has named; None for any other name.

    When its process has ended, such a file is of no use.
    """
    aside = _ASIDE.fullmatch(name)
    return aside and aside[1]


@contextmanager
def written(path: Path | str, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write inside the block, which replaces `path` when the block ends without an error.

    sync=False: a file that can be made again at once, such as one of thousands of pictures.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = aside_of(path)
        try:
            with open(aside, "xb") as file:
                yield file
                file.flush()
                if sync:
                    _sync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
        if sync:
            sync_to_disk(path.parent)


def share_as_new(folder: Path) -> None:
    """Give the files in a folder and below the permissions of any new file there, as the umask has them.

    Libraries write some for this user alone: safetensors since version 0.8.
    """
    probe = aside_of(folder / "probe")
    with naming(folder):
        with open(probe, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        probe.unlink()
        for path in folder.rglob("*"):
            if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Replace a file; characters that are no UTF-8, as of names of files, become U+FFFD."""
    with written(path) as file:
        file.write(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode("utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def append_lines(path: Path, text: str, sync: bool = True) -> None:
    """Add whole lines to a file, all or none.

    What a killed process left of a line stays on a line of its own: whoever reads the file reports it, and no
    other line is lost with it.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with open(path, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            try:
                write_all(file, b"\n" * torn + text.encode("utf-8"))
                if sync:
                    _sync(file.fileno())
            except BaseException:
                file.truncate(size)
                if new:
                    path.unlink()
                raise


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write to a file without a buffer, which may take less at once; after an error nothing is left to do."""
    while data:
        data = data[file.write(data) :]


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool], dropped: Path | None = None) -> int:
    """Keep the objects of a JSON-lines file for which `keep(line)` holds; the number of lines dropped.

    A line that is not JSON is dropped too; one that is no object stays, so that whoever reads the file
    reports it. dropped: a file to which dropped lines are added.
    """
    if not path.exists():
        return 0
    kept, others = [], []
    for line in path.read_bytes().split(b"\n"):
        if line.strip():
            (kept if _is_kept(line, keep) else others).append(line + b"\n")
    if not others:
        return 0
    if dropped:
        append_lines(dropped, b"".join(others).decode("utf-8", "replace"))
    with written(path) as file:
        file.writelines(kept)
    return len(others)


def _is_kept(line: bytes, keep: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not isinstance(parsed, dict) or keep(parsed)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync_to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk; Windows does so for files that are open for writing."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return  # Windows opens no folders
        raise
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in _CANNOT_SYNC:
            raise
