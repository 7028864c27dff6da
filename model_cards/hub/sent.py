"""Which files of an output folder are published: those of the model, and of what is said about it.

The index and what it names, the card, what its owner says, the flags, the run, the results, pictures, judges,
logs and licences. No link is followed out of the folder, no pickle is sent, and what
else lies in the folder stays here.
"""

import logging
import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from trilemma.pipelines.files.arrays import tensor_shapes
from trilemma.pipelines.files.names import leaves
from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.saved import PICKLES, code_of, parts, refusal
from trilemma.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

WEIGHTS = ".safetensors"

AT_THE_TOP = ("*.png", "license*", "licence*", "notice*", "citation*")
"""Files beside the index, in small letters, whatever they are called in full."""

IN_LOGS = ("scalars.jsonl", "events.out.tfevents.*", "hparams.yml")
"""Files of the folder of logs, which a configuration may name as it likes."""

IN_PARTS = {".json", ".jinja", ".model", ".txt", WEIGHTS}
"""Endings in the folders of the pipeline's parts: weights, configurations, vocabularies."""


def sent(folder: OutputFolder) -> list[str]:
    """Names of the files that are published; FileError for a link out of the folder, pickled or cut weights.

    A warning names what else the folder holds, but for hidden files and what a run keeps to itself.
    """
    components, is_sent = parts(folder.read_index()), _of_model(folder)
    names, others = [], []
    for path in _files(folder):
        name = path.relative_to(folder.path).as_posix()
        (names if is_sent(name) else others).append(name)
    for name in names:
        _check(folder.path, name)
    for name in others:
        place = PurePosixPath(name)
        if place.suffix.lower() in PICKLES and place.parts[0] in components:
            raise FileError(f"{refusal(folder.path / name)}. Then delete it, and publish")
    if others:
        shown = ", ".join(others[:5]) + (f", ... ({len(others)} in all)" if len(others) > 5 else "")
        logger.warning("Not published, since it is no part of the model: %s", shown)
    return names


def _files(folder: OutputFolder) -> list[Path]:
    """All files but hidden ones and those that a run keeps to itself; of a linked folder, the link."""
    kept, files = {folder.best, folder.checkpoints, folder.averages, folder.sheets}, []
    for place, folders, names in os.walk(folder.path):
        here = [Path(place, name) for name in folders if not _hidden(name)]
        files += [path for path in here if path.is_symlink() and path not in kept]
        folders[:] = [path.name for path in here if path not in kept and not path.is_symlink()]
        files += [Path(place, name) for name in names if not _hidden(name)]
    return sorted(files)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _of_model(folder: OutputFolder) -> Callable[[str], bool]:
    """Whether a file of this name belongs to the model."""
    index, logs = folder.read_index(), folder.logs
    code, components = code_of(index, folder.path), parts(index)
    known = {
        folder.index,
        folder.card,
        folder.about,
        folder.config,
        folder.run,
        folder.results,
        *folder.judges(),
        *code,
    }

    def is_sent(name: str) -> bool:
        path, place = folder.path / name, PurePosixPath(name)
        if path in known:
            return True
        if place.parts[0] in components:
            return place.suffix in IN_PARTS or len(place.parts) == 1
        if place.suffix.lower() in PICKLES:
            return False
        if path.is_relative_to(logs) and any(fnmatchcase(path.name, form) for form in IN_LOGS):
            return True
        if path == logs:  # a link, which is refused
            return True
        return len(place.parts) == 1 and any(fnmatchcase(name.lower(), form) for form in AT_THE_TOP)

    return is_sent


def _check(root: Path, name: str) -> None:
    path = root / name
    if path.is_dir() or leaves(root, path) or not path.is_file():
        raise FileError(
            f"{path} is a link out of the folder, to a folder, or to nothing, and is not followed; put a "
            "copy in its place (cp -rL), or remove it"
        )
    if path.suffix == WEIGHTS:
        tensor_shapes(path, "save the model again")
