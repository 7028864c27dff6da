"""The output folder of a run: what its files are called, and readers of those that describe the run.

No other file has these names. Reading needs no torch (but see `family`), so reports are printed at once.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.pipelines import stock_family_of_folder
from trilemma.training.options.text import as_path
from trilemma.training.options.yaml_file import read_values


@dataclass(frozen=True)
class OutputFolder:
    """Names of the files in an output folder, and readers of those that describe the run.

    A file that is not there is read as empty; one that cannot be read is a ValueError that names it.
    """

    path: Path

    @property
    def index(self) -> Path:
        """Which pipeline and components the folder holds."""
        return self.path / "model_index.json"

    @property
    def config(self) -> Path:
        """The resolved flags."""
        return self.path / "config.yaml"

    @property
    def run(self) -> Path:
        """Steps, images, seconds, hardware, versions, commit."""
        return self.path / "run.json"

    @property
    def results(self) -> Path:
        """Measured numbers, one on each line."""
        return self.path / "results.jsonl"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def best(self) -> Path:
        """The pipeline that scored best while it trained."""
        return self.path / "best"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, a folder each."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """The sheet of samples."""
        return self.path / "samples.png"

    @property
    def losses(self) -> Path:
        """The loss curves."""
        return self.path / "loss.png"

    @property
    def scores(self) -> Path:
        """The results of evaluation during training."""
        return self.path / "scores.png"

    @property
    def logs(self) -> Path:
        """--logging_dir."""
        return self.path / as_path(self.read_config().get("logging_dir", "logs"))

    @property
    def scalars(self) -> Path:
        """The numbers that were logged, one step on each line."""
        return self.logs / "scalars.jsonl"

    def judge(self, digits: str) -> Path:
        """The classifier that measured this model, by the first 16 digits of its sha256."""
        return self.path / f"judge-{digits}.safetensors"

    def judges(self) -> list[Path]:
        """The classifiers in the folder."""
        return sorted(self.path.glob(self.judge("*").name))

    def read_config(self) -> dict[str, Any]:
        """Flag -> value."""
        return read_values(self.config) if self.config.is_file() else {}

    def read_run(self) -> dict[str, Any]:
        """What run.json says."""
        return read_json(self.run) if self.run.is_file() else {}

    def read_index(self) -> dict[str, Any]:
        """What model_index.json says; ValueError without that file."""
        if not self.index.is_file():
            raise ValueError(
                f"{self.path} holds no pipeline ({self.index.name}): give a training's output folder"
            )
        return read_json(self.index)

    @property
    def family(self) -> str | None:
        """Which family the model is of; None for a pipeline that is not of ours.

        run.json names it. Without it, the file of code that the model ships does, `pipeline_<family>.py`, or
        for a stock pipeline `trilemma.pipelines.stock_family`, which imports torch.
        """
        if family := self.read_run().get("family"):
            return family
        index = self.read_index()
        name = index.get("_class_name")
        if isinstance(name, list):
            return name[0].removeprefix("pipeline_") if name[0].startswith("pipeline_") else None
        return stock_family_of_folder(self.path, index)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} cannot be read: {problem}") from problem
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds {type(values).__name__}")
    return values
