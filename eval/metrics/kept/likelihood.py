"""Feature likelihood divergence and its generalisation gap (Jiralerspong et al. 2023, arXiv 2302.04440).

A mixture of Gaussians, one about each sample, is fitted to the training images and judged by its likelihood
of held-out images. It is lower if samples look wrong, if a kind of image is missing, and if they copy
training images, whose Gaussians then shrink to points.
"""

import math
from functools import partial

import torch
from torch import Tensor

from trilemma.eval.metrics.frechet import BLOCKS
from trilemma.eval.metrics.pairs import KeptRows, at_this_n
from trilemma.eval.metrics.pairwise import CHUNK, squared_distances
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.metrics.table import PAIR_IMAGES
from trilemma.eval.scoring.reference import ReferenceStatistics

GAUSSIANS = 2_000
"""Of the mixtures, at most."""

LEAST = 1e-8
"""Least variance of a Gaussian, features having variance 1: that of copies. Below it is only rounding."""

ROUNDS, CLOSE = 50, 1e-6
"""Rounds of the fit, at most; it ends once a round gains less than CLOSE nats per feature."""


def measure_fld(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """The divergence `fld`, of which 0 is perfect, and the generalisation gap `fld_gap`.

    fld: 100 / D times (NLL of the held-out images - that under a mixture about training images). NLL is the
    mean negative log-likelihood, D the number of features, each first scaled to mean 0 and variance 1 over
    the held-out images. Both mixtures have c Gaussians of weight 1 / c: those about samples, fitted to
    PAIR_IMAGES training images; and those about c training images, fitted to at most PAIR_IMAGES others. c is
    GAUSSIANS, or the number of samples, or half of the training images: the least.
    fld_gap: 100 / D times (NLL of the training images - NLL of the held-out ones), both under the samples'
    mixture: near 0 for new samples, or below it where widths are fitted to few training images; far below if
    samples copy. Its floor is that of the other mixture, which is lower where fewer than PAIR_IMAGES are left
    to fit it to. The intervals are for other sets of n samples, with the widths as they are.
    """
    real, heldout = reference.features, reference.heldout[:PAIR_IMAGES]
    if min(len(real), len(heldout)) < 4:
        raise ValueError(
            "--metrics fld needs 4 images or more in the reference and held out; "
            f"got {len(real)} and {len(heldout)}"
        )
    n = min(len(rows), GAUSSIANS, len(real) // 2)
    heldout, train, centres = _scaled(heldout.to(rows.device), real[: n + PAIR_IMAGES], rows[:n])
    unit, member = 100 / rows.shape[1], torch.nn.functional.one_hot(block[:n], BLOCKS).to(rows.device)
    sizes = member.sum(0).double()
    perfect, fitted = reference.once(f"fld of {n}", lambda: _perfect(heldout, train[:n], train[n:]))
    train = train[:PAIR_IMAGES]
    width = fit_widths(train, centres)
    new, old = (log_likelihoods(x, centres, width, member) for x in (heldout, train))

    def divergence(kept: Tensor) -> float:
        return unit * (nll(new, kept * sizes) - perfect)

    def gap(kept: Tensor) -> float:
        return unit * (nll(old, kept * sizes) - nll(new, kept * sizes))

    return {
        "fld": at_this_n(divergence, sizes, lowest=-math.inf, floor=0.0),
        "fld_gap": at_this_n(gap, sizes, lowest=-math.inf, floor=unit * (fitted - perfect)),
    }


def _perfect(heldout: Tensor, centres: Tensor, others: Tensor) -> tuple[float, ...]:
    """NLL of held-out and of other training images under the mixture about training images (c, D)."""
    width, all_of_them = fit_widths(others, centres), torch.ones_like(centres[:, :1])
    size = all_of_them.sum(0)
    return tuple(nll(log_likelihoods(x, centres, width, all_of_them), size) for x in (heldout, others))


def _scaled(heldout: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All of them, each feature less the mean and over the deviation that it has in the first."""
    heldout = heldout.double()
    mean, deviation = heldout.mean(0), heldout.std(0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return tuple((x.to(mean) - mean) / deviation for x in (heldout, *others))


def fit_widths(x: Tensor, centres: Tensor) -> Tensor:
    """Log variances (c,) with which Gaussians of equal weight about centres (c, D) fit x (N, D) best.

    The EM algorithm (Dempster, Laird & Rubin 1977) from the distances to the nearest rows: a local optimum.
    While they are fitted, one more Gaussian, about the mean of x, takes the rows that are far from all.
    """
    dimension, centres = x.shape[1], torch.cat([centres, x.mean(0, keepdim=True)])
    squared = torch.cat([part for _, part in squared_distances(x, centres)]).clamp_min_(dimension * LEAST)
    width, before = (squared.min(0).values / dimension).log(), -math.inf
    for _ in range(ROUNDS):
        weight = torch.full_like(width, -math.inf)  # log of the sum of the rows' shares in each Gaussian
        moment, gained = weight.clone(), 0.0  # and of their shares times squared distances
        for part in squared.split(CHUNK):
            density = _log_densities(part, width, dimension)
            row = density.logsumexp(1)
            share = density.sub_(row[:, None])
            weight = torch.logaddexp(weight, share.logsumexp(0))
            moment = torch.logaddexp(moment, share.add_(part.log()).logsumexp(0))
            gained += float(row.sum()) / (len(x) * dimension)
        width = moment - weight - math.log(dimension)
        if gained - before < CLOSE:
            break
        before = gained
    return width[:-1]


def _log_densities(squared: Tensor, width: Tensor, dimension: int) -> Tensor:
    """Of Gaussians with log variances width (c,) at squared distances (N, c)."""
    return (squared * (-0.5 * (-width).exp())).sub_(dimension / 2 * (width + math.log(2 * math.pi)))


def log_likelihoods(x: Tensor, centres: Tensor, width: Tensor, member: Tensor) -> Tensor:
    """Logs (N, B) of each block's sum of densities at x (N, D); member (c, B): its Gaussians, 1 or 0."""
    rows = []
    for _, squared in squared_distances(x, centres):
        density = _log_densities(squared, width, x.shape[1])
        rows.append(torch.stack([density[:, mine].logsumexp(1) for mine in member.T.bool()], 1))
    return torch.cat(rows)


def nll(by_block: Tensor, sizes: Tensor) -> float:
    """Mean negative log-likelihood from by_block (N, B); sizes (B,): its Gaussians, 0 leaves a block out."""
    return float(sizes.sum().log() - by_block[:, sizes > 0].logsumexp(1).mean())


FLD = partial(KeptRows, measure_fld)
