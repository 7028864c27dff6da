"""Points of the plane as data: tiny images (2, 1, 1) of 8 bits, which whatever is made for images takes.

A point of [-1, 1]^2 is rounded to the grid of 256 x 256 that pixels live on. A row of POINTS is a data set:

swirl    the spiral of scikit-learn's `make_swiss_roll` seen from above, 1,024 points to train on
mixture  an uneven mixture of five Gaussians, of which everything is known: the probability of each point of
         the grid (`Mixture.true_bpd`), and what a perfect network predicts (`Mixture.expected_noise`, and
         `MixtureDenoiser`, which takes the place of a network)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from trilemma.training.diffusion.losses import discretised_gaussian_nll
from trilemma.training.diffusion.process import GaussianProcess

SHAPE = (2, 1, 1)
SEED = 20230522
SWIRL_NOISE, SWIRL_SCALE = 0.5, 17.0
"""The spiral ends at a radius of 14.1, so that four standard deviations of noise stay within the square."""
SCALE, DOT = 2, 5
"""Sides, in pixels of a picture, of a cell of the grid and of the dot of a point."""

Drawn = tuple[np.ndarray, np.ndarray | None]
"""Points (N, 2) in the plane and their labels (N,), or None."""


class PointSet(NamedTuple):
    """How points are drawn, how many each split has, and the names of their classes."""

    draw: Callable[[np.random.Generator, int], Drawn]
    splits: Mapping[str, int]
    class_names: tuple[str, ...] | None = None

    def split(self, name: str) -> Drawn:
        """Points as uint8 (N, 2, 1, 1) and labels int64 (N,) or None: the same ones every time."""
        rng = np.random.default_rng([SEED, list(self.splits).index(name)])
        points, labels = self.draw(rng, self.splits[name])
        pixels = np.rint((points + 1) * 127.5).clip(0, 255).astype(np.uint8)
        return pixels.reshape(-1, *SHAPE), labels


def swirl(rng: np.random.Generator, count: int) -> Drawn:
    """x and z of `make_swiss_roll`: t (cos t, sin t) for t uniform in 1.5 pi .. 4.5 pi, with noise of 0.5."""
    t = 1.5 * np.pi * (1 + 2 * rng.random(count))
    spiral = t[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)
    return (spiral + SWIRL_NOISE * rng.standard_normal((count, 2))) / SWIRL_SCALE, None


@dataclass(frozen=True)
class Mixture:
    """sum_k weights_k N(means_k, diag(stds_k)^2) in the plane: its points, and what is known of them."""

    weights: tuple[float, ...]
    means: tuple[tuple[float, float], ...]
    stds: tuple[tuple[float, float], ...]

    def draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """Points, and the component of each for its label."""
        modes = rng.choice(len(self.weights), count, p=self.weights)
        means, stds = np.array(self.means)[modes], np.array(self.stds)[modes]
        return means + stds * rng.standard_normal((count, 2)), modes

    def true_bpd(self, points: Tensor) -> Tensor:
        """-log2 of the probability of points of the grid, per dimension: uint8 (N, 2, 1, 1) -> float64 (N,).

        A point of the data is the nearest one of the grid to a point of the mixture, and what lies beyond the
        edge counts for the edge: its probability is, summed over the components, a product of differences of
        the normal CDF. The mean over the data is their entropy, below which no model comes.
        """
        log_mass = self._log_mass(points.double().flatten(1) / 127.5 - 1)
        log_weights = _like(self.weights, log_mass).log()
        return -(log_weights + log_mass.sum(2)).logsumexp(1) / (2 * math.log(2))

    def expected_noise(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[noise | x_t] where x_t = alpha x_0 + sigma noise and x_0 is of the mixture, before it is rounded.

        x_t (B, 2, 1, 1); alpha and sigma (B, 1, 1, 1), or (1, 1, 1, 1) for all -> float64 (B, 2, 1, 1).
        """
        x, alpha, sigma = _columns(x_t, alpha, sigma)  # (B, 1, 2), (B, 1, 1)
        offset = x - alpha * _like(self.means, x)  # (B, K, 2)
        variance = (alpha * _like(self.stds, x)).square() + sigma.square()
        log_density = -0.5 * (offset.square() / variance + variance.log()).sum(2)
        share = (_like(self.weights, x).log() + log_density).softmax(1)
        noise = sigma * (share[:, :, None] * offset / variance).sum(1, keepdim=True)
        return noise.reshape(x_t.shape)

    def expected_noise_on_grid(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The same for x_0 rounded to the grid, as the data are, from the probability of each value.

        It differs from `expected_noise` where sigma is small enough to tell one value from the next.
        """
        x, alpha, sigma = _columns(x_t, alpha, sigma)
        grid = torch.arange(256).to(x) / 127.5 - 1
        log_mass = self._log_mass(grid[:, None].expand(-1, 2)).permute(1, 2, 0)  # (K, 2, 256)
        distance = (x - alpha * grid[:, None]) / sigma  # (B, 256, 2)
        evidence = log_mass - 0.5 * distance.mT[:, None].square()  # (B, K, 2, 256)
        share = (_like(self.weights, x).log() + evidence.logsumexp(3).sum(2)).softmax(1)
        x0 = (share[:, :, None] * (evidence.softmax(3) @ grid)).sum(1, keepdim=True)  # (B, 1, 2)
        return ((x - alpha * x0) / sigma).reshape(x_t.shape)

    def _log_mass(self, x0: Tensor) -> Tensor:
        """log of each component's mass on the cells of coordinates on the grid (N, 2): float64 (N, K, 2)."""
        means, stds = _like(self.means, x0), _like(self.stds, x0)
        return -discretised_gaussian_nll(x0[:, None], means, 2 * stds.log())


def _columns(x_t: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    return x_t.double().reshape(-1, 1, 2), *(value.double().reshape(-1, 1, 1) for value in coefficients)


def _like(values: tuple, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


MIXTURE = Mixture(
    weights=(0.3, 0.25, 0.2, 0.15, 0.1),
    means=((0.0, 0.6), (-0.57, 0.19), (-0.35, -0.49), (0.35, -0.49), (0.57, 0.19)),
    stds=((0.08, 0.08), (0.05, 0.09), (0.09, 0.05), (0.06, 0.06), (0.04, 0.04)),
)
"""Its points lie more than four standard deviations within the square, so that clipping changes no law."""

POINTS = {
    "swirl": PointSet(swirl, {"train": 1024, "test": 10_000}),
    "mixture": PointSet(
        MIXTURE.draw,
        {"train": 20_000, "test": 10_000},
        class_names=tuple(str(mode) for mode in range(len(MIXTURE.weights))),
    ),
}
"""--dataset_name -> its points."""


class MixtureDenoiser(ModelMixin, ConfigMixin):
    """The perfect network of a mixture: `net(x_t, t).sample` is the noise to be expected, t in 0..T-1."""

    def __init__(self, mixture: Mixture, process: GaussianProcess):
        super().__init__()
        self.mixture, self.process = mixture, process
        self.register_to_config(in_channels=2, out_channels=2, sample_size=1)

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> UNet2DOutput:
        """x_t (B, 2, 1, 1), t () or (B,) -> noise (B, 2, 1, 1); the labels are not used."""
        alpha, sigma = self.process.signal_and_noise(t.reshape(-1) + 1, x_t)
        return UNet2DOutput(sample=self.mixture.expected_noise(x_t, alpha, sigma).to(x_t.dtype))


def draws_points(pipeline: DiffusionPipeline) -> bool:
    """Whether the images of a pipeline are points of the plane."""
    return pipeline.network.config.sample_size == SHAPE[-1]


def picture(points: Tensor) -> Tensor:
    """uint8 (N, 2, 1, 1) -> uint8 (1, 512, 512): black dots on white, (-1, -1) at the lower left."""
    x, y = points.flatten(1).long().cpu().unbind(1)
    cells = torch.zeros(1, 256, 256)
    cells[0, 255 - y, x] = 1
    cells = cells.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)
    dots = F.max_pool2d(cells, DOT, stride=1, padding=DOT // 2)
    return (255 * (1 - dots)).to(torch.uint8)
