"""How a file is written."""

import os
from pathlib import Path


def append_lines(path: Path, text: str) -> None:
    """Add whole lines to a file, all or none; what a killed process left of a line stays on its own line.

    So the torn one is reported by whoever reads the file, and no other is lost with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = file.read(1) not in (b"", b"\n")
        try:
            rest = b"\n" * torn + text.encode("utf-8")
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)
            raise
