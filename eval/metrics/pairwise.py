"""Metrics that compare samples one with another: what sums over the samples cannot give.

All take two sets of features (N, D) and (M, D) and work in float64 (CUBIC says where not), in chunks of
CHUNK rows: memory grows with N + M.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 512


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances from chunks of x (N, D) to all of y (M, D): rows of x, distances (<= CHUNK, M)."""
    y = y.double()
    norm = y.square().sum(1)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        part = x[rows].double()
        products = torch.addmm(norm, part, y.T, alpha=-2)
        yield rows, products.add_(part.square().sum(1)[:, None]).clamp_min_(0)


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """Distance (N,) from each row of x to the nearest row of y, which may be the larger."""
    return neighbours(x, y, 1)[0][:, 0]


def neighbours(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of y (M, D), M >= k, that are nearest to each row of x: distances (N, k) and rows (N, k).

    Equal rows of x are at equal distances, and a row that is in y at 0: products of matrices find the nearest
    rows, but how they round depends on where a row stands, and near 0 they lose half the digits.
    """
    best = torch.full((k, len(x)), torch.inf, dtype=torch.float64, device=x.device)
    row = torch.zeros(k, len(x), dtype=torch.int64, device=x.device)
    for rows, squared in squared_distances(y, x):
        for _ in range(min(k, len(squared))):
            closest = squared.min(0)
            squared.scatter_(0, closest.indices[None], torch.inf)
            best = torch.cat([best, closest.values[None]])
            row = torch.cat([row, closest.indices[None] + rows.start])
        best, order = best.topk(k, dim=0, largest=False)
        row = row.gather(0, order)
    parts = zip(x.split(CHUNK), row.T.split(CHUNK), strict=True)
    exact = [(part.double()[:, None] - y[index].double()).square().sum(2).sqrt() for part, index in parts]
    distance, order = torch.cat(exact).sort(dim=1)
    return distance, row.T.gather(1, order)


def squared_radii(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """Squared distance (N,) from each row to its k-th nearest other row, for each k of `neighbours`."""
    nearest_first = torch.cat(
        [squared.topk(max(neighbours) + 1, largest=False).values for _, squared in squared_distances(x, x)]
    )
    return [nearest_first[:, k] for k in neighbours]  # column 0 is the row itself


def check_neighbours(real: int, fake: int, metric: str = "prdc") -> None:
    """ValueError unless each of these numbers of images has a fifth neighbour."""
    if min(real, fake) < 6:
        raise ValueError(f"--metrics {metric} needs 6 images or more of each kind; got {real} and {fake}")


class Manifolds(NamedTuple):
    """What the shares of Kynkaanniemi et al. 2019 and Naeem et al. 2020 are means of."""

    precise: Tensor
    """(N,) bool: the sample lies in a real image's ball."""
    recalled: Tensor
    """(M,) bool: the real image lies in a sample's ball."""
    around: Tensor
    """(N,) int64: the real images in whose balls the sample lies."""
    covered: Tensor
    """(M, BLOCKS) bool: a sample of the block lies in the real image's ball."""


def manifolds(real: Tensor, fake: Tensor, member: Tensor) -> Manifolds:
    """Which of M real images and N samples lie within each other's balls to the k-th neighbour.

    For precision and recall k = 3 (Kynkaanniemi et al. 2019, eqs. 1 and 2), for density and coverage k = 5
    (Naeem et al. 2020, eqs. 3 and 4). Balls are closed; a point is not its own neighbour. member (N, BLOCKS)
    is 1 where a sample is of a block, else 0.
    """
    check_neighbours(len(real), len(fake))
    real3, real5 = squared_radii(real, (3, 5))
    (fake3,) = squared_radii(fake, (3,))
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    around = torch.zeros(len(fake), dtype=torch.int64, device=fake.device)
    recalled, covered = [], []
    for rows, squared in squared_distances(real, fake):
        precise |= (squared <= real3[rows, None]).any(0)
        recalled.append((squared <= fake3).any(1))
        inside = squared <= real5[rows, None]
        around += inside.sum(0)
        covered.append(inside.float() @ member.float() > 0)
    return Manifolds(precise, torch.cat(recalled), around, torch.cat(covered))


Rows = tuple[Tensor, ...]
"""What a kernel takes from N rows of features: tensors with N rows each."""


class Kernel(NamedTuple):
    """A symmetric kernel of two rows of features."""

    name: str
    prepare: Callable[[Tensor, Tensor], Rows]
    """features (N, D) and an origin (D,) near them -> what `pairs` takes of each row."""
    pairs: Callable[[Rows, Rows], Tensor]
    """The kernel of all pairs of N and M rows, (N, M) float64."""


def _linear(x: Tensor, origin: Tensor) -> Rows:
    return x - origin, (x.double() @ origin.double() - origin.double().square().sum() / 2) / x.shape[1]


def _cubic(x: Rows, y: Rows) -> Tensor:
    products = (x[0] @ y[0].T).double().div_(x[0].shape[1])
    return products.add_(x[1][:, None]).add_(y[1] + 1).pow_(3)


def _directions(x: Tensor, _origin: Tensor) -> Rows:
    u = F.normalize(x.double(), dim=1)
    return u, u.square().sum(1)


def _gaussian(x: Rows, y: Rows) -> Tensor:
    squared = torch.addmm(y[1], x[0], y[0].T, alpha=-2).add_(x[1][:, None])
    return squared.div_(-200).exp_().mul_(1000)


CUBIC = Kernel("cubic", _linear, _cubic)
"""(x.y / D + 1)^3, the kernel of KID (Binkowski et al. 2018).

x.y = (x - c).(y - c) + x.c + y.c - c.c. The first product, nearly all of the work, has the precision of the
features: in float32 its errors are small beside their spread, and average out over the pairs.
"""
NEGATIVE_DISTANCE = Kernel(
    "negative_distance", lambda x, _origin: (x.double(),), lambda x, y: torch.cdist(x[0], y[0]).neg_()
)
"""-|x - y|: with it the kernel distance is the energy distance (Sejdinovic et al. 2013)."""
GAUSSIAN = Kernel("gaussian", _directions, _gaussian)
"""1000 exp(-|u - v|^2 / 200) of the directions u and v of x and y: the kernel of CMMD."""


def kernel_distance(
    real: Tensor, fake: Tensor, member: Tensor, kernel: Kernel = CUBIC, within_real: float | None = None
) -> Callable[[Tensor], float]:
    """Squared maximum mean discrepancy, E k(x, x') + E k(y, y') - 2 E k(x, y), unbiased, over all pairs.

    member (N, BLOCKS) is 1 where a row of `fake` is of a block, else 0; returned is the value as a function
    of the blocks that are kept, (BLOCKS,) of ones and zeros. within_real: `sum_within(real)`, if it is known.
    """
    m, member, origin = len(real), member.double(), real.mean(0)
    within_real = sum_within(real, kernel) if within_real is None else within_real
    reals, fakes = kernel.prepare(real, origin), kernel.prepare(fake, origin)
    across = member.T @ torch.cat([kernel.pairs(part, reals).sum(1) for part in _chunks(fakes)])
    within = _within(kernel, fakes, member)

    def value(kept: Tensor) -> float:
        kept = kept.double()
        n = kept @ member.sum(0)
        among_fakes = kept @ within @ kept / (n * (n - 1))
        return float(among_fakes + within_real / (m * (m - 1)) - 2 * (kept @ across) / (n * m))

    return value


def sum_within(x: Tensor, kernel: Kernel = CUBIC) -> float:
    """Sum of the kernel over all pairs of two different rows of x (N, D)."""
    return float(_within(kernel, kernel.prepare(x, x.mean(0)), x.new_ones(len(x), 1).double()))


def _within(kernel: Kernel, rows: Rows, member: Tensor) -> Tensor:
    """Sums (G, G) of the kernel over pairs of two different rows of N, by their groups, member (N, G).

    Each pair of chunks once: the kernel is symmetric.
    """
    sums = member.new_zeros(member.shape[1], member.shape[1])
    groups, end = member.split(CHUNK), 0
    for part, group in zip(_chunks(rows), groups, strict=True):
        end += len(group)
        sums += group.T @ kernel.pairs(part, part).fill_diagonal_(0) @ group
        later = group.T @ (kernel.pairs(part, tuple(each[end:] for each in rows)) @ member[end:])
        sums += later + later.T
    return sums


def _chunks(rows: Rows) -> Iterator[Rows]:
    return zip(*(each.split(CHUNK) for each in rows), strict=True)
