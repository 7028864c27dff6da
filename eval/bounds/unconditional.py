"""The bound of an unconditional diffusion model: see `gaussian.py`."""

from trilemma.eval.bounds.gaussian import gaussian_path as path
from trilemma.eval.bounds.gaussian import gaussian_terms as terms

__all__ = ["path", "terms"]
