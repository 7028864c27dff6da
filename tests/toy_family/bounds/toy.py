"""The likelihood of the toy family, exact."""

from dataclasses import dataclass

import torch

from trilemma.training.objectives.vae import discretised_logistic_nll, nats_per_bit_per_dim


@dataclass(frozen=True, eq=False)
class ToyTerms:
    """One term, of a name that no other family has."""

    net: torch.nn.Module
    images_at_once: int
    names = ("pixels",)

    @torch.no_grad()
    def __call__(self, x0, labels, generators):
        """Bits per dimension of x0 (B, C, H, W), (B,) float64."""
        nats = discretised_logistic_nll(x0, *self.net(x0)).double().flatten(1).sum(1)
        return {"pixels": nats / nats_per_bit_per_dim(x0)}


def terms(pipeline, timesteps, batch_size):
    """Those of the pipeline's network."""
    return ToyTerms(pipeline.net, batch_size)
