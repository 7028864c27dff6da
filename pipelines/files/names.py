"""Names that files bring, such as those in an index: each leads to a place inside its folder, or is refused.

Whoever made a file chose the names in it. Joined to a path as they are, `../x` and `/x` lead out of the
folder.
"""

import os
import posixpath
import re
from pathlib import Path

from trilemma.pipelines.files.reading import FileError

LONGEST = 255
"""Bytes in a name, on the usual disks."""

NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f]")


def inside(folder: Path, name: object, file: Path | str) -> Path:
    """The path of a plain name in a folder; FileError names the `file` in which any other name stands."""
    if not is_plain(name):
        raise FileError(
            f"{file} names {_shown(name)}, which is not the plain name of something in its folder; get the "
            "file again from where it came from, or do not use it"
        )
    return Path(folder) / str(name)


def below(folder: Path, path: object, file: Path | str) -> Path:
    """The same for a relative path of plain names, with / or \\ between them."""
    text = path.replace("\\", "/") if isinstance(path, str) and path else ".."
    names = posixpath.normpath(text).split("/")
    if "://" in text or not all(map(is_plain, names)):
        raise FileError(
            f"{file} names {_shown(path)}, which is not in its folder; move it there, and name it by its "
            "path from that folder"
        )
    return Path(folder).joinpath(*names)


def is_plain(name: object) -> bool:
    """Whether it is one name: no path, no drive, nothing that cannot be the name of a file."""
    if not isinstance(name, str) or name in ("", ".", "..") or NO_NAME.search(name):
        return False
    if Path(name).name != name:  # a drive, on Windows
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= LONGEST


def leaves(folder: Path, path: Path) -> bool:
    """Whether a path, its links followed, ends outside the folder or nowhere."""
    try:
        return not path.resolve(strict=True).is_relative_to(os.path.realpath(folder))
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return True


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:80]}..."
