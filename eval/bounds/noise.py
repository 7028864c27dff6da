"""Noise of images that are scored: each from its own generator, so that no number depends on the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def normal(generators: Sequence[np.random.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """N(0, 1) of `shape` from each of B generators: float32 (B, *shape), drawn on the CPU."""
    drawn = np.stack([generator.standard_normal(tuple(shape), dtype=np.float32) for generator in generators])
    return torch.from_numpy(drawn).to(device)
