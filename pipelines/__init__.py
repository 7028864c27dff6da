"""Pipelines that a downloaded model needs: one file a family, shipped as one file (`single_file.py`)."""

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def as_ours(pipeline: "DiffusionPipeline") -> "DiffusionPipeline":
    """A loaded pipeline as one of a family: with `family`, `network`, `sampler`, `steps` and so on.

    A stock pipeline becomes that of the family whose models are saved so. A model that an older version saved
    has code without these: it gets the class of its family here, which the name of its file tells.
    """
    kind = type(pipeline)
    if getattr(kind, "family", None) is not None:
        return pipeline
    if kind.__module__.split(".")[0] == "diffusers":
        for name in (module.name for module in pkgutil.iter_modules(__path__)):
            module = importlib.import_module(f"{__name__}.{name}")
            if getattr(module, "STOCK", None) is kind:
                return module.from_stock(pipeline)
    else:
        name = f"{__name__}.{kind.__module__.rpartition('.')[2].removeprefix('pipeline_')}"
        module = importlib.import_module(name) if importlib.util.find_spec(name) else None
        ours = getattr(module, kind.__name__, None)
        if ours is not None:
            options = {key: value for key, value in pipeline.config.items() if key[0] != "_"}
            return ours(**(options | pipeline.components))
    raise ValueError(f"{kind.__name__} is not a pipeline of this toolkit's families")
