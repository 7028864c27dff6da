"""Pipelines that a downloaded model needs: one file a family, shipped as one file (`single_file.py`).

A family whose models are saved as a stock pipeline of diffusers says so in its file, and only there:

    saved_as                       of its pipeline: the stock class
    is_stock(class, scheduler)     whether such a stock pipeline is of the family
    from_stock(pipeline)           the family's pipeline of such a model

Several families may be saved as one class. run.json names the family; without it, `is_stock` decides.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.saved import parts, read_configuration

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin


LIKE: dict[str, str] = {}
"""Family of a plug-in -> the family whose pipeline it has, and whose files on the floors above."""


def as_ours(pipeline: "DiffusionPipeline", family: str | None = None) -> "DiffusionPipeline":
    """A loaded pipeline as one of a family: with `family`, `network`, `sampler`, `steps` and so on.

    A stock pipeline becomes that of `family`, or by default of the family that `stock_family` names. A model
    that an older version saved has code without these: it gets the class of its family here, which the name
    of its file tells.
    """
    kind = type(pipeline)
    if getattr(kind, "family", None) is not None:
        return pipeline
    if kind.__module__.split(".")[0] == "diffusers":
        family = family or stock_family(kind, pipeline.components.get("scheduler"))
        from_stock = getattr(_module(family), "from_stock", None)
        if from_stock is not None:
            return from_stock(pipeline)
    else:
        module = _module(kind.__module__.rpartition(".")[2].removeprefix("pipeline_"))
        ours = getattr(module, kind.__name__, None)
        if ours is not None:
            options = {key: value for key, value in pipeline.config.items() if key[0] != "_"}
            return ours(**(options | pipeline.components))
    raise ValueError(f"{kind.__name__} is not a pipeline of this toolkit's families")


def stock_family(kind: "type[DiffusionPipeline]", scheduler: "SchedulerMixin | None") -> str | None:
    """The family of a stock pipeline of this class with this scheduler; None for one that is of no family."""
    names = [
        name
        for name in (module.name for module in pkgutil.iter_modules(__path__))
        if (is_stock := getattr(_module(name), "is_stock", None)) and is_stock(kind, scheduler)
    ]
    if len(names) > 1:
        raise ValueError(
            f"a {kind.__name__} with a {type(scheduler).__name__} may be of the families {', '.join(names)}: "
            "run.json beside the model must name one"
        )
    return names[0] if names else None


def stock_family_of_folder(folder: Path, index: dict[str, Any]) -> str | None:
    """`stock_family` of a saved pipeline, without its weights; `index` is what its model_index.json says."""
    import diffusers  # not above: it brings torch with it

    kind, scheduler = getattr(diffusers, index["_class_name"], None), None
    library, name = parts(index).get("scheduler", (None, None))
    if library == "diffusers" and (folder / "scheduler").is_dir():
        scheduler_class = getattr(diffusers, name, None)
        if _is_class(scheduler_class, diffusers.SchedulerMixin):
            scheduler = _load_scheduler(scheduler_class, folder / "scheduler")
    return stock_family(kind, scheduler) if _is_class(kind, diffusers.DiffusionPipeline) else None


def _load_scheduler(kind: "type[SchedulerMixin]", folder: Path) -> "SchedulerMixin":
    path = folder / "scheduler_config.json"
    read_configuration(path)
    try:
        return kind.from_pretrained(folder)
    except Exception as problem:  # whatever a class raises for values that are none
        raise FileError(f"{path} describes no {kind.__name__}: {problem}") from problem


def _is_class(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _module(name: str | None) -> ModuleType | None:
    path = f"{__name__}.{LIKE.get(name, name)}"
    known = isinstance(name, str) and name.isidentifier() and importlib.util.find_spec(path)
    return importlib.import_module(path) if known else None
