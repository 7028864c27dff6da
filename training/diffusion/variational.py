"""The variational bound of a diffusion model whose gamma is learned, term by term, in bits per dimension.

Kingma et al. 2021 (arXiv 2107.00630), equation 11: -log p(x) <= prior + reconstruction + diffusion, per
example the three functions below. gamma = -log SNR is float64 throughout, images and noise are float32.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.pipelines.networks.vdm_model import Gamma, exact
from trilemma.training.diffusion.losses import mean_per_example

LEVELS = 256
FAR = 16.0
"""A value this many standard deviations off has a share below 1e-20 of the true one's, for noise up to 5."""


def prior_bpd(x0: Tensor, gamma_1: Tensor) -> Tensor:
    """KL(q(z_1 | x0) || N(0, I)), float64 (B,); x0 (B, C, H, W) in [-1, 1], gamma_1 () at time 1."""
    variance, log_variance = gamma_1.sigmoid(), F.logsigmoid(gamma_1)
    mean_square = mean_per_example(exact(x0).square()) * gamma_1.neg().sigmoid()
    return 0.5 * (mean_square + variance - 1 - log_variance) / math.log(2)


class Reach:
    """How many values off the decoder of a training looks, read without a wait for the GPU.

    A GPU copies its answer aside while the training goes on, so it is of one of the last steps: gamma moves
    little in a step, and FAR is generous. Elsewhere, reading costs nothing.
    """

    def __init__(self):
        self.copied: Tensor | None = None

    def __call__(self, gamma_0: Tensor) -> int:
        """The reach for gamma_0 (), in 0..LEVELS - 1."""
        answer = reach(gamma_0)
        if gamma_0.device.type != "cuda":
            return int(answer)
        if self.copied is None:
            self.copied = torch.full((), int(answer), pin_memory=torch.cuda.is_available())
        latest = int(self.copied)
        self.copied.copy_(answer, non_blocking=True)
        return latest


def reach(gamma_0: Tensor) -> Tensor:
    """How many values off one is FAR, int64 () in 0..LEVELS - 1; gamma_0 () at time 0.

    If gamma has diverged to NaN it is 0 and the loss NaN, which the training loop reports better than an
    error here.
    """
    unit = gamma_0.detach().mul(-0.5).exp() / 127.5
    return (FAR / unit).nan_to_num(posinf=LEVELS).clamp(max=LEVELS - 1).ceil().long()


def reconstruction_bpd(x0: Tensor, noise: Tensor, gamma_0: Tensor, far: int | None = None) -> Tensor:
    """-log p(x0 | z_0) for z_0 = alpha_0 x0 + sigma_0 noise, (B,) float32; gamma_0 () at time 0.

    The decoder gives each of the 256 values v what q(z_0 | v) gives, normalised over v (equation 9). Of the
    value j levels off, r = j SNR^(1/2) / 127.5 standard deviations, it is exp(r noise - r^2 / 2) relative to
    the true one's: no difference of large numbers is left, and what is too far off need not be looked at.
    far: the levels to look at on either side, those of `reach` if not given.
    """
    unit = gamma_0.mul(-0.5).exp() / 127.5
    far = int(reach(gamma_0)) if far is None else far
    off = torch.arange(-far, far + 1, device=x0.device)
    value = ((x0 + 1) * 127.5).round().unsqueeze(-1) + off
    r = unit.float().to(x0.device) * off
    log_ratio = r * noise.unsqueeze(-1) - 0.5 * r.square()
    log_ratio = log_ratio.masked_fill((value < 0) | (value >= LEVELS), -torch.inf)
    return mean_per_example(torch.logsumexp(log_ratio, dim=-1)) / math.log(2)


def diffusion_bpd(noise: Tensor, eps_hat: Tensor, weight: Tensor) -> Tensor:
    """One time's share of the diffusion loss, whose mean over times is the loss, (B,) float32.

    weight (B,): of `levels_at`.
    """
    return 0.5 * weight.float().to(noise.device) * mean_per_example((noise - eps_hat).square()) / math.log(2)


class Levels(NamedTuple):
    """Noise levels at B times: gamma (B,), the weight (B,) of the squared error there, float64, and what of
    the two comes from the shape of gamma between its ends (in continuous time alone).
    """

    gamma: Tensor
    weight: Tensor
    of_shape: tuple[Tensor, ...] = ()


def levels_at(schedule: Gamma, time: Tensor, steps: int | None) -> Levels:
    """The levels at `time` (B,) float64 in [0, 1), each time standing for all that the loss is a mean over.

    Without steps it is the time itself, and the weight d gamma / d time (equation 17). With T steps it is the
    step from t / T to (t - 1) / T in which the time lies, and the weight T (SNR(t - 1) / SNR(t) - 1), which
    is equation 14's for an error of the noise.
    """
    if steps:
        t = (time * steps).floor() + 1
        below, gamma = schedule(torch.cat([t - 1, t]) / steps).chunk(2)
        return Levels(gamma, steps * torch.expm1(gamma - below))
    start, end = schedule.ends()
    shape, slope = schedule.shape(time)
    return Levels(start + (end - start) * shape, (end - start) * slope, (shape, slope))
