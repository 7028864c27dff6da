"""The bound of a class-conditional diffusion model, of each image given its label: see `gaussian.py`."""

from trilemma.eval.bounds.gaussian import gaussian_path as path
from trilemma.eval.bounds.gaussian import gaussian_terms as terms

__all__ = ["path", "terms"]
