"""Training without some of the labels, for classifier-free guidance."""

import torch
from torch import Tensor, nn


class LabelDropout(nn.Module):
    """Replaces each label, on its own, by the null label K with probability p; never during validation.

    Ho & Salimans 2022 (arXiv 2207.12598), algorithm 1.
    """

    def __init__(self, num_classes: int, p: float):
        super().__init__()
        self.num_classes, self.p = num_classes, p

    def forward(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..K-1 -> (B,) in 0..K."""
        if not self.training:
            return labels
        return labels.masked_fill(torch.rand(len(labels), device=labels.device) < self.p, self.num_classes)
