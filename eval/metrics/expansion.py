"""The interval of the Frechet distance from its derivatives, at the cost of a few distances.

With the covariance C of the samples the distance is a constant + tr C - 2 tr M^(1/2), M = A^T C A,
where A A^T is the reference's covariance (see `frechet.py`). With M = V L V^T, r = L^(1/2) and B = A V, a
change H of C changes M, in its eigenvectors, by E = B^T H B, and its root to r + X1 + X2 + X3 + ... The
orders of (r + X1 + X2 + ...)^2 = L + E give, entry by entry (Higham 2008, "Functions of Matrices", 6.1),

    X1 = E / (r_a + r_b),  X2 = -(X1 X1) / (r_a + r_b),  X3 = -(X1 X2 + X2 X1) / (r_a + r_b).

The distance changes by T1 + T2 + T3 + T4 + ..., T1 = tr H - 2 tr X1 = tr (I - B r^(-1) B^T) H, and
Tk = -2 tr Xk.

Why this gives the bias. C of n samples is the true covariance plus a mean of n independent terms with
cumulants k2, k3: its error has the moments k2 / n, k3 / n^2 and 3 k2 k2 / n^2. With derivatives at the true
covariance, therefore,

    E distance = truth + T2[k2] / n + (T3[k3] + 3 T4[k2 k2]) / n^2 + ...

The covariance of a share p of the samples differs from C by an H with the moments u k2 / n, w k3 / n^2 and
3 u^2 k2 k2 / n^2, u = 1/p - 1, w = u (1/p - 2): T2 / u, T3 / w and T4 / u^2 can be measured. They are
derivatives at C, for which E T2 / u = T2[k2] / n + (3 T3[k3] + 6 T4[k2 k2]) / n^2. Hence, to the order 1/n^2,

    truth = E [distance - T2 / u + 2 T3 / w + T4 / u^2].

T2 comes from a half and from DELETED blocks, T3 from the blocks (a half has w = 0), T4 from the half (in
blocks its next order is eight times as large). The means enter exactly, by the jackknife.
"""

import torch
from torch import Tensor

from trilemma.eval.metrics.frechet import BLOCKS, Gaussian, inner, jackknife

DELETED = (0, BLOCKS // 2)  # enough that the estimate varies no more than that of the jackknife


def expansion_interval(
    value: float, sums: tuple[Tensor, Tensor, Tensor], reference: Gaussian, lower: Tensor
) -> tuple[float, float]:
    """95% interval of the distance `value`, in the place of `jackknife` with halves.

    sums: count (BLOCKS,), total (BLOCKS, D) and packed (BLOCKS, P), as of `Gaussian.of_sums`, relative to the
    reference's mean, of 2 D samples or more. lower: `congruence` of the reference's factor and the samples'
    covariance. Its spread is that of the first order, the distances without each block to T1.
    """
    count = sums[0]
    roots, basis = _eigenbasis(lower, reference.factor)
    gradient = torch.eye(len(basis)).to(basis) - (basis / roots) @ basis.T
    low, high = jackknife(value, count.tolist(), (value + _first_order(*sums, gradient)).tolist())
    del gradient
    everything = torch.ones_like(count)
    covariance = Gaussian.of_sums(*sums, everything).covariance

    def change(kept: Tensor) -> tuple[float, Tensor]:
        """u, and E of the covariance of the blocks `kept`."""
        h = Gaussian.of_sums(*sums, kept).covariance.sub_(covariance)
        return float(count.sum() / (kept @ count)) - 1, basis.T @ (h @ basis)

    u, e = change((torch.arange(BLOCKS) % 2).to(count))
    t2, _, t4 = _higher_orders(roots, e)
    second, third, fourth = t2 / u, 0.0, t4 / u**2
    for block in DELETED:
        kept = everything.clone()
        kept[block] = 0
        u, e = change(kept)
        t2, t3, _ = _higher_orders(roots, e, fourth=False)
        second += t2 / u
        third += t3 / (u * (u - 1))
    bias = second / (1 + len(DELETED)) - 2 * third / len(DELETED) - fourth
    return low - bias, high - bias


def _eigenbasis(lower: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """r (k,) and B (D, k), without directions in which the samples vary by no more than rounding."""
    values, vectors = torch.linalg.eigh(lower)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1:]
    return values[kept].sqrt(), factor @ vectors[:, kept]


def _first_order(count: Tensor, total: Tensor, packed: Tensor, gradient: Tensor) -> Tensor:
    """Change (BLOCKS,) of the distance without each block: T1, and the exact change by the mean."""
    kept = torch.cat([torch.ones_like(count)[None], 1 - torch.eye(BLOCKS).to(count)])
    n, sums, products = kept @ count, kept @ total, kept @ inner(packed, gradient)
    covariances = (products - ((sums @ gradient) * sums).sum(1) / n) / (n - 1)
    values = covariances + (sums / n[:, None]).square().sum(1)
    return values[1:] - values[0]


def _higher_orders(roots: Tensor, e: Tensor, *, fourth: bool = True) -> tuple[float, float, float]:
    """T2, T3 and, if wanted, T4 (else 0) for the change E (k, k) of M in its eigenvectors.

    tr Xk is -sum_a (sum_{i+j=k} X_i X_j)_aa / (2 r_a). Of the fourth order, sum_a (X1 X3)_aa / r_a is
    -sum_ab X1_ab (X1 X2)_ab / (r_a r_b), since 1/r_a + 1/r_b = (r_a + r_b) / (r_a r_b).
    """
    sums, inverse = roots[:, None] + roots, 1 / roots
    x1 = e / sums
    x2 = (x1 @ x1).div_(-sums)
    t2, t3 = (float(inverse @ (x1 * x).sum(1)) for x in (x1, x2))
    t4 = inverse @ ((x2 * x2).sum(1) - 2 * ((x1 @ x2).mul_(x1) @ inverse)) if fourth else 0.0
    return t2, 2 * t3, float(t4)
