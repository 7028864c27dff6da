"""Metrics over sums of features or logits: Frechet distance, diversity, Inception score.

They reduce over processes exactly (`sample_metric.py`). The mathematics of the distance is in `frechet.py`.
"""

import torch
from torch import Tensor

from trilemma.eval.metrics.expansion import expansion_interval
from trilemma.eval.metrics.frechet import (
    BLOCKS,
    T_QUANTILE,
    Gaussian,
    add_outer_,
    block_of,
    congruence,
    frechet_distance,
    frechet_floor,
    packed_size,
)
from trilemma.eval.metrics.sample_metric import (
    Measurement,
    SampleMetric,
    block_interval,
    check_width,
    has_blocks,
    not_negative,
)
from trilemma.eval.scoring.reference import ReferenceStatistics

# Samples per feature from which the interval comes from derivatives instead of a distance without each block.
# With fewer the covariance of the samples is near a singular one, where the root has no derivative.
EXPANDED = 2


class FrechetDistance(SampleMetric):
    """Frechet distance to the reference, with its floor and an interval that is debiased to the order 1/n^2.

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

        n, sums, every = self.num_samples, (self.count, self.total, self.moment), torch.ones_like(self.count)

        def moments(kept: Tensor) -> Gaussian:
            return Gaussian.of_sums(*sums, kept, reference.mean)

        if n >= EXPANDED * len(reference.mean) and has_blocks(self.count):
            samples = moments(every)
            lower = congruence(reference.factor, samples.covariance)
            value = frechet_distance(samples, reference, lower)
            interval = expansion_interval(value, sums, reference, lower)
        else:
            value = frechet_distance(moments(every), reference)
            interval = block_interval(
                value, self.count, lambda kept: frechet_distance(moments(kept), reference), second_order=True
            )
        return {"fd": not_negative(value, n, interval, frechet_floor(reference, n))}


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
        interval = block_interval(value, self.count, ratio)
        # A ratio of unbiased variances.
        return {"diversity": not_negative(value, self.num_samples, interval, 1.0)._replace(debiased=None)}


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
