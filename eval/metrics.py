"""The metrics: which exist, what each needs and what it measures.

All take features or logits of samples and compare them with `ReferenceStatistics`; they reduce over processes
exactly (`sample_metric.py`). The mathematics is in `frechet.py` and `pairwise.py`. A new metric is one class,
or one function over kept rows, and one row of METRICS.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.eval.frechet import (
    BLOCKS,
    T_QUANTILE,
    Gaussian,
    add_outer_,
    block_of,
    frechet_distance,
    frechet_floor,
    packed_size,
)
from trilemma.eval.pairwise import Kernel, cubic, kernel_distance, manifolds, nearest, negative_distance
from trilemma.eval.reference_stats import ReferenceStatistics
from trilemma.eval.sample_metric import (
    FixedSubset,
    Measurement,
    SampleMetric,
    at_least_zero,
    block_interval,
    share_interval,
)

MAX_ROWS = 10_000  # samples, and reference images, that metrics over pairs look at
EVERYTHING = 2**31
CONFIDENT = 0.9
NEAREST_QUANTILES = {"p01": 0.01, "p05": 0.05, "p50": 0.5}


class FrechetDistance(SampleMetric):
    """Frechet distance to the reference, with its floor and the interval of a delete-one-block jackknife.

    The value is the plain distance of n samples, the one that the literature reports; it is biased upwards.
    The interval is debiased: it is for the distance of infinitely many samples to these reference statistics,
    and usually lies below the value.
    """

    def __init__(self, reference: ReferenceStatistics, num_samples: int) -> None:
        super().__init__(num_samples)
        self.reference = reference.gaussian
        dimension = len(self.reference.mean)
        self.add_sum("count", BLOCKS)
        self.add_sum("total", BLOCKS, dimension)
        self.add_sum("moment", BLOCKS, packed_size(dimension))

    def update(self, index: Tensor, features: Tensor) -> None:
        """features (B, D) of the samples `index` (B,)."""
        check_width(features, self.reference)
        block = block_of(self.mark(index), self.num_samples)
        # Relative to the reference's mean, so that no digits are lost where means are large.
        rows = features.to(self.moment) - self.reference.mean.to(self.device)
        for number in block.unique().tolist():
            part = rows[(block == number).to(self.device)]
            self.count[number] += len(part)
            self.total[number] += part.sum(0)
            add_outer_(self.moment[number], part)

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.total)
        reference = self.reference.to(self.device)

        def distance(kept: Tensor) -> float:
            samples = Gaussian.of_sums(self.count, self.total, self.moment, kept, reference.mean)
            return frechet_distance(samples, reference)

        n, value = self.num_samples, distance(torch.ones_like(self.count))
        interval = at_least_zero(block_interval(value, self.count, distance, second_order=True))
        return {"fd": Measurement(value, n, interval, frechet_floor(reference, n))}


class Diversity(SampleMetric):
    """Mean squared distance of two samples over that of two reference images: 1 if as diverse.

    The mean pairwise distance is the usual measure of diversity (Zhu et al. 2017, BicycleGAN, over LPIPS).
    Squared and Euclidean it is twice the trace of the covariance, so that sums suffice.
    """

    def __init__(self, reference: ReferenceStatistics, num_samples: int) -> None:
        super().__init__(num_samples)
        self.reference = reference.gaussian
        self.scale = float(self.reference.covariance.trace())
        if not self.scale > 0:
            raise ValueError("--metrics diversity: all images of the reference have the same features")
        self.add_sum("count", BLOCKS)
        self.add_sum("total", BLOCKS, len(self.reference.mean))
        self.add_sum("squared", BLOCKS)

    def update(self, index: Tensor, features: Tensor) -> None:
        """features (B, D) of the samples `index` (B,)."""
        check_width(features, self.reference)
        block = block_of(self.mark(index), self.num_samples).to(self.device)
        rows = features.to(self.total) - self.reference.mean.to(self.device)
        squared = rows.square().sum(1)
        self.count.index_add_(0, block, torch.ones_like(squared))
        self.total.index_add_(0, block, rows)
        self.squared.index_add_(0, block, squared)

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.squared)

        def ratio(kept: Tensor) -> float:
            count, total, squared = kept @ self.count, kept @ self.total, kept @ self.squared
            return float((squared - total.square().sum() / count) / (count - 1)) / self.scale

        value = ratio(torch.ones_like(self.count))
        interval = at_least_zero(block_interval(value, self.count, ratio))
        return {"diversity": Measurement(value, self.num_samples, interval, 1.0)}


class InceptionScore(SampleMetric):
    """Inception score (Salimans et al. 2016): mean over 10 splits, with their standard deviation as `is_std`.

    The splits are `frechet.block_of`'s. A smaller split scores lower: compare only equal numbers of samples.
    """

    def __init__(self, reference: ReferenceStatistics, num_samples: int) -> None:
        super().__init__(num_samples)
        self.add_sum("count", BLOCKS)
        self.add_sum("negative_entropy", BLOCKS)
        self.add_sum("probability", BLOCKS, len(reference.class_counts))

    def update(self, index: Tensor, logits: Tensor) -> None:
        """logits (B, K) of the samples `index` (B,)."""
        block = block_of(self.mark(index), self.num_samples).to(self.device)
        log_p = logits.to(self.probability).log_softmax(1)
        negative_entropy = (log_p.exp() * log_p).sum(1)
        self.count.index_add_(0, block, torch.ones_like(negative_entropy))
        self.negative_entropy.index_add_(0, block, negative_entropy)
        self.probability.index_add_(0, block, log_p.exp())

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.negative_entropy)
        filled = self.count > 0
        count = self.count[filled]
        marginal = self.probability[filled] / count[:, None]
        scores = (self.negative_entropy[filled] / count - torch.xlogy(marginal, marginal).sum(1)).exp()
        n, value, interval = self.num_samples, float(scores.mean()), None
        if len(scores) == BLOCKS:
            half = T_QUANTILE * float(scores.std()) / BLOCKS**0.5
            interval = value - half, value + half
        spread = float(scores.std(correction=0))
        return {"is": Measurement(value, n, interval), "is_std": Measurement(spread, n)}


class ClassAccuracy(SampleMetric):
    """Share of samples that the classifier puts in the class that was asked for."""

    def __init__(self, reference: ReferenceStatistics, num_samples: int) -> None:
        super().__init__(num_samples)
        self.add_sum("correct", 1)

    def update(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """logits (B, K) of the samples `index` (B,) and the labels (B,) that they were made for."""
        self.mark(index)
        self.correct += (logits.argmax(1) == labels.to(logits.device)).sum().to(self.device)

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.correct)
        n = self.num_samples
        value = float(self.correct) / n
        return {"class_accuracy": Measurement(value, n, share_interval(value, n))}


class Modes(SampleMetric):
    """Which classes the samples fall in, beside the reference's images under the same classifier.

    modes: classes of the reference that have a sample (Metz et al. 2017). modes_kl: KL(samples || reference)
    of the class frequencies in nats, with half a count added to each reference class so that it is finite;
    its floor is that of two sets of one distribution, (classes - 1) / 2 (1/n + 1/m). confidence: mean of the
    highest class probability. confident_share: samples where it is above 0.9.
    """

    def __init__(self, reference: ReferenceStatistics, num_samples: int) -> None:
        super().__init__(num_samples)
        self.reference_counts = reference.class_counts
        self.add_sum("count", len(self.reference_counts))
        self.add_sum("confidence", 1)
        self.add_sum("confident", 1)

    def update(self, index: Tensor, logits: Tensor) -> None:
        """logits (B, K) of the samples `index` (B,)."""
        self.mark(index)
        highest, predicted = logits.to(self.confidence).softmax(1).max(1)
        self.count.index_add_(0, predicted, torch.ones_like(highest))
        self.confidence += highest.sum()
        self.confident += (highest > CONFIDENT).sum()

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.confidence)
        n, real = self.num_samples, self.reference_counts.to(self.device)
        present = real > 0
        share, expected = self.count / n, (real + 0.5) / (real + 0.5).sum()
        divergence = float(torch.xlogy(share, share / expected).sum())
        floor = float((present.sum() - 1) / 2 * (1 / n + 1 / real.sum()))
        confident = float(self.confident) / n
        return {
            "modes": Measurement(float((self.count[present] > 0).sum()), n, floor=float(present.sum())),
            "modes_kl": Measurement(max(0.0, divergence), n, floor=floor),
            "confidence": Measurement(float(self.confidence) / n, n),
            "confident_share": Measurement(confident, n, share_interval(confident, n)),
        }


class KeptRows(SampleMetric):
    """A metric over pairs: keeps the features of MAX_ROWS random samples and hands them to `measure`.

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
        self.subset = FixedSubset(num_samples, MAX_ROWS)
        width = len(reference.gaussian.mean)
        self.add_sum("rows", len(self.subset.members), width, dtype=torch.float32)

    def update(self, index: Tensor, features: Tensor) -> None:
        """features (B, D) of the samples `index` (B,)."""
        check_width(features, self.reference.gaussian)
        self.subset.store(self.rows, self.mark(index), features)

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.rows)
        return self.measure(self.rows, block_of(self.subset.members, self.num_samples), self.reference)


def measure_kid(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """KID (Binkowski et al. 2018) against MAX_ROWS of the reference: unbiased, from all pairs.

    The literature's mean over 100 subsets of 1,000 estimates the same number, with more noise.
    """
    return {"kid": _kernel_measurement(cubic, rows, block, reference)}


def measure_energy(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """Energy distance (Szekely & Rizzo 2013), 2 E|x - y| - E|x - x'| - E|y - y'|, against MAX_ROWS.

    Unbiased, from all pairs, and so below 0 at times. It is 0 for equal laws alone, with no Gaussian and no
    bandwidth to choose: the metric for features of few dimensions, such as points of the plane.
    """
    return {"energy": _kernel_measurement(negative_distance, rows, block, reference)}


def _kernel_measurement(
    kernel: Kernel, rows: Tensor, block: Tensor, reference: ReferenceStatistics
) -> Measurement:
    real = reference.features[:MAX_ROWS].to(rows.device)
    member = torch.nn.functional.one_hot(block, BLOCKS).to(rows.device)
    distance = kernel_distance(real, rows, member, kernel)
    sizes = member.sum(0).to(rows)
    value = distance(torch.ones_like(sizes))
    return Measurement(value, len(rows), block_interval(value, sizes, distance), 0.0)


def measure_prdc(rows: Tensor, block: Tensor, reference: ReferenceStatistics) -> dict[str, Measurement]:
    """Precision and recall (k = 3), density and coverage (k = 5) against MAX_ROWS of the reference.

    They depend on both numbers of images: compare only like with like. The intervals are for other sets of as
    many samples. Recall has none: its balls are those between the samples, and each changes with the others.
    """
    member = torch.nn.functional.one_hot(block, BLOCKS).to(rows.device)
    shares = manifolds(reference.features[:MAX_ROWS].to(rows.device), rows, member)
    n, sizes, around = len(rows), member.sum(0).double(), member.T.double() @ shares.around.double()

    def density(kept: Tensor) -> float:
        return float(kept @ around / (5 * (kept @ sizes)))

    def coverage(kept: Tensor) -> float:
        return float((shares.covered.double() @ kept > 0).double().mean())

    def spread(value_of: Callable[[Tensor], float], highest: float) -> Measurement:
        value = value_of(torch.ones_like(sizes))
        interval = block_interval(value, sizes, value_of)
        if interval is None or interval[0] == interval[1]:  # where nothing varies, nothing is known of it
            return Measurement(value, n)
        half = (interval[1] - interval[0]) / 2  # about the value, since more samples would cover more
        return Measurement(value, n, (max(0.0, value - half), min(highest, value + half)))

    precision = float(shares.precise.double().mean())
    return {
        "precision": Measurement(precision, n, share_interval(precision, n)),
        "recall": Measurement(float(shares.recalled.double().mean()), n),
        "density": spread(density, highest=float("inf")),
        "coverage": spread(coverage, highest=1.0),
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
    heldout = nearest(reference.heldout.to(rows.device), real).sort().values
    closer = torch.searchsorted(heldout, samples, right=False).double().mean() / len(heldout)
    not_further = torch.searchsorted(heldout, samples, right=True).double().mean() / len(heldout)
    results = {"copying": Measurement(1 - float(closer + not_further) / 2, len(rows), floor=0.5)}
    for name, quantile in NEAREST_QUANTILES.items():
        results[f"nearest_{name}"] = Measurement(float(samples.quantile(quantile)), len(rows))
        results[f"nearest_{name}_heldout"] = Measurement(float(heldout.quantile(quantile)), len(heldout))
    return results


def check_width(features: Tensor, reference: Gaussian) -> None:
    """ValueError unless features (B, D) are as wide as the reference."""
    if features.ndim != 2 or features.shape[1] != len(reference.mean):
        raise ValueError(
            f"features must be (B, {len(reference.mean)}), as the reference's; got {tuple(features.shape)}. "
            "Was the reference made with another --feature_extractor?"
        )


class Row(NamedTuple):
    """A metric: its constructor, what `update` takes after the index, and what it asks of the reference.

    `parts` are fields of ReferenceStatistics that must be there; `keep` is how many features it has to keep.
    """

    build: Callable[[ReferenceStatistics, int], SampleMetric]
    needs: tuple[str, ...] = ("features",)
    parts: tuple[str, ...] = ()
    keep: int = 0


METRICS = {
    "fd": Row(FrechetDistance),
    "kid": Row(partial(KeptRows, measure_kid), parts=("features",), keep=MAX_ROWS),
    "is": Row(InceptionScore, ("logits",), parts=("class_counts",)),
    "energy": Row(partial(KeptRows, measure_energy), parts=("features",), keep=MAX_ROWS),
    "prdc": Row(partial(KeptRows, measure_prdc), parts=("features",), keep=MAX_ROWS),
    "class_accuracy": Row(ClassAccuracy, ("logits", "labels")),
    "modes": Row(Modes, ("logits",), parts=("class_counts",)),
    "memorization": Row(
        partial(KeptRows, measure_memorization), parts=("features", "heldout"), keep=EVERYTHING
    ),
    "diversity": Row(Diversity),
}

REMEDIES = {
    "features": "the reference's features: give the data set itself as --reference",
    "heldout": "real images that were not trained on: give a data set with a test split as --reference",
    "class_counts": "class predictions: take --feature_extractor inception or classifier, and "
    "the data set itself as --reference",
}


def build_metrics(
    names: Iterable[str], reference: ReferenceStatistics, num_samples: int
) -> dict[str, SampleMetric]:
    """The metrics of these names, once it is clear that the reference has what each of them needs."""
    parts = {
        "features": reference.features,
        "heldout": reference.heldout,
        "class_counts": reference.class_counts,
    }
    metrics = {}
    for name in names:
        if name not in METRICS:
            raise ValueError(f"--metrics must be of {', '.join(METRICS)}; got {name!r}")
        for part in METRICS[name].parts:
            if parts[part] is None:
                raise ValueError(f"--metrics {name} needs {REMEDIES[part]}")
        metrics[name] = METRICS[name].build(reference, num_samples)
    return metrics
