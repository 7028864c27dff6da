"""The output folder of a run: what its files are called, and readers of those that describe the run.

No other file has these names. Reading needs no torch (but see `family`), so reports are printed at once.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from trilemma.pipelines import stock_family_of_folder
from trilemma.pipelines.files.reading import (
    FileError,
    check_types,
    fits,
    read_json,
    read_json_lines,
    read_yaml,
)
from trilemma.pipelines.files.saved import INDEX, read_index
from trilemma.pipelines.files.text import as_path
from trilemma.training.options.flags import PLACES
from trilemma.training.options.groups import DataConfig

USED_OF_INDEX = {"_class_name": str | tuple[str, str], "class_names": dict[str, str] | None}
HARDWARE = {"device": str, "name": str, "processes": int, "threads": int, "mixed_precision": str}
RUN = {"steps": int, "images_seen": int}
RUN |= dict.fromkeys(("seconds", "evaluation_seconds", "images_per_second"), float)
RUN |= {"family": str | None, "hardware": dict, "versions": dict[str, str], "commit": str | None}
RUN |= {"plugins": dict[str, str], "in_memory": dict[str, str], "average": dict[str, float]}
OF_ALL_STEPS = ("family", "hardware", "versions", "commit")
ABOUT = dict.fromkeys(("description", "data_source", "license", "licence"), str)
ABOUT |= {"language": str | tuple[str, ...], "intended_use": str, "contact": str}
CONFIG = dict.fromkeys((*PLACES, "hub_model_id"), str | None) | get_type_hints(DataConfig)
CONFIG |= {"seed": int, "logging_dir": str, "sampler": str | None, "compile": bool | None}
CONFIG |= dict.fromkeys(
    ("lr_warmup_steps", "max_train_steps", "num_epochs", "ddpm_num_inference_steps"), int | None
)
"""Types of the entries that are read: of model_index.json, of run.json, of its hardware, of about.yaml, and
of config.yaml, whose other flags only the card repeats. OF_ALL_STEPS: entries of run.json that say nothing of
its length."""


def own_sampling(config: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Sampler and number of steps of a run's own samples, as its config.yaml has them."""
    return config.get("sampler"), config.get("ddpm_num_inference_steps")


@dataclass(frozen=True)
class OutputFolder:
    """Names of the files in an output folder, and readers of those that describe the run.

    A file that is not there is read as empty; one that cannot be read is a ValueError that names it.
    """

    path: Path

    @property
    def index(self) -> Path:
        """Which pipeline and components the folder holds."""
        return self.path / INDEX

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
    def about(self) -> Path:
        """What the model's owner says of it on the card; optional, and written by hand."""
        return self.path / "about.yaml"

    @property
    def best(self) -> Path:
        """The pipeline that scored best while it trained."""
        return self.path / "best"

    @property
    def run_of_best(self) -> "OutputFolder | None":
        """The run whose best pipeline this folder holds; None for other folders.

        What a folder `best/` lacks is read there: those of older runs have no config.yaml.
        """
        path = Path(os.path.abspath(self.path))
        run = OutputFolder(path.parent)
        return run if path == run.best and run.config.exists() else None

    @property
    def name(self) -> str:
        """The folder's own name, and for `best/` that of its run before it."""
        own, run = self.path.resolve().name, self.run_of_best
        return f"{run.path.name}/{own}" if run else own

    @property
    def trace(self) -> Path:
        """Some steps as `--profile` saw them, for chrome://tracing; it is not published."""
        return self.path / "profile.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, a folder each."""
        return self.path / "checkpoints"

    @property
    def averages(self) -> Path:
        """Snapshots of the averages from which `training/average.py` makes others, a file for each step."""
        return self.path / "averages"

    @property
    def samples(self) -> Path:
        """The sheet of samples."""
        return self.path / "samples.png"

    @property
    def sheets(self) -> Path:
        """The sheets that were drawn while training, a file for each step; they are not published."""
        return self.path / "sheets"

    def sheet(self, step: int) -> Path:
        """That of a step."""
        return self.sheets / f"step-{step:08d}.png"

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
        own, run = sorted(self.path.glob(self.judge("*").name)), self.run_of_best
        return own or (run.judges() if run else [])

    def read_config(self) -> dict[str, Any]:
        """Flag -> value."""
        if not self.config.exists():
            return self.run_of_best.read_config() if self.run_of_best else {}
        return _checked(self.config, read_yaml(self.config), CONFIG)

    def read_run(self) -> dict[str, Any]:
        """What run.json says."""
        if not self.run.exists():
            run = self.run_of_best.read_run() if self.run_of_best else {}
            return {name: value for name, value in run.items() if name in OF_ALL_STEPS}
        values = _checked(self.run, read_json(self.run), RUN)
        _checked(self.run, values.get("hardware", {}), HARDWARE)
        return values

    def read_about(self) -> dict[str, str | list[str]]:
        """What the owner says of the model; FileError for an entry that no card shows."""
        if not self.about.exists():
            return {}
        values = read_yaml(self.about)
        if unknown := values.keys() - ABOUT.keys():
            names = f"{', '.join(map(repr, sorted(map(str, unknown))))}; entries are {', '.join(ABOUT)}"
            raise FileError(self.about, f"has {names}")
        return _checked(self.about, values, ABOUT)

    def read_index(self) -> dict[str, Any]:
        """What model_index.json says; ValueError without that file."""
        if not self.index.exists():
            raise ValueError(
                f"{self.path} holds no pipeline ({self.index.name}): give a training's output folder"
            )
        index = _checked(self.index, read_index(self.index), USED_OF_INDEX)
        names = index.get("class_names") or {}
        if names.keys() != set(map(str, range(len(names)))):
            raise FileError(self.index, 'has class_names that are not numbered "0", "1", ...')
        return index

    def read_scalars(self) -> list[dict[str, float]]:
        """The numbers that were logged, a step each."""
        if self.run_of_best and not self.scalars.exists():
            last = self.read_run().get("steps", 0)
            return [line for line in self.run_of_best.read_scalars() if line["step"] <= last]
        lines = []
        for number, line in read_json_lines(self.scalars):
            if not fits(line, dict[str, float]) or "step" not in line:
                place = f"{self.scalars}, line {number}"
                raise FileError(place, "is no step with numbers", "delete the line")
            lines.append(line)
        return lines

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


def _checked(path: Path, values: dict[str, Any], types_of: Mapping[str, Any]) -> dict[str, Any]:
    """The values; FileError that names the first of another type."""
    try:
        check_types(values, types_of)
    except ValueError as problem:
        raise FileError(path, problem) from problem
    return values
