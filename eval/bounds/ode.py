"""Bits per dimension by the probability-flow ordinary differential equation, for any model with a velocity.

Chen et al. 2018 (arXiv 1806.07366), equation 8, and Song et al. 2021 (arXiv 2011.13456), section 4.3: along
d x / d s = v(x, s) from an image at s = 0 to noise at s = 1,

    log p(x_0) = log N(x_1; 0, I) + integral over s of div v(x_s, s).

    latent   -log N(x_1; 0, I)
    volume   minus the integral; the divergence is e^T (dv/dx) e for one e of random signs for each image and
             step (Hutchinson's estimator: without bias)
    bins     the density of an image is per unit of [-1, 1], its probability is that of a bin of 8 bits

An image is moved to a uniform place in its bin (uniform dequantisation): by Jensen's inequality the mean of
-log p(x_0 + u) bounds -log of the bin's mass from above. So noise and signs make an error that the interval
has, and the steps of the solver one that it has not: docs/flow.md shows how large it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trilemma.pipelines.networks.vdm_model import exact

BIN = 1 / 127.5
"""The width of a bin of 8 bits in [-1, 1]."""

STEPS = 32
"""Of the solver, each of four calls of the network."""

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x (B, C, H, W), s (), labels (B,) or None) -> d x / d s (B, C, H, W), differentiable in x."""


class Path(NamedTuple):
    """A flow from images at s = `start` to noise at s = `end`, within 0..1: x_s = (1 - s) x_0 + s noise.

    Where `end` is not 1, what is left of the image there is taken for noise.
    """

    velocity: Velocity
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, eq=False)
class ODETerms:
    """See the top of this file and `bits_per_dim`."""

    path: Path
    steps: int
    images_at_once: int
    names = ("latent", "volume", "bins")

    def __call__(
        self, x0: Tensor, labels: Tensor | None, generators: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """name -> (B,) float64 bits per dimension, of each image at one place in its bins."""
        shape = x0.shape[1:]
        place = np.stack([generator.random(tuple(shape), dtype=np.float32) for generator in generators])
        x = x0 + (torch.from_numpy(place).to(x0) - 0.5) * BIN
        volume = torch.zeros_like(exact(x[:, 0, 0, 0]))
        for k in range(self.steps):
            signs = np.stack([generator.integers(2, size=tuple(shape)) for generator in generators])
            signs = torch.from_numpy(signs).to(x0) * 2 - 1
            x, change = self._step(x, labels, signs, *self._ends(k))
            volume += change
        unit = math.log(2) * math.prod(shape)
        variance = (1 - self.path.end) ** 2 + self.path.end**2
        latent = 0.5 * (exact(x).square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)
        bins = torch.full_like(latent, -math.log2(BIN))
        return {"latent": latent / unit, "volume": -volume / unit, "bins": bins}

    def _ends(self, k: int) -> tuple[float, float]:
        """Step k begins and ends here: close together near the image, where the velocity changes fastest."""
        start, length = self.path.start, self.path.end - self.path.start
        return start + length * (k / self.steps) ** 2, start + length * ((k + 1) / self.steps) ** 2

    def _step(
        self, x: Tensor, labels: Tensor | None, signs: Tensor, s: float, end: float
    ) -> tuple[Tensor, Tensor]:
        """A step of the classical Runge-Kutta rule for x and for the integral of the divergence (B,)."""
        width = end - s
        velocities, divergences = zip(*self._stages(x, labels, signs, s, width), strict=True)
        weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
        move = sum(weight * value for weight, value in zip(weights, velocities, strict=True))
        change = sum(weight * value for weight, value in zip(weights, divergences, strict=True))
        return x + width * move, width * change

    def _stages(
        self, x: Tensor, labels: Tensor | None, signs: Tensor, s: float, width: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        velocity = torch.zeros_like(x)
        for part in (0, 0.5, 0.5, 1):
            velocity, divergence = self._both(x + part * width * velocity, s + part * width, labels, signs)
            yield velocity, divergence

    def _both(self, x: Tensor, s: float, labels: Tensor | None, signs: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity and the estimate of its divergence, (B,) float64."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            velocity = self.path.velocity(x, torch.tensor(s, dtype=torch.float64), labels)
            (gradient,) = torch.autograd.grad((velocity * signs).sum(), x)
        return velocity.detach(), exact(gradient * signs).flatten(1).sum(1)


def ode_terms(path: Path, timesteps: int | None, batch_size: int) -> ODETerms:
    """The terms of a path; timesteps: of the solver, 32 by default."""
    if timesteps is not None and timesteps < 1:
        raise ValueError(f"--bpd_timesteps must be at least 1, or None; got {timesteps}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    return ODETerms(path, timesteps or STEPS, batch_size)
