"""The Frechet distance of two sets of features: the distance, its finite-sample floor and its interval.

Between N(m1, C1) and N(m2, C2) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6)

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2).

With C1 = A A^T the product C1 C2 has the eigenvalues of A^T C2 A, which is symmetric: the last trace is the
sum of the roots of its eigenvalues, and no matrix root is ever formed. Everything is float64, covariances are
unbiased (over n - 1).

Here too is what an interval from sums alone needs: samples are dealt to BLOCKS groups, second moments are
kept for each group as packed triangles, and `jackknife` turns the values without each group into an interval.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKS = 10  # as packed float64 triangles of 2048 x 2048 they take 178 MB
T_QUANTILE = 2.262157  # 97.5% of Student's t with BLOCKS - 1 degrees of freedom
RUN = 64  # neighbours share a block: a batch then updates one or two of the triangles
TILE = 128
NONZEROS = 8
EXACT = 1e-11  # share of the variance that a thin factor may leave out, all of it by rounding
# Below this share of the total variance a distance is rounding error, which the roots of tiny eigenvalues
# magnify to about 1e-8; even a million samples have a floor of ten times this.
NEGLIGIBLE = 1e-7


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The first two moments of a set of features.

    mean (D,) and covariance (D, D) are float64; n is the number of samples behind them, or None if it is not
    recorded.
    """

    mean: Tensor
    covariance: Tensor
    n: int | None = None

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Moments of `features` (N, D), N >= 2."""
        features = features.double()
        return cls(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1), len(features))

    @classmethod
    def of_sums(
        cls, count: Tensor, total: Tensor, packed: Tensor, kept: Tensor, origin: Tensor | float = 0.0
    ) -> "Gaussian":
        """Moments from the sums of G blocks, of 2 samples or more in all, relative to `origin`.

        count (G,), total (G, D), packed (G, P) outer products; kept (G,) is 1 for the blocks to take, else 0.
        """
        n, total = round(float(kept @ count)), kept @ total
        covariance = unpack(packed, kept, len(total)).addr_(total, total, alpha=-1 / n).div_(n - 1)
        return cls(total / n + origin, covariance, n)

    @property
    def rank(self) -> int:
        """The highest rank that the covariance can have."""
        dimension = len(self.mean)
        return dimension if self.n is None else min(dimension, self.n - 1)

    @cached_property
    def factor(self) -> Tensor:
        """A (D, r) with A A^T = covariance."""
        return _factor(self.covariance, self.rank)

    @cached_property
    def floor_scale(self) -> float:
        """What `frechet_floor` multiplies with 1/n + 1/m; the eigenvalues are worth keeping."""
        eigenvalues = torch.linalg.eigvalsh(self.covariance).clamp_min(0)
        pairs = eigenvalues.outer(eigenvalues).div_(eigenvalues[:, None] + eigenvalues).nan_to_num_(0.0)
        trace = eigenvalues.sum()
        return float(trace + (pairs.sum() + trace / 2) / 2)

    def to(self, device: torch.device) -> "Gaussian":
        if self.mean.device == device:
            return self
        return Gaussian(self.mean.to(device), self.covariance.to(device), self.n)


def _factor(covariance: Tensor, rank: int) -> Tensor:
    thin = _thin_factor(covariance, rank) if 2 * rank < len(covariance) else None
    if thin is not None:
        return thin
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return root
    # Singular, as with constant features: leave out the directions without variance.
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def _thin_factor(covariance: Tensor, rank: int) -> Tensor | None:
    """A (D, rank) from `rank` sparse random sums of columns, the Nystrom approximation, which is exact for a
    matrix of this rank (Gittens & Mahoney 2016, arXiv 1303.1849, lemma 1); None if the sums are dependent.
    """
    # Fixed seed: the same sums give the same number.
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(len(covariance), (rank, NONZEROS), generator=generator).to(covariance.device)
    signs = torch.randint(2, (rank, NONZEROS), generator=generator).to(covariance) * 2 - 1
    sketch = F.embedding_bag(columns, covariance, mode="sum", per_sample_weights=signs)
    core = F.embedding_bag(columns, sketch.T.contiguous(), mode="sum", per_sample_weights=signs)
    core, failed = torch.linalg.cholesky_ex(core)
    if failed:
        return None
    root = torch.linalg.solve_triangular(core, sketch, upper=False).T
    # What is left out is positive semi-definite, so its trace is its nuclear norm.
    left_out = covariance.trace() - root.square().sum()
    return root if left_out.abs() < EXACT * covariance.trace() else None


def congruence(root: Tensor, covariance: Tensor) -> Tensor:
    """The lower triangle of root^T covariance root (r, r), root being (D, r); what stands above it is unset.

    A triangular root, as Cholesky's, takes less than half the work.
    """
    lower = torch.equal(root, root.tril())
    product = root.new_zeros(root.shape[1], root.shape[1])
    for start in range(0, len(product), TILE):
        rows = slice(start if lower else 0, None)
        panel = covariance[rows, rows] @ root[rows, start : start + TILE]
        product[start:, start : start + TILE] = root[rows, start:].T @ panel
    return product


def frechet_distance(a: Gaussian, b: Gaussian, lower: Tensor | None = None) -> float:
    """Squared Frechet distance of two Gaussians over the same D features: 0 if equal, never negative or NaN.

    The factor of `b` is cached in it: pass the reference as `b` when there are many `a`. lower: the
    `congruence` of b's factor and a's covariance, if it is known.
    """
    if lower is None:
        thin, other = (a, b) if 2 * a.rank < b.rank else (b, a)
        lower = congruence(thin.factor, other.covariance)
    eigenvalues = torch.linalg.eigvalsh(lower)
    # Beyond the rank that the counts allow there are only rounding errors, and the root would magnify them.
    kept = eigenvalues[max(0, len(eigenvalues) - min(a.rank, b.rank)) :].clamp_min(0)
    variance = float(a.covariance.trace() + b.covariance.trace())
    distance = float((a.mean - b.mean).square().sum() - 2 * kept.sqrt().sum()) + variance
    return 0.0 if distance < NEGLIGIBLE * variance else distance


def frechet_floor(reference: Gaussian, n: int) -> float | None:
    """The distance to expect of n samples of the reference's own distribution, as a perfect model would give.

    To first order in 1/n and 1/m, m being the reference's count, for Gaussian features with eigenvalues l:
    (1/n + 1/m) [sum l + (sum_ij l_i l_j / (l_i + l_j) + sum l / 2) / 2]. That is the variance of the mean,
    and half the variance of the covariance's entries over l_i + l_j (the curvature of the distance). Below
    about n = 10 D the real floor is higher. None if m is unknown.
    """
    if reference.n is None:
        return None
    return reference.floor_scale * (1 / n + 1 / reference.n)


def block_of(index: Tensor, num_samples: int) -> Tensor:
    """The block 0..BLOCKS-1 of each sample: index (B,) int64 in 0..num_samples-1 -> (B,) int64.

    Runs of neighbours are dealt by multiplicative hashing with the golden ratio (Knuth, TAOCP vol. 3, section
    6.4): it fills the blocks evenly, and in step with no period that labels, or a folder sorted by class, may
    have.
    """
    run = max(1, min(RUN, num_samples // (80 * BLOCKS)))
    return (index // run * 40503 % 65536) * BLOCKS // 65536


def jackknife(
    value: float, sizes: list[int], without: list[float], halves: tuple[float, float] | None = None
) -> tuple[float, float]:
    """95% interval for what infinitely many samples would give; its middle is the debiased estimate.

    `without[j]` is the value without block j, of `sizes[j]` samples: delete-one-block jackknife (Busing,
    Meijer & van der Leeden 1999, "Delete-m jackknife for unequal m"), which removes a bias of order 1/n. With
    `halves`, the values of the even and of the odd blocks alone, the order 1/n^2 goes as well (Schucany, Gray
    & Owen 1971): the Frechet distance needs it as soon as n is not many times D.
    """
    theta, share = torch.tensor(without, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    share /= share.sum()
    pseudo = (value - (1 - share) * theta) / share
    estimate = (share * pseudo).sum()
    half_width = T_QUANTILE * float(((pseudo - estimate).square() * share / (1 - share)).mean().sqrt())
    if halves is not None:
        # Values at 1/n, G/(G-1)/n (weighted mean of `without`) and 2/n, drawn to 1/n = 0 by the parabola
        # through them.
        delete_one = ((1 - share) * theta).sum() / (BLOCKS - 1)
        half = share[0::2].sum() * halves[0] + share[1::2].sum() * halves[1]
        estimate = _at_zero((1.0, BLOCKS / (BLOCKS - 1), 2.0), (value, float(delete_one), float(half)))
    return float(estimate) - half_width, float(estimate) + half_width


def _at_zero(x: tuple[float, ...], y: tuple[float, ...]) -> float:
    """The polynomial through the points (x, y), at 0 (Lagrange)."""
    return sum(
        b * math.prod(other / (other - a) for other in x if other != a) for a, b in zip(x, y, strict=True)
    )


def packed_size(dimension: int) -> int:
    """Numbers in a packed (D, D) matrix: panels of TILE rows, from the diagonal tile to the right edge."""
    return sum(min(TILE, dimension - start) * (dimension - start) for start in range(0, dimension, TILE))


def _panels(packed: Tensor, dimension: int) -> Iterator[tuple[int, Tensor]]:
    """Views (..., rows, columns) of packed (..., P), each with the row and column that it starts at."""
    offset = 0
    for start in range(0, dimension, TILE):
        rows, columns = min(TILE, dimension - start), dimension - start
        yield start, packed[..., offset : offset + rows * columns].unflatten(-1, (rows, columns))
        offset += rows * columns


def add_outer_(packed: Tensor, rows: Tensor) -> None:
    """Add the outer products of `rows` (B, D) to `packed` (P,): half the work and memory of the square."""
    for start, panel in _panels(packed, rows.shape[1]):
        panel.addmm_(rows[:, start : start + TILE].T, rows[:, start:])


def inner(packed: Tensor, matrix: Tensor) -> Tensor:
    """tr (S matrix) of each symmetric S in packed (G, P), for a symmetric `matrix` (D, D) -> (G,)."""
    sums = packed.new_zeros(len(packed))
    for start, panels in _panels(packed, len(matrix)):
        panel = matrix[start : start + panels.shape[1], start:].clone()
        panel[:, panels.shape[1] :] *= 2  # stands for its mirror image too
        sums += panels.flatten(1) @ panel.flatten()
    return sums


def unpack(packed: Tensor, kept: Tensor, dimension: int) -> Tensor:
    """The (D, D) symmetric matrix that is the sum of packed (G, P) weighted by kept (G,)."""
    full = packed.new_empty(dimension, dimension)
    for start, panels in _panels(packed, dimension):
        panel = torch.tensordot(kept, panels, 1)
        full[start:, start : start + len(panel)] = panel.T
        full[start : start + len(panel), start:] = panel
    return full
