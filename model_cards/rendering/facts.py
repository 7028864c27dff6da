"""What the files of an output folder say; a file that is not there says nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.eval.scoring import results
from trilemma.model_cards.rendering.figures import Line, shown
from trilemma.training.options.flags import read_yaml

CARD = "README.md"
RENDERED = "This page is rendered from the files beside it"  # and so it must agree with them
FEW = 50  # the most steps of DDIM that are recommended


@dataclass(frozen=True)
class Saved:
    """What the pipeline's own files say: its index, the configurations of its network and its sampler, if it
    has one.
    """

    index: Mapping[str, Any]
    network: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @property
    def pipeline(self) -> str:
        """Name of the pipeline's class."""
        name = self.index["_class_name"]
        return name[1] if isinstance(name, list) else name

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in their order, or None."""
        names = self.index.get("class_names")
        return None if names is None else [names[key] for key in sorted(names, key=int)]

    @property
    def task(self) -> str:
        """What the model does; the Hub has a page for the unconditional ones."""
        return ("class-conditional" if self.class_names else "unconditional") + "-image-generation"

    @property
    def few_steps(self) -> int | None:
        """Steps of DDIM, a divisor of T; None where they would be as many as T or too few."""
        total = self.scheduler["num_train_timesteps"]
        steps = max(n for n in range(1, FEW + 1) if total % n == 0)
        return steps if 10 <= steps < total else None


@dataclass(frozen=True)
class Folder:
    """An output folder, read, and the id under which its card names the model."""

    path: Path
    model_id: str
    saved: Saved
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    lines: list[Line]


def read_folder(path: str | Path, model_id: str | None = None) -> Folder:
    """Read an output folder; ValueError if it holds no pipeline.

    model_id: the Hub id of the flags, or the folder's name, if not given.
    """
    path = Path(path)
    if not (path / "model_index.json").is_file():
        raise ValueError(f"{path} holds no pipeline (model_index.json): give a training's output folder")
    index = _json(path / "model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and name != "_class_name"]
    network = next((name for name in parts if name != "scheduler"), "unet")
    saved = Saved(
        index,
        _json(path / network / "config.json"),
        _json(path / "scheduler" / "scheduler_config.json"),
    )
    config = read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    run = _json(path / "run.json")
    lines = shown(results.read(path / results.RESULTS), run.get("steps"))
    model_id = model_id or config.get("hub_model_id") or path.resolve().name
    return Folder(path, model_id, saved, config, run, lines)


def _json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
