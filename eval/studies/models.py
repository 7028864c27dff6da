"""What the files of an output folder say of a model, for tables and charts of several; no torch here."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.eval.scoring import results

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """An output folder, read: all its results, its run.json with the number of parameters, its log lines."""

    name: str
    lines: list[Line]
    run: Mapping[str, Any]
    scalars: list[Mapping[str, float]]

    @property
    def finished(self) -> list[Line]:
        """Lines of the finished model, without those of folders of images."""
        steps = self.run.get("steps")
        late = (line for line in self.lines if None in (line["step"], steps) or line["step"] >= steps)
        return [line for line in late if line["seeds"] is not None]


def read_models(folders: Sequence[str]) -> list[Model]:
    """Each output folder under its own name, or the path that was typed where two have the same."""
    names = [Path(folder).resolve().name for folder in folders]
    told = [n if names.count(n) == 1 else typed for n, typed in zip(names, folders, strict=True)]
    if len(set(told)) < len(told):
        raise ValueError("--models names a folder twice")
    return [read_model(Path(folder), name) for folder, name in zip(folders, told, strict=True)]


def read_model(folder: Path, name: str) -> Model:
    """What the files of an output folder say; ValueError if it is none."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"--models: {str(folder)!r} is no output folder (it has no model_index.json)")
    run = json.loads((folder / "run.json").read_text()) if (folder / "run.json").is_file() else {}
    logs = list(results.read_objects(folder / "logs" / "scalars.jsonl").values())
    run["parameters"] = parameters(folder)
    return Model(name, results.read(folder / results.RESULTS), run, logs)


def parameters(folder: Path) -> int | None:
    """How many weights the pipeline's components have, from the headers of their safetensors files."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = [name for name, value in index.items() if isinstance(value, list)]
    count = 0
    for path in (file for part in parts for file in folder.glob(f"{part}/*.safetensors")):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return count or None
