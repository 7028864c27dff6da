"""Names that files give of other files: plain ones, inside the folder."""

from pathlib import Path


def inside(folder: Path, name: object, file: Path | str) -> Path:
    """The path of a plain name in a folder; ValueError names the file in which another name stands."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
        raise ValueError(f"{file} names {name!r}, which is not a plain name of a file beside it")
    return folder / name
