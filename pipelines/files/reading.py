"""Files that a run reads: each reader names the file that it cannot read."""

import json
from pathlib import Path
from typing import Any


class FileError(ValueError):
    """A file that cannot be used; the message names it and says what to do."""


def read_json(path: Path, shape: type = dict) -> Any:
    """The value in a JSON file, which must have this type."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise FileError(f"{path} cannot be read: {problem}") from problem
    if not isinstance(value, shape):
        raise FileError(f"{path} must hold a {shape.__name__}; it holds a {type(value).__name__}")
    return value
