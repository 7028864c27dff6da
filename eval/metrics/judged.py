"""Metrics of a judge: in which classes a classifier puts the samples, and how sure it is."""

import torch
from torch import Tensor

from trilemma.eval.metrics.sample_metric import Measurement, SampleMetric, share_interval
from trilemma.eval.scoring.reference import ReferenceStatistics

CONFIDENT = 0.9


class ClassAccuracy(SampleMetric):
    """Share of samples that the classifier puts in the class that they were drawn for."""

    def __init__(self, reference: ReferenceStatistics, num_samples: int) -> None:
        super().__init__(num_samples)
        self.add_sum("correct", 1)

    def update(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """logits (B, K) of the samples `index` (B,) and the labels (B,) that they were drawn for."""
        self.mark(index)
        self.correct += (logits.argmax(1) == labels.to(logits.device)).sum().to(self.device)

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.correct)
        n = self.num_samples
        value = float(self.correct) / n
        return {"class_accuracy": Measurement(value, n, share_interval(value, n))}


class Modes(SampleMetric):
    """Which classes the samples fall in, compared with the reference's images under the same classifier.

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
