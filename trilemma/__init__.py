"""Trilemma: pixel-space diffusion models on Hugging Face diffusers.

    from trilemma import evaluate, load, load_images, save, train

docs/api.md shows them; they are imported, and torch with them, when first used.

`trilemma.pipelines`, `trilemma.training`, `trilemma.eval` and `trilemma.model_cards` are the folders of those
names at the root of a checkout; `setup.cfg` maps them for a wheel, and the lines below let them resolve in a
checkout.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilemma.api import Interrupted, evaluate, load, load_images, make_objective, save, train

__version__ = "0.1.0"
__all__ = ["Interrupted", "evaluate", "load", "load_images", "make_objective", "save", "train"]

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "pipelines").is_dir():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from trilemma.training.progress import Progress

    with Progress("loading libraries"):
        return getattr(importlib.import_module("trilemma.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
