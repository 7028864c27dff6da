"""MIND, the sliced Wasserstein distance of features (Berthet et al. 2026, arXiv 2605.06797)."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.eval.metrics.frechet import BLOCKS
from trilemma.eval.metrics.pairs import KeptRows
from trilemma.eval.metrics.sample_metric import Measurement, block_interval, not_negative
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
    projected = ((real - middle) @ directions).T
    mine, order = ((rows.double() - middle) @ directions).T.sort(dim=1)
    steps, scale = Steps.of(projected.sort(dim=1).values), 3 * rows.shape[1]

    def distance(kept: Tensor) -> float:
        taken = (kept.cpu()[block] > 0).long()
        squared = steps.squared_wasserstein(mine, taken.to(rows.device)[order], int(taken.sum()))
        return scale * float(squared.mean())

    n, m = len(rows), len(real)
    sizes = torch.bincount(block, minlength=BLOCKS).double()
    value = distance(torch.ones(BLOCKS))
    own = reference.once("mind", lambda: _own_distance(projected[:SPLIT_DIRECTIONS]) if m > 1 else None)
    floor = None if own is None else scale * own * (1 / n + 1 / m)
    return {"mind": not_negative(value, n, block_interval(value, sizes, distance), floor)}


def _own_distance(projected: Tensor) -> float:
    """W2^2 of two samples of the law of projected (R, m), over 1 / n + 1 / m of their sizes."""
    m, generator = projected.shape[1], torch.Generator().manual_seed(0)
    distances = []
    for _ in range(SPLITS):
        order = torch.randperm(m, generator=generator).to(projected.device)
        one, other = (projected[:, half].sort(dim=1).values for half in (order[: m // 2], order[m // 2 :]))
        squared = Steps.of(other).squared_wasserstein(one, torch.ones_like(one).long(), m // 2)
        distances.append(float(squared.mean()))
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

    def squared_wasserstein(self, x: Tensor, taken: Tensor, n: int) -> Tensor:
        """Squared Wasserstein-2 distance (R,) to other samples: the n in each row of x that are taken.

        x (R, N) is in order; taken (R, N) int64 is 1 or 0. It is the integral of (X(u) - Y(u))^2 over u in
        [0, 1], X and Y being the quantile functions: mean x^2 + mean y^2 - 2 sum_i x_i S_i, with S_i the
        integral of Y over [(i - 1) / n, i / n].
        """
        m = self.values.shape[1]
        edges = F.pad(taken.cumsum(1), (1, 0)) * m  # n times the place of each edge among the m steps
        step, part = edges // n, (edges % n).to(x) / n
        upto = self.integral.gather(1, step) + part * self.values.gather(1, step.clamp_max(m - 1))
        products = (x * upto.diff(dim=1)).sum(1) / m
        return ((x.square() * taken).sum(1) / n + self.square - 2 * products).clamp_min(0)


MIND = partial(KeptRows, measure_mind)
