"""MIND, the sliced Wasserstein distance of features (Berthet et al. 2026, arXiv 2605.06797)."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.eval.metrics.frechet import BLOCKS
from trilemma.eval.metrics.pairs import KeptRows
from trilemma.eval.metrics.sample_metric import Measurement, at_least_zero, block_interval
from trilemma.eval.metrics.table import PAIR_IMAGES
from trilemma.eval.scoring.reference import ReferenceStatistics

DIRECTIONS = 1000
"""Random unit vectors, the same for all samples."""

SPLITS = 4
"""Ways to halve the reference, for the floor."""


def measure_mind(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """MIND against PAIR_IMAGES of the reference: 3 D times the mean over DIRECTIONS of W2^2, >= 0.

    W2 is the Wasserstein distance of the projections on a direction, exact for any two numbers of images, and
    D the number of features. The value is biased upwards, about as 1/n; the interval is debiased. The floor
    is the mean distance of halves of the reference, scaled from their sizes to n and all of them.
    """
    real = reference.features[:PAIR_IMAGES].to(rows.device).double()
    middle = real.mean(0)  # projections about it lose no digits where means are large
    directions = torch.randn(rows.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0))
    directions = F.normalize(directions.to(rows.device, torch.float64), dim=0)
    projected = ((real - middle) @ directions).T
    samples, order = ((rows.double() - middle) @ directions).T.sort(dim=1)
    scale, sorted_real = 3 * rows.shape[1], projected.sort(dim=1).values

    def distance(kept: Tensor) -> float:
        chosen = (kept.cpu()[block] > 0).to(order.device)
        mine = samples[chosen[order]].view(DIRECTIONS, -1)
        return scale * float(squared_wasserstein(mine, sorted_real).mean())

    n, m = len(rows), len(real)
    sizes = torch.bincount(block, minlength=BLOCKS).double()
    value = distance(torch.ones(BLOCKS))
    floor = scale * _own_distance(projected) * (1 / n + 1 / m) if m > 1 else None
    return {"mind": Measurement(value, n, at_least_zero(block_interval(value, sizes, distance)), floor)}


def _own_distance(projected: Tensor) -> float:
    """What W2^2 of two samples of the law of projected (R, m) is, over the sum of one over their sizes."""
    generator, half = torch.Generator().manual_seed(0), projected.shape[1] // 2
    distances = []
    for _ in range(SPLITS):
        order = torch.randperm(projected.shape[1], generator=generator).to(projected.device)
        parts = (projected[:, part].sort(dim=1).values for part in (order[:half], order[half:]))
        distances.append(float(squared_wasserstein(*parts).mean()))
    return sum(distances) / SPLITS / (1 / half + 1 / (len(order) - half))


def squared_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance (R,) of two samples of the line in each row: x (R, n), y (R, m), sorted.

    It is the integral of (X(u) - Y(u))^2 over u in [0, 1], X and Y being the quantile functions, which are
    steps: mean x^2 + mean y^2 - 2 sum_i x_i S_i, with S_i the integral of Y over [(i - 1)/n, i/n].
    """
    n, m = x.shape[1], y.shape[1]
    edges = torch.arange(n + 1, device=x.device) * m  # n times the place of each edge among the m steps of Y
    step, part = edges // n, (edges % n).to(y) / n
    integral = F.pad(y.cumsum(1), (1, 0))[:, step] + part * y[:, step.clamp_max(m - 1)]
    products = (x * integral.diff(dim=1)).sum(1) / m
    return (x.square().mean(1) + y.square().mean(1) - 2 * products).clamp_min(0)


MIND = partial(KeptRows, measure_mind)
