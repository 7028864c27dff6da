"""What a card is rendered from: the contents of an output folder, read.

A file that does not exist says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trilemma.eval.scoring import results
from trilemma.eval.scoring.results import ResultLine
from trilemma.model_cards.rendering.figures import best_sampling, shown
from trilemma.model_cards.rendering.saved_model import SavedModel, read_saved_model
from trilemma.model_cards.wording import wording
from trilemma.training import families
from trilemma.training.output_folder import OutputFolder


@dataclass(frozen=True)
class Contents:
    """An output folder, read, and the id under which its card names the model.

    family: None for a pipeline that is not of this toolkit. about: what the model's owner says of it.
    """

    folder: OutputFolder
    model_id: str
    family: str | None
    saved: SavedModel
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    lines: list[ResultLine]
    about: Mapping[str, str | list[str]]


def read_contents(path: str | Path, model_id: str | None = None) -> Contents:
    """Read an output folder; ValueError if it holds no pipeline.

    model_id: by default the Hub id of the flags, or else the folder's name.
    """
    folder = OutputFolder(Path(path))
    family = folder.family if folder.family in families.names() else None
    saved = read_saved_model(folder, wording(family).network)
    config, run = folder.read_config(), folder.read_run()
    lines = shown(results.read(folder.results), run.get("steps"))
    saved = replace(saved, best=best_sampling(lines))
    model_id = model_id or config.get("hub_model_id") or folder.path.resolve().name
    return Contents(folder, str(model_id), family, saved, config, run, lines, folder.read_about())
