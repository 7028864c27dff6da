"""The facts that a card is rendered from: what the files of an output folder say.

A file that does not exist says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.eval.scoring import results
from trilemma.eval.scoring.results import ResultLine
from trilemma.model_cards.rendering.figures import shown
from trilemma.training import families
from trilemma.training.output_folder import OutputFolder, read_json

FEW = 50
"""The most steps of DDIM that a card recommends."""


@dataclass(frozen=True)
class SavedModel:
    """What the pipeline's own files say: its index, and the configurations of its network and its scheduler.

    The last is empty for a pipeline without a scheduler.
    """

    index: Mapping[str, Any]
    network: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    network_has_code: bool

    @property
    def pipeline(self) -> str:
        """Name of the pipeline's class."""
        return self.index["_class_name"][1] if self.ships_code else self.index["_class_name"]

    @property
    def ships_code(self) -> bool:
        """Whether the pipeline's class comes with the model."""
        return isinstance(self.index["_class_name"], list)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in their order, or None."""
        names = self.index.get("class_names")
        return None if names is None else [names[key] for key in sorted(names, key=int)]

    @property
    def task(self) -> str:
        """What the model does, in the Hub's words; only unconditional models have a task page there."""
        return ("class-conditional" if self.class_names else "unconditional") + "-image-generation"

    @property
    def few_steps(self) -> int | None:
        """The largest number of DDIM steps up to FEW that divides T; None if it is T itself or below 10."""
        total = self.scheduler["num_train_timesteps"]
        steps = max(n for n in range(1, FEW + 1) if total % n == 0)
        return steps if 10 <= steps < total else None


@dataclass(frozen=True)
class Facts:
    """An output folder, read, and the id under which its card names the model.

    family: None for a pipeline that is not of this toolkit.
    """

    folder: OutputFolder
    model_id: str
    family: str | None
    saved: SavedModel
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    lines: list[ResultLine]


def read_facts(path: str | Path, model_id: str | None = None) -> Facts:
    """Read an output folder; ValueError if it holds no pipeline.

    model_id: by default the Hub id of the flags, or else the folder's name.
    """
    folder = OutputFolder(Path(path))
    saved, config, run = _read_saved(folder), folder.read_config(), folder.read_run()
    lines = shown(results.read(folder.results), run.get("steps"))
    model_id = model_id or config.get("hub_model_id") or folder.path.resolve().name
    family = folder.family if folder.family in families.names() else None
    return Facts(folder, model_id, family, saved, config, run, lines)


def _read_saved(folder: OutputFolder) -> SavedModel:
    index = folder.read_index()
    parts = [name for name, value in index.items() if isinstance(value, list) and name != "_class_name"]
    network = next((name for name in parts if name != "scheduler"), "unet")
    return SavedModel(
        index,
        _configuration(folder.path / network / "config.json"),
        _configuration(folder.path / "scheduler" / "scheduler_config.json"),
        network_has_code=network in index and index[network][0] != "diffusers",
    )


def _configuration(path: Path) -> Mapping[str, Any]:
    """A part's configuration, under the name that diffusers gives it; {} if the part is not there."""
    return read_json(path) if path.is_file() else {}
