"""Models as their output folders describe them, for tables and charts of several; no torch here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilemma.eval.scoring import results
from trilemma.eval.scoring.results import ResultLine
from trilemma.pipelines.files.arrays import tensor_shapes
from trilemma.training.output_folder import OutputFolder


@dataclass(frozen=True)
class Model:
    """An output folder, read: all its results, its run.json with the number of parameters, its log
    lines, its flags. folder: where it lies, for its pictures and its weights."""

    name: str
    lines: list[ResultLine]
    run: Mapping[str, Any]
    scalars: list[Mapping[str, float]]
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: OutputFolder = field(default_factory=lambda: OutputFolder(Path()))

    @property
    def finished(self) -> list[ResultLine]:
        """Lines of the finished model, without those of folders of images."""
        steps = self.run.get("steps")
        late = (line for line in self.lines if None in (line.step, steps) or line.step >= steps)
        return [line for line in late if line.seeds is not None]


def read_models(folders: Sequence[str]) -> list[Model]:
    """Each output folder under its own name, or under its path as typed where two names are the same."""
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ValueError("--models names a folder twice")
    names = [OutputFolder(Path(folder)).name for folder in folders]
    labels = [n if names.count(n) == 1 else typed for n, typed in zip(names, folders, strict=True)]
    return [read_model(OutputFolder(Path(f)), label) for f, label in zip(folders, labels, strict=True)]


def read_model(folder: OutputFolder, name: str) -> Model:
    """What the files of an output folder say; ValueError if it is not one."""
    if not folder.index.is_file():
        raise ValueError(
            f"--models: {str(folder.path)!r} is not an output folder: it has no {folder.index.name}"
        )
    run = folder.read_run() | {"parameters": parameters(folder)}
    lines, logged = results.read(folder.results), folder.read_scalars()
    return Model(name, lines, run, logged, folder.read_config(), folder)


def parameters(folder: OutputFolder) -> int | None:
    """How many weights the pipeline's components have, from the headers of their safetensors files."""
    parts = [name for name, value in folder.read_index().items() if isinstance(value, list)]
    count = 0
    for path in (file for part in parts for file in folder.path.glob(f"{part}/*.safetensors")):
        count += sum(math.prod(shape) for shape in tensor_shapes(path).values())
    return count or None
