"""The discriminator of the denoising-diffusion GAN: was this x_{t-1} drawn from the data, given x_t?

Xiao, Kreis & Vahdat 2022 (arXiv 2112.07804), appendix C: residual blocks with the embedding of t in each, and
the deviation over small groups of examples as a further channel. Average pooling replaces their
FIR filter, group norm is added, and the last layer sees every position instead of their sum: docs/ddgan.md
has the reasons. It is never published: generators sample alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
GROUP = 4
"""Examples whose deviation is compared; batches are multiples of it, so no group holds real and fake ones."""

SMALLEST = 3
"""No block halves an image below this side."""

NORM_GROUPS = 8

FIRST_LOGITS = 0.25
"""Scale of the last layer at the start; with large first logits, shrinking them is all that is learned."""


class Block(nn.Module):
    """(B, inputs, H, W), embedding (B, E) -> (B, outputs, H / 2, W / 2), or (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, halve: bool):
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(inputs, NORM_GROUPS), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embed = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(math.gcd(outputs, NORM_GROUPS), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.halve = halve

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x), SLOPE)) + self.embed(embedding)[:, :, None, None]
        h = F.leaky_relu(self.norm2(h), SLOPE)
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return (self.conv2(h) + self.skip(x)) / 2**0.5


class Discriminator(nn.Module):
    """(x_{t-1}, x_t, t) -> logits (B,), large for pairs of the data.

    widths: channels of the blocks; the first keeps the image's size, the others halve it while it stays at
    least `SMALLEST`.
    """

    def __init__(self, channels: int, resolution: int, widths: Sequence[int], num_classes: int = 0):
        super().__init__()
        embedding = widths[0]
        self.embed_t = nn.Sequential(
            nn.Linear(embedding, embedding), nn.LeakyReLU(SLOPE), nn.Linear(embedding, embedding)
        )
        self.embed_label = nn.Embedding(num_classes, embedding) if num_classes else None
        self.first = nn.Conv2d(2 * channels, widths[0], 1)
        blocks, side = [Block(widths[0], widths[0], embedding, halve=False)], resolution
        for inputs, outputs in pairwise(widths):
            halve = side // 2 >= SMALLEST
            blocks.append(Block(inputs, outputs, embedding, halve))
            side = side // 2 if halve else side
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.head = nn.Linear(widths[-1] * side**2, 1)
        self.apply(_initialise)
        with torch.no_grad():
            self.head.weight *= FIRST_LOGITS

    def forward(self, x_before: Tensor, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_before (x_{t-1}) and x_t (B, C, H, W), t (B,) in 1..T, labels (B,) or None -> logits (B,)."""
        embedding = get_timestep_embedding(t - 1, self.first.out_channels).to(x_t)
        embedding = self.embed_t(embedding)
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(labels)
        embedding = F.leaky_relu(embedding, SLOPE)
        h = self.first(torch.cat([x_before, x_t], dim=1))
        for block in self.blocks:
            h = block(h, embedding)
        h = torch.cat([h, group_deviation(h)], dim=1)
        h = F.leaky_relu(self.last(h), SLOPE)
        return self.head(h.flatten(1)).squeeze(1)


def group_deviation(h: Tensor) -> Tensor:
    """Mean deviation over groups of neighbours in the batch, (B, C, H, W) -> (B, 1, H, W), one value a group.

    Karras et al. 2018 (arXiv 1710.10196), section 3: with it a discriminator sees that samples are alike.
    A group has `GROUP` examples, or the next smaller number that divides the batch.
    """
    group = next(g for g in range(GROUP, 0, -1) if len(h) % g == 0)
    exact = torch.promote_types(h.dtype, torch.float32)
    groups = h.to(exact).unflatten(0, (-1, group))
    deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.repeat_interleave(group).view(-1, 1, 1, 1).expand(-1, 1, *h.shape[2:]).to(h.dtype)


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for this slope: with PyTorch's default the signal fades and logits become constant."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
