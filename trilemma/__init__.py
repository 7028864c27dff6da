"""Trilemma: pixel-space diffusion models on Hugging Face diffusers.

`trilemma.pipelines`, `trilemma.training`, `trilemma.eval` and `trilemma.model_cards` are the folders of those
names at the root of a checkout; `setup.cfg` maps them for a wheel, and the lines below let them resolve in a
checkout.
"""

from pathlib import Path

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "pipelines").is_dir():
    __path__.append(str(_root))
