"""Whether samples are copies of training images: sample by sample, and region by region.

The reference must be the images that were trained on; held-out images show what new images score. All
distances are Euclidean, over the features.
"""

from functools import partial

import torch
from torch import Tensor

from trilemma.eval.metrics.frechet import BLOCKS
from trilemma.eval.metrics.pairs import KeptRows, at_this_n
from trilemma.eval.metrics.pairwise import nearest, neighbours, squared_distances
from trilemma.eval.metrics.sample_metric import Measurement, share_interval
from trilemma.eval.metrics.table import PAIR_IMAGES
from trilemma.eval.scoring.reference import ReferenceStatistics

NEAR = 1 / 3
"""A near copy's distance to the nearest training image is below this share of that to the second nearest."""

CELLS = 10
CELL_IMAGES = 50
"""There are at most CELLS cells, and at most one for so many held-out images."""
ENOUGH = 20
"""Samples, and held-out images, of a cell; from 8 the statistic is nearly normal (Mann & Whitney 1947)."""


def measure_copies(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """Two shares of samples, as they lie beside their nearest training images; the floor is held-out images'.

    authpct: percentage of authentic samples (Alaa et al. 2022, arXiv 2102.08921): those further from their
    nearest training image than that image is from its own nearest training image. near_copies: share with
    d1 < d2 / 3, the distances to the nearest and the second nearest training image (arXiv 2505.16959).
    """
    real, heldout = (part.to(rows.device) for part in (reference.features, reference.heldout))
    if len(real) < 2:
        raise ValueError("--metrics copies needs 2 images or more in the reference; got 1")
    n, results = len(rows), {}
    floors = reference.once("copies", lambda: _shares(heldout, real))
    for name, share, usual in zip(("authpct", "near_copies"), _shares(rows, real), floors, strict=True):
        unit = 100 if name == "authpct" else 1
        low, high = share_interval(share, n)
        results[name] = Measurement(unit * share, n, (unit * low, unit * high), unit * usual)
    return results


def _shares(x: Tensor, real: Tensor) -> tuple[float, float]:
    """The shares of x (N, D) that are authentic, and near copies, beside the rows of real (M, D)."""
    distance, row = neighbours(x, real, 2)
    between = neighbours(real[row[:, 0]], real, 2)[0][:, 1]  # the nearest is the row itself
    authentic = distance[:, 0] > between
    near = distance[:, 0] < NEAR * distance[:, 1]
    return float(authentic.double().mean()), float(near.double().mean())


def measure_ct(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """The data-copying statistic C_T of Meehan, Chaudhuri & Dasgupta 2020 (arXiv 2004.05675), by cells.

    Cells are those of k-means over the training images. In each, Z is the Mann-Whitney statistic of the
    distances of samples and of held-out images to the cell's nearest training image, less its mean for equal
    laws and over its deviation: far below 0 where samples lie closer (copies), far above where they lie
    further away. ct is the mean of Z, weighted by the held-out images in each cell; ct_worst the least Z.
    Cells with fewer than ENOUGH samples or held-out images are left out; if none has enough, all is one cell.
    Both grow with the root of n: the intervals are for other sets of n samples.
    """
    real, heldout = (part.to(rows.device) for part in (reference.features, reference.heldout))
    cells = max(1, min(CELLS, len(heldout) // CELL_IMAGES, len(real)))
    centres = reference.once("cell centres", lambda: cell_centres(real, cells)).to(rows.device)
    member = torch.nn.functional.one_hot(block, BLOCKS).to(rows.device, torch.float64)
    cells = [_further(*parts) for parts in _cells(centres, rows, heldout, real, member)]
    weight = torch.tensor([float(held) for *_, held in cells], dtype=torch.float64)
    weight /= weight.sum()

    def statistics(kept: Tensor) -> Tensor:
        standard = [_standard(kept @ pairs, kept @ count, held) for pairs, count, held in cells]
        return torch.stack(standard).cpu()

    sizes = member.sum(0)
    mean = at_this_n(lambda kept: float(weight @ statistics(kept)), sizes, lowest=-torch.inf, floor=0.0)
    worst = at_this_n(lambda kept: float(statistics(kept).min()), sizes, lowest=-torch.inf)
    return {"ct": mean, "ct_worst": worst}


def cell_centres(real: Tensor, cells: int) -> Tensor:
    """The centres (cells, D) of k-means over PAIR_IMAGES of the rows of real (M, D).

    Lloyd's iterations from the first rows, which the reference has in random order, until no row changes its
    cell, or 50 of them.
    """
    points = real[:PAIR_IMAGES].double()
    centres, cell = points[:cells].clone(), None
    for _ in range(50):
        closest = _cell_of(points, centres)
        if cell is not None and torch.equal(closest, cell):
            break
        cell = closest
        member = torch.nn.functional.one_hot(cell, cells).to(points)
        count = member.sum(0)[:, None]
        centres = torch.where(count > 0, member.T @ points / count.clamp_min(1), centres)
    return centres


def _cell_of(x: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([squared.argmin(1) for _, squared in squared_distances(x, centres)])


def _cells(
    centres: Tensor, rows: Tensor, heldout: Tensor, real: Tensor, member: Tensor
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Samples, held-out images, training images and the samples' blocks of each cell with enough of them."""
    places = [_cell_of(x, centres).cpu() for x in (rows, heldout, real)]
    cells = []
    for cell in range(len(centres)):
        mine, held, trained = ((place == cell).nonzero().flatten().to(rows.device) for place in places)
        if min(len(mine), len(held)) >= ENOUGH and len(trained):
            cells.append((rows[mine], heldout[held], real[trained], member[mine]))
    return cells or [(rows, heldout, real, member)]


def _further(rows: Tensor, heldout: Tensor, real: Tensor, member: Tensor) -> tuple[Tensor, Tensor, int]:
    """Of each block (BLOCKS,): pairs in which the sample is further away than the held-out image, ties half,
    and samples; and the number of held-out images.
    """
    samples, others = nearest(rows, real), nearest(heldout, real).sort().values
    below = torch.searchsorted(others, samples, right=False).double()
    pairs = (below + torch.searchsorted(others, samples, right=True).double()) / 2
    return member.T @ pairs, member.sum(0), len(others)


def _standard(pairs: Tensor, n: Tensor, m: int) -> Tensor:
    """Z of n samples and m held-out images, 0 for no samples."""
    return (pairs - n * m / 2) / (n * m * (n + m + 1) / 12).sqrt().clamp_min(0.5)


Copies = partial(KeptRows, measure_copies)
CT = partial(KeptRows, measure_ct)
