"""Arrays and tensors from files that may be damaged or hostile. Nothing is unpickled.

What a file promises is compared with its size before memory is asked for.
"""

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trilemma.pipelines.files.reading import FileError

LARGEST_RATIO = 200
"""Bytes that one compressed byte may become, in an array of more than SMALL bytes; zeros become 1,000."""
SMALL = 64 * 2**20


@contextmanager
def naming(path: Path | str, what: str, remedy: str = "") -> Iterator[None]:
    """Whatever a library raises about a file in the block, as a FileError."""
    try:
        yield
    except FileError:
        raise
    except Exception as problem:  # numpy, zipfile and safetensors raise anything for a damaged file
        text = f"needs more memory than there is ({problem})" if isinstance(problem, MemoryError) else problem
        raise FileError(path, f"is not {what}: {text}", remedy) from problem


def read_npz(path: Path | str, names: Sequence[str] | None = None, remedy: str = "") -> dict[str, Any]:
    """The arrays of these names in an .npz, or by default the first one; FileError if one is missing."""
    import numpy as np

    with naming(path, "an .npz of plain arrays", remedy):
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise FileError(path, "has two arrays of one name", remedy)
            names = [*members][:1] if names is None else names
            missing = [name for name in names if name not in members]
            if missing or not names:
                there = f"named {' or '.join(map(repr, missing))}" if missing else "in it"
                raise FileError(path, f"has no array {there}", remedy)
            for name in names:
                _check_promise(archive, members[name], path)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}


def _check_promise(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path | str) -> None:
    """FileError for an array whose header, its member of the archive and the file itself do not agree."""
    import numpy as np

    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        headers = np.lib.format
        read = headers.read_array_header_1_0 if version == (1, 0) else headers.read_array_header_2_0
        shape, _, dtype = read(file)
        promised = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError("pickled contents are never read")
        if promised != info.file_size - file.tell():
            raise ValueError(f"{info.filename} promises {promised:,} bytes and has {info.file_size:,}")
    if promised > SMALL and promised > LARGEST_RATIO * info.compress_size:
        raise FileError(
            path, f"is not read: {info.filename} would become {promised:,} bytes from {info.compress_size:,}"
        )


def open_npy(path: Path | str, remedy: str = "") -> Any:
    """The array of an .npy, mapped and not read."""
    import numpy as np

    with naming(path, "an .npy of plain numbers", remedy):
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def open_safetensors(path: Path | str, framework: str, remedy: str = "") -> Iterator[Any]:
    """A .safetensors file as `safe_open` gives it."""
    from safetensors import safe_open

    if Path(path).exists() and not Path(path).is_file():  # a pipe would wait for ever
        raise FileError(path, "is not a file", remedy)
    with naming(path, "a whole .safetensors file", remedy), safe_open(path, framework=framework) as file:
        yield file


def read_safetensors(path: Path | str, remedy: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors of torch and the metadata of a .safetensors file."""
    with open_safetensors(path, "pt", remedy) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def tensor_shapes(path: Path | str, remedy: str = "") -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a .safetensors file, which are not read."""
    with open_safetensors(path, "np", remedy) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
