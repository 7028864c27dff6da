"""The output folder of a run: what its files are called, who may fill it, and how they are read and written.

No other file has these names. Reading needs no torch (but see `family`), so reports are printed at once.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from trilemma.pipelines import stock_family_of_folder
from trilemma.pipelines.files.saved import INDEX, read_index
from trilemma.training.options.groups import RunConfig
from trilemma.training.options.text import as_path, as_text
from trilemma.training.options.yaml_file import read_values

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK = ".lock"
"""Held by the run that fills the folder, until its process ends, however it ends."""


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
        return read_index(self.index)

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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file at once."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: whoever reads it sees the old text or the new."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(as_text(text, "replace"), encoding="utf-8")
    os.replace(aside, path)


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Keep the objects of a JSON-lines file for which `keep(line)` holds, and drop a half-written last one.

    A line that is no object stays, so that whoever reads the file reports it.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(parsed, dict) or keep(parsed):
            kept.append(line + "\n")
    write_text(path, "".join(kept))


@contextmanager
def own_folder(run: RunConfig, accelerator: "Accelerator") -> Iterator[OutputFolder]:
    """Exclusive use of --output_dir, empty or with what an earlier run left, inside the block."""
    from trilemma.training.devices.ranks import decided, share_folder  # which imports torch

    folder, held = OutputFolder(Path(run.output_dir)), ExitStack()

    def take() -> None:
        held.callback(_take(folder.path).release)
        if run.overwrite_output_dir:
            _empty(folder.path)

    with held:
        decided(accelerator, lambda: _refuse_foreign(folder))
        share_folder(folder.path, accelerator, "--output_dir")
        decided(accelerator, take)
        yield folder


def _refuse_foreign(folder: OutputFolder) -> None:
    """ValueError for a folder that has files, but none that a run writes."""
    names = {path.name for path in folder.path.iterdir()} - {LOCK} if folder.path.exists() else set()
    ours = {path.name for path in (folder.checkpoints, folder.config, folder.run, folder.index)}
    if names and names.isdisjoint(ours):
        raise ValueError(
            f"--output_dir {str(folder.path)!r} holds files but no run of this toolkit; name another folder"
        )


def _take(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as taken:
        raise ValueError(
            f"--output_dir {str(folder)!r} is being filled by another run; stop it, or name another folder"
        ) from taken
    except NotImplementedError:
        pass  # a network disk without locks, where nothing is locked
    return lock


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
