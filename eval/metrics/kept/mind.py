"""MIND, the sliced Wasserstein distance of features (Berthet et al. 2026, arXiv 2605.06797)."""

from functools import partial
from typing import NamedTuple

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

SPLITS, SPLIT_DIRECTIONS = 4, 100
"""Ways to halve the reference, for the floor, and how many of the directions it looks at."""


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
    mine, others = (((x.double() - middle) @ directions).T.sort(dim=1) for x in (rows, real))
    scale, n, m = 3 * rows.shape[1], len(rows), len(real)

    steps = Steps.of(others.values)

    def distance(kept: Tensor) -> float:
        chosen = (kept.cpu()[block] > 0).to(rows.device)
        return scale * float(steps.squared_wasserstein(_part(*mine, chosen)).mean())

    sizes = torch.bincount(block, minlength=BLOCKS).double()
    value = distance(torch.ones(BLOCKS))
    own = _own_distance(*(part[:SPLIT_DIRECTIONS] for part in others)) if m > 1 else None
    floor = None if own is None else scale * own * (1 / n + 1 / m)
    return {"mind": Measurement(value, n, at_least_zero(block_interval(value, sizes, distance)), floor)}


def _part(values: Tensor, order: Tensor, chosen: Tensor) -> Tensor:
    """Those of sorted values (R, n), which come from the columns order (R, n), that are chosen (n,) bool."""
    return values[chosen[order]].view(len(values), -1)


def _own_distance(values: Tensor, order: Tensor) -> float:
    """W2^2 of two samples of the law of the reference's projections, over 1 / n + 1 / m of their sizes."""
    m, generator = values.shape[1], torch.Generator().manual_seed(0)
    distances = []
    for _ in range(SPLITS):
        half = (torch.randperm(m, generator=generator) < m // 2).to(order.device)
        one, other = (_part(values, order, chosen) for chosen in (half, ~half))
        distances.append(float(Steps.of(other).squared_wasserstein(one).mean()))
    return sum(distances) / SPLITS / (1 / (m // 2) + 1 / (m - m // 2))


class Steps(NamedTuple):
    """Quantile functions, steps on [0, 1], of R samples of the line, each of m points y in order."""

    values: Tensor
    """(R, m): y."""
    integral: Tensor
    """(R, m + 1): sums of the first 0, 1 ... m values."""
    square: Tensor
    """(R,): mean of y^2."""

    @classmethod
    def of(cls, values: Tensor) -> "Steps":
        return cls(values, F.pad(values.cumsum(1), (1, 0)), values.square().mean(1))

    def squared_wasserstein(self, x: Tensor) -> Tensor:
        """Squared Wasserstein-2 distance (R,) to other samples of the line, x (R, n), sorted.

        It is the integral of (X(u) - Y(u))^2 over u in [0, 1], X and Y being the quantile functions:
        mean x^2 + mean y^2 - 2 sum_i x_i S_i, with S_i the integral of Y over [(i - 1) / n, i / n].
        """
        n, m = x.shape[1], self.values.shape[1]
        edges = torch.arange(n + 1, device=x.device) * m  # n times the place of each edge among the m steps
        step, part = edges // n, (edges % n).to(x) / n
        upto = self.integral[:, step] + part * self.values[:, step.clamp_max(m - 1)]
        products = (x * upto.diff(dim=1)).sum(1) / m
        return (x.square().mean(1) + self.square - 2 * products).clamp_min(0)


MIND = partial(KeptRows, measure_mind)
