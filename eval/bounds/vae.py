"""The bound of a variational autoencoder: that of training, at one code an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from trilemma.eval.bounds.noise import normal
from trilemma.pipelines.networks.vdm_model import exact
from trilemma.training.objectives.vae import bound, nats_per_bit_per_dim


@dataclass(frozen=True, eq=False)
class VAETerms:
    """See the top of this file and `bits_per_dim`."""

    vae: ModelMixin
    images_at_once: int
    names = ("prior", "reconstruction")

    @torch.no_grad()
    def __call__(
        self, x0: Tensor, labels: Tensor | None, generators: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """name -> (B,) float64 bits per dimension; labels are ignored."""
        noise = normal(generators, (self.vae.config.latent_dim,), x0.device)
        kl, reconstruction = bound(self.vae.encode, self.vae.decode, x0, noise)
        unit = nats_per_bit_per_dim(x0)
        return {"prior": exact(kl).sum(1) / unit, "reconstruction": exact(reconstruction) / unit}


def terms(pipeline: DiffusionPipeline, timesteps: int | None, batch_size: int) -> VAETerms:
    """The terms of a pipeline's network; it has no time steps."""
    if timesteps is not None:
        raise ValueError(f"--bpd_timesteps is for diffusion models; a VAE has none; got {timesteps}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    return VAETerms(pipeline.vae, batch_size)
