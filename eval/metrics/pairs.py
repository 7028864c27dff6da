"""Metrics over pairs of images: they keep the features of some samples and compare each with each.

The mathematics is in `pairwise.py`. A metric here is a function of the kept rows, their blocks and the
reference; `KeptRows` does the rest. The rows of METRICS name the metrics at the end of this file.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trilemma.eval.metrics.frechet import BLOCKS, block_of
from trilemma.eval.metrics.pairwise import (
    CUBIC,
    GAUSSIAN,
    NEGATIVE_DISTANCE,
    Kernel,
    check_neighbours,
    kernel_distance,
    manifolds,
    nearest,
    sum_within,
)
from trilemma.eval.metrics.sample_metric import (
    FixedSubset,
    Measurement,
    SampleMetric,
    block_interval,
    check_width,
    share_interval,
)
from trilemma.eval.metrics.table import NEAREST_QUANTILES, PAIR_IMAGES
from trilemma.eval.scoring.reference import ReferenceStatistics
from trilemma.training.devices.precision import plain_float32


class KeptRows(SampleMetric):
    """A metric over pairs: keeps the features of PAIR_IMAGES random samples and hands them to `measure`.

    measure(rows (N, D) float32, block (N,), reference): each row in its own place of zeros, so that the sum
    over ranks gathers them in one order, exactly.
    """

    def __init__(
        self,
        measure: Callable[[Tensor, Tensor, ReferenceStatistics], dict[str, Measurement]],
        reference: ReferenceStatistics,
        num_samples: int,
    ) -> None:
        super().__init__(num_samples)
        self.measure, self.reference = measure, reference
        self.subset = FixedSubset(num_samples, PAIR_IMAGES)
        width = len(reference.gaussian.mean)
        self.add_sum("rows", len(self.subset.members), width, dtype=torch.float32)

    def update(self, index: Tensor, features: Tensor) -> None:
        """features (B, D) of the samples `index` (B,)."""
        check_width(features, self.reference.gaussian)
        self.subset.store(self.rows, self.mark(index), features)

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.rows)
        block = block_of(self.subset.members, self.num_samples)
        with plain_float32(self.rows.device):
            return self.measure(self.rows, block, self.reference)


def at_this_n(
    value_of: Callable[[Tensor], float],
    sizes: Tensor,
    *,
    lowest: float = 0.0,
    highest: float = float("inf"),
    floor: float | None = None,
    scale: Callable[[float], float] = float,
) -> Measurement:
    """A number with its interval for other sets of n samples, where more samples would give another number.

    sizes (BLOCKS,) are the blocks' numbers of samples; `value_of` computes the value from the blocks that are
    kept, (BLOCKS,) of ones and zeros. What chance takes beyond lowest..highest counts in the spread, and is
    cut off afterwards: values that are cut before they are compared would all be equal. scale: a rising
    function; the number and the ends of its interval are those of the values.
    """
    n, value = round(float(sizes.sum())), value_of(torch.ones_like(sizes))
    interval = block_interval(value, sizes, value_of)
    value = min(highest, max(lowest, value))
    if interval is None or interval[0] == interval[1]:  # a spread of 0 says nothing of other samples
        return Measurement(scale(value), n, floor=floor)
    half = (interval[1] - interval[0]) / 2
    ends = max(lowest, value - half), min(highest, value + half)
    return Measurement(scale(value), n, (scale(ends[0]), scale(ends[1])), floor)


def measure_kid(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """KID (Binkowski et al. 2018) against PAIR_IMAGES of the reference: unbiased, from all pairs.

    The literature's mean over 100 subsets of 1,000 estimates the same number, with more noise.
    """
    return {"kid": _kernel_measurement(CUBIC, rows, block, reference)}


def measure_energy(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """Energy distance (Szekely & Rizzo 2013), 2 E|x - y| - E|x - x'| - E|y - y'|, against PAIR_IMAGES.

    Unbiased, from all pairs, and so below 0 at times. It is 0 for equal laws alone, with no Gaussian and no
    bandwidth to choose: the metric for features of few dimensions, such as points of the plane.
    """
    return {"energy": _kernel_measurement(NEGATIVE_DISTANCE, rows, block, reference)}


def measure_cmmd(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603) against PAIR_IMAGES of the reference, any features.

    1000 times the squared maximum mean discrepancy with a Gaussian kernel of width 10, of features scaled to
    length 1, as the paper scales CLIP's. Unbiased, from all pairs, so it can be below 0.
    """
    return {"cmmd": _kernel_measurement(GAUSSIAN, rows, block, reference)}


def _kernel_measurement(
    kernel: Kernel, rows: Tensor, block: Tensor, reference: ReferenceStatistics
) -> Measurement:
    real = reference.features[:PAIR_IMAGES].to(rows.device)
    member = torch.nn.functional.one_hot(block, BLOCKS).to(rows.device)
    within = reference.once(f"{kernel.name} within", lambda: sum_within(real, kernel))
    distance = kernel_distance(real, rows, member, kernel, within)
    sizes = member.sum(0).to(rows)
    value = distance(torch.ones_like(sizes))
    return Measurement(value, len(rows), block_interval(value, sizes, distance), 0.0)


def measure_prdc(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """Precision and recall (k = 3), density and coverage (k = 5) against PAIR_IMAGES of the reference.

    They depend on both numbers of images: compare only like with like. The intervals are for other sets of as
    many samples. Recall has none: its balls are those between the samples, and each changes with the others.
    """
    member = torch.nn.functional.one_hot(block, BLOCKS).to(rows.device)
    shares = manifolds(reference.features[:PAIR_IMAGES].to(rows.device), rows, member)
    n, sizes, around = len(rows), member.sum(0).double(), member.T.double() @ shares.around.double()

    def density(kept: Tensor) -> float:
        return float(kept @ around / (5 * (kept @ sizes)))

    def coverage(kept: Tensor) -> float:
        return float((shares.covered.double() @ kept > 0).double().mean())

    precision = float(shares.precise.double().mean())
    return {
        "precision": Measurement(precision, n, share_interval(precision, n)),
        "recall": Measurement(float(shares.recalled.double().mean()), n),
        "density": at_this_n(density, sizes),
        "coverage": at_this_n(coverage, sizes, highest=1.0),
    }


def measure_memorization(
    rows: Tensor, block: Tensor, reference: ReferenceStatistics
) -> dict[str, Measurement]:
    """Whether samples lie closer to the reference (the training images) than unseen real images do.

    `copying` is the chance that a random sample is nearer to its nearest reference image than a random
    held-out image is to its own (the Mann-Whitney statistic of Meehan et al. 2020, over the whole space): 0.5
    for new images, towards 1 for copies, below 0.5 for samples that are far from the data. `nearest_*` are
    quantiles of these distances, `nearest_*_heldout` those of held-out images. Where the reference holds a
    part of the training images, only that part's copies are seen.
    """
    real = reference.features.to(rows.device)
    samples = nearest(rows, real)
    heldout = reference.once(
        "nearest to heldout", lambda: nearest(reference.heldout.to(rows.device), real).sort().values
    ).to(rows.device)
    closer = torch.searchsorted(heldout, samples, right=False).double().mean() / len(heldout)
    not_further = torch.searchsorted(heldout, samples, right=True).double().mean() / len(heldout)
    results = {"copying": Measurement(1 - float(closer + not_further) / 2, len(rows), floor=0.5)}
    for name, quantile in NEAREST_QUANTILES.items():
        results[f"nearest_{name}"] = Measurement(float(samples.quantile(quantile)), len(rows))
        results[f"nearest_{name}_heldout"] = Measurement(float(heldout.quantile(quantile)), len(heldout))
    return results


KID = partial(KeptRows, measure_kid)
Energy = partial(KeptRows, measure_energy)
CMMD = partial(KeptRows, measure_cmmd)


def PRDC(reference: ReferenceStatistics, num_samples: int) -> KeptRows:
    """Precision, recall, density and coverage; ValueError for images that do not have enough neighbours."""
    check_neighbours(len(reference.features), num_samples)
    return KeptRows(measure_prdc, reference, num_samples)


Memorization = partial(KeptRows, measure_memorization)
