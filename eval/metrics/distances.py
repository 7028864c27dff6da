"""The metrics: which exist, what each needs and what it measures.

All take features or logits of samples and compare them with `ReferenceStatistics`; they reduce over processes
exactly (`sample_metric.py`). The mathematics is in `frechet.py` and `pairwise.py`. A new metric is one class,
or one function of `pair_metrics.py`, and one row of METRICS.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.eval.metrics.frechet import (
    BLOCKS,
    T_QUANTILE,
    Gaussian,
    add_outer_,
    block_of,
    frechet_distance,
    frechet_floor,
    packed_size,
)
from trilemma.eval.metrics.pairs import (
    EVERYTHING,
    MAX_ROWS,
    KeptRows,
    measure_energy,
    measure_kid,
    measure_memorization,
    measure_prdc,
)
from trilemma.eval.metrics.sample_metric import (
    Measurement,
    SampleMetric,
    at_least_zero,
    block_interval,
    check_width,
    share_interval,
)
from trilemma.eval.scoring.reference import ReferenceStatistics

CONFIDENT = 0.9


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
