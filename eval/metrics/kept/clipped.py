"""Clipped density and clipped coverage (Salvy, Talbot & Thirion 2025, arXiv 2507.01761), K = 5.

Both come from balls about real images, each out to the K-th nearest other real image. No single image counts
for more than 1, and both numbers are scaled so that a perfect model scores about 1 and that a share of bad
samples lowers them by about that share.
"""

from functools import partial

import torch
from torch import Tensor

from trilemma.eval.metrics.frechet import BLOCKS
from trilemma.eval.metrics.pairs import KeptRows, at_this_n
from trilemma.eval.metrics.pairwise import check_neighbours, squared_distances, squared_radii
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.metrics.table import PAIR_IMAGES
from trilemma.eval.scoring.reference import ReferenceStatistics

K = 5


def Clipped(reference: ReferenceStatistics, num_samples: int) -> KeptRows:
    """Clipped density and coverage; ValueError for images that do not have enough neighbours."""
    check_neighbours(len(reference.features), num_samples, "clipped")
    return KeptRows(measure_clipped, reference, num_samples)


def measure_clipped(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """Clipped density and clipped coverage against PAIR_IMAGES of the reference, both in [0, 1].

    Density: a ball's radius is at most the median radius. A sample scores min(balls that hold it / K, 1); the
    mean over the samples is divided by the mean over the real images, whose own balls do not count.
    Coverage: a ball scores min(samples in it / K, 1). The mean over the balls is turned into the share of the
    samples that, if drawn from the data, would be expected to score as much (`expected_coverage`). It is
    taken of at most n real images, and with fewer of them K n / M samples fill a ball: else nearly no ball
    would be full, or all of them, and missing kinds of images would not show.
    The intervals are for other sets of n samples.
    """
    real = reference.features[:PAIR_IMAGES].to(rows.device)
    member = torch.nn.functional.one_hot(block, BLOCKS).to(rows.device, torch.float64)
    scores, inside = _in_balls(real, rows, member)
    n, sizes, by_block = len(rows), member.sum(0), member.T @ scores
    if n < len(real):
        _, inside = _in_balls(real[:n], rows, member)
    full = max(K, round(K * n / len(real)))
    expected = expected_coverage(len(inside), n, full)

    def density(kept: Tensor) -> float:
        return float(kept @ by_block / (kept @ sizes))

    def covered(kept: Tensor) -> float:
        return float((inside @ kept).clamp_max(full).mean()) / full

    highest, share = float(expected[-1]), partial(inverse, expected)
    return {
        "clipped_density": at_this_n(density, sizes, highest=1.0, floor=1.0),
        "clipped_coverage": at_this_n(covered, sizes, highest=highest, floor=1.0, scale=share),
    }


def _in_balls(real: Tensor, fake: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N,) of clipped density, and how many samples of each block each ball holds, (M, BLOCKS)."""
    (radius,) = squared_radii(real, (K,))
    clipped = radius.clamp_max(_median(radius))
    around_real, around_fake, inside = 0, 0, []
    for rows, squared in squared_distances(real, real):
        around_real += (squared <= clipped[rows, None]).sum(0)
    for rows, squared in squared_distances(real, fake):
        around_fake += (squared <= clipped[rows, None]).sum(0)
        inside.append((squared <= radius[rows, None]).to(member) @ member)
    usual = ((around_real - 1).clamp(0, K).double() / K).mean()  # less its own ball
    return (around_fake.clamp_max(K).double() / K) / usual, torch.cat(inside)


def _median(squared: Tensor) -> Tensor:
    """The square of the median distance; of an even number, that of the mean of the middle two."""
    ordered = squared.sort().values
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else ((low.sqrt() + high.sqrt()) / 2).square()


def expected_coverage(real: int, samples: int, full: int = K) -> Tensor:
    """f (samples + 1,): the mean of min(samples in a ball / full, 1) to expect of m samples of the data.

    The share of the data that a ball to the K-th of `real` - 1 neighbours holds is Beta(K, real - K), so the
    number J of m samples in it is beta-binomial, and E min(J, full) = full - sum_{j < full} (full - j)
    P(J = j), with P(J = j) = C(m, j) B(K + j, real + m - K - j) / B(K, real - K).
    """
    m = torch.arange(samples + 1, dtype=torch.float64)
    a, b = torch.tensor(float(K)).double(), torch.tensor(float(real - K)).double()
    missing = torch.zeros_like(m)
    for part in torch.arange(full, dtype=torch.float64)[:, None].split(64):  # in bounded memory
        choose = torch.lgamma(m + 1) - torch.lgamma(part + 1) - torch.lgamma((m - part).clamp_min(0) + 1)
        beta = torch.lgamma(a + part) + torch.lgamma((b + m - part).clamp_min(1)) - torch.lgamma(a + b + m)
        chance = (choose + beta - torch.lgamma(a) - torch.lgamma(b) + torch.lgamma(a + b)).exp()
        missing += torch.where(part <= m, (full - part) * chance, 0.0).sum(0)
    return 1 - missing / full


def inverse(expected: Tensor, covered: float) -> float:
    """The share m / n at which `expected` (n + 1,), which rises, is `covered`; linear between two m."""
    n = len(expected) - 1
    above = int(torch.searchsorted(expected, covered))
    if above > n:
        return 1.0
    if above == 0:
        return 0.0
    low, high = float(expected[above - 1]), float(expected[above])
    return (above - 1 + (covered - low) / (high - low)) / n
