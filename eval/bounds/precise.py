"""The bound of a variational diffusion model in continuous time to a few thousandths of a bit.

Most of the error of the diffusion term comes from |noise|^2, where the network cannot tell noise from data.
Its mean is known, so regression takes it out (a control variate), at each time over all images: the error
falls to a fraction of that of `vdm.py`, where no image may depend on the others. For small models.
"""

import math

import torch
from diffusers import ModelMixin
from torch import Tensor

from trilemma.pipelines.vdm import alpha_sigma
from trilemma.training.diffusion.variational import diffusion_bpd, levels_at, prior_bpd, reconstruction_bpd

STARTS = 40
"""Draws of z_0 for the reconstruction of each image."""


@torch.no_grad()
def precise_bpd(net: ModelMixin, x0: Tensor, *, times: int, seed: int = 0) -> tuple[float, float]:
    """Mean bits per dimension of x0 (N, C, H, W) in [-1, 1] on the 8-bit grid, and the standard error of its
    Monte Carlo, without that of choosing these images. `net` is a `VDMModel` without classes.
    """
    generator = torch.Generator().manual_seed(seed)
    start, end = net.gamma.ends()
    value, variance = float(prior_bpd(x0, end).mean()), 0.0
    for k in range(times):
        time = torch.full((len(x0),), (k + 0.5) / times, dtype=torch.float64)
        levels = levels_at(net.gamma, time, None)
        alpha, sigma = alpha_sigma(levels.gamma, x0)
        noise = torch.randn(x0.shape, generator=generator)
        eps_hat = net(alpha * x0 + sigma * noise, levels.gamma)
        terms = diffusion_bpd(noise, eps_hat, levels.weight).double()
        excess = diffusion_bpd(noise, torch.zeros_like(noise), levels.weight) - levels.weight / math.log(4)
        terms = terms - torch.cov(torch.stack([terms, excess]))[0, 1] / excess.var() * excess
        value += float(terms.mean()) / times
        variance += float(terms.var()) / len(x0) / times**2
    draws = [reconstruction_bpd(x0, torch.randn(x0.shape, generator=generator), start) for _ in range(STARTS)]
    first = torch.stack(draws).double()
    return value + float(first.mean()), (variance + float(first.var(0).mean()) / first.numel()) ** 0.5
