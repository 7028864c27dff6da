"""Flow matching: the path between an image and noise, its times, and which noise belongs to which image.

Lipman et al. 2023 (arXiv 2210.02747) and Liu et al. 2023 (arXiv 2209.03003): x_s = (1 - s) x_0 + s noise. The
time s runs from 0 (image) to 1 (noise), as sigma of diffusers' `FlowMatchEulerDiscreteScheduler`; the papers
let it run the other way.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trilemma.training.diffusion.process import beside

TIME_STEPS = 1000
"""The network is called at the time step 1000 s, which diffusers' schedulers give it too."""


def between(x0: Tensor, noise: Tensor, s: Tensor) -> Tensor:
    """x_s = (1 - s) x_0 + s noise, float32 (B, ...); x0 and noise (B, ...), s (B,) in [0, 1]."""
    return beside(1 - s, x0) * x0.float() + beside(s, x0) * noise.float()


Quantile = Callable[[Tensor, float, float], Tensor]


def _logit_normal(u: Tensor, mean: float, std: float) -> Tensor:
    return (mean + std * torch.special.ndtri(u)).sigmoid()


def _cosmap(u: Tensor, mean: float, std: float) -> Tensor:
    return 1 - 1 / ((u * torch.pi / 2).tan() + 1)


TIME_DENSITIES: dict[str, Quantile] = {
    "uniform": lambda u, mean, std: u,
    "logit_normal": _logit_normal,
    "cosmap": _cosmap,
}
"""Densities of s by the inverse of their distribution function: (u (B,) in [0, 1), --logit_mean, --logit_std)
-> s (B,). Esser et al. 2024 (arXiv 2403.03206), section 3.1. Evenly spread u give evenly spread s.
"""


def coupled(x0: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
    """The same noise (B, ...), each given to the image that makes the sum of squared distances smallest.

    The optimal transport of a batch: Tong et al. 2023 (arXiv 2302.00482), Pooladian et al. 2023 (arXiv
    2304.14772). Images of a class (labels (B,), or None) share their noise among themselves alone: otherwise
    the noise of a class would not be N(0, I), from which its images are drawn. Waits for the device.
    """
    with torch.autocast(x0.device.type, enabled=False):
        cost = torch.cdist(x0.flatten(1).float(), noise.flatten(1).float()).square().double().cpu().numpy()
    groups = np.zeros(len(x0), dtype=int) if labels is None else labels.cpu().numpy()
    order = np.empty(len(x0), dtype=int)
    for group in np.unique(groups):
        (rows,) = (groups == group).nonzero()
        order[rows] = rows[assignment(cost[np.ix_(rows, rows)])]
    return noise[torch.from_numpy(order).to(noise.device)]


def assignment(cost: np.ndarray) -> np.ndarray:
    """The column of each row, each column once, with the least sum of cost (n, n): int (n,).

    Shortest augmenting paths (Jonker & Volgenant 1987, doi 10.1007/BF02278710): rows enter one after the
    other, and each displaces others along the path of least reduced cost. About n^3 operations.
    """
    n = len(cost)
    row_price, column_price = np.zeros(n), np.zeros(n + 1)
    row_of = np.full(n + 1, -1)  # of each column; the last one, which no row keeps, holds the row that enters
    for entering in range(n):
        row_of[n], column = entering, n
        least, before = np.full(n, np.inf), np.full(n, n)
        visited = np.zeros(n + 1, dtype=bool)
        while row_of[column] >= 0:
            visited[column] = True
            reduced = cost[row_of[column]] - row_price[row_of[column]] - column_price[:n]
            nearer = ~visited[:n] & (reduced < least)
            least[nearer], before[nearer] = reduced[nearer], column
            column = int(np.where(visited[:n], np.inf, least).argmin())
            step = least[column]
            row_price[row_of[visited]] += step
            column_price[visited] -= step
            least[~visited[:n]] -= step
        while column != n:
            row_of[column], column = row_of[before[column]], before[column]
    columns = np.empty(n, dtype=int)
    columns[row_of[:n]] = np.arange(n)
    return columns
