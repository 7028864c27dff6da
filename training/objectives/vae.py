"""The variational autoencoder: minus the evidence lower bound, in bits per dimension.

Kingma & Welling 2014 (arXiv 1312.6114), equation 3: KL(q(z | x) || N(0, I)) in closed form and -log p(x | z)
of the 8-bit pixels at one z ~ q(z | x). `--beta` weighs the first (Higgins et al. 2017, beta-VAE), and
`--free_bits` spares it the first nats of each latent dimension (Kingma et al. 2016, arXiv 1606.04934). What
is logged as `bpd` and its terms is the bound itself, whatever these two make of the loss.
"""

import math
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from trilemma.pipelines.networks.vae_model import VAEModel
from trilemma.pipelines.vae import VAEPipeline
from trilemma.training.devices.compiled import compiled_forward
from trilemma.training.diffusion.losses import gaussian_kl
from trilemma.training.families.vae import VAEConfig
from trilemma.training.loop.method import Logs, Objective

Coder = Callable[[Tensor], tuple[Tensor, Tensor]]


def discretised_logistic_nll(x0: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """-log of the logistic law's mass on x0's 8-bit bin, elementwise, in nats; all float32.

    x0 in [-1, 1] on the grid -1 + k / 127.5; the two end bins reach to infinity. Salimans et al. 2017 (arXiv
    1701.05517), equation 2. A bin from a to b, in units of the scale, has the mass

        s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)),  s the logistic function,

    of which each factor's logarithm keeps its digits however far off or thin the bin is. Edges are taken in
    levels, k +- 1/2, so that neighbours share theirs to the bit.
    """
    level, centre = ((x0 + 1) * 127.5).round(), (location + 1) * 127.5
    per_level = torch.exp(-log_scale) / 127.5
    upper, lower = (level + 0.5 - centre) * per_level, (level - 0.5 - centre) * per_level
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below + above + torch.log(-torch.expm1(-per_level))
    return -torch.where(level == 0, below, torch.where(level == 255, above, inside))


def bound(encode: Coder, decode: Coder, x0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of minus the bound, in nats: KL of each latent dimension (B, D), and reconstruction (B,).

    encode, decode: those of `VAEModel`; x0 (B, C, H, W) in [-1, 1]; noise (B, D) standard normal.
    """
    mean, log_variance = encode(x0)
    zero = torch.zeros_like(mean)
    location, log_scale = decode(mean + torch.exp(0.5 * log_variance) * noise)
    reconstruction = discretised_logistic_nll(x0, location, log_scale).flatten(1).sum(1)
    return gaussian_kl(mean, log_variance, zero, zero), reconstruction


def nats_per_bit_per_dim(x0: Tensor) -> float:
    """What a sum of nats over an image of x0 (B, C, H, W) is divided by to give bits per dimension."""
    return x0[0].numel() * math.log(2)


def spare(kl: Tensor, free_nats: float) -> Tensor:
    """kl (B, D), where free_nats replaces each dimension whose mean over the batch is below it.

    So its mean over the batch is max(free_nats, mean KL) of each dimension, as in Kingma et al. 2016, and a
    dimension below gets no gradient from it. The batch is a process's own micro-batch.
    """
    return torch.where(kl.mean(0) > free_nats, kl, free_nats)


class VAE(Objective):
    """The loss of one z for each image."""

    passes = ("encode", "decode")

    def __init__(self, net: VAEModel, config: VAEConfig):
        super().__init__()
        self.net, self.encode, self.decode = net, net.encode, net.decode
        self.beta, self.free_nats = config.beta, config.free_bits

    def forward(
        self, x0: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Logs]:
        """Losses (B,) for x0 (B, C, H, W) in [-1, 1]; logs the bound and its two terms. No use for labels."""
        where = x0.device if generator is None else generator.device
        shape = len(x0), self.net.config.latent_dim
        noise = torch.randn(shape, generator=generator, device=where).to(x0.device)
        kl, reconstruction = bound(self.encode, self.decode, x0, noise)
        unit = nats_per_bit_per_dim(x0)
        losses = (reconstruction + self.beta * spare(kl, self.free_nats).sum(1)) / unit
        prior, reconstruction = kl.detach().sum(1) / unit, reconstruction.detach() / unit
        logs = {"bpd": prior + reconstruction, "prior_bpd": prior, "reconstruction_bpd": reconstruction}
        return losses, logs

    def pipeline(self, net: VAEModel) -> DiffusionPipeline:
        """A pipeline that decodes z ~ N(0, I)."""
        return VAEPipeline(net)

    def compile(self, required: bool = True) -> None:
        """Compile the two halves' forward passes: `net` stays as it is for sampling and saving."""
        self.encode = compiled_forward(self.net.encode, required)
        self.decode = compiled_forward(self.net.decode, required)
