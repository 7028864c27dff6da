"""The bound of a variational diffusion model, with the terms that it is trained on.

Of a model trained in continuous time it is the bound of infinitely many steps, an integral over time; of one
trained in T steps the bound of those, a sum. Either is estimated from times evenly spread over each image's
own interval (systematic sampling), without bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from trilemma.eval.bounds.noise import normal
from trilemma.pipelines.networks.vdm_model import exact
from trilemma.pipelines.shared import exact_device
from trilemma.pipelines.vdm import alpha_sigma
from trilemma.training.diffusion.variational import diffusion_bpd, levels_at, prior_bpd, reconstruction_bpd

CONTINUOUS_TIMES = 128
"""Times of each image by default."""


@dataclass(frozen=True, eq=False)
class VDMTerms:
    """See the top of this file and `bits_per_dim`; `steps` is T, or None for continuous time."""

    net: ModelMixin
    steps: int | None
    timesteps: int
    batch_size: int
    names = ("prior", "diffusion", "reconstruction")

    @property
    def images_at_once(self) -> int:
        """As many as one forward of the network holds, and at least one, which may take several."""
        return max(1, self.batch_size // self.timesteps)

    @torch.no_grad()
    def __call__(
        self, x0: Tensor, labels: Tensor | None, generators: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """name -> (B,) float64 bits per dimension; each image is noised to `timesteps` times, and to 0."""
        conditional = self.net.config.num_class_embeds is not None
        time = torch.from_numpy(np.concatenate([self._times(generator) for generator in generators]))
        image = np.repeat(np.arange(len(x0)), self.timesteps)
        terms = []
        for start in range(0, len(time), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            noise = normal([generators[i] for i in image[chunk]], x0.shape[1:], x0.device)
            at = torch.from_numpy(image[chunk]).to(x0.device)
            own_time = time[chunk].to(exact_device(x0.device))
            terms.append(self._term(x0[at], labels[at] if conditional else None, own_time, noise))
        gamma_0, gamma_1 = self.net.gamma.ends()
        noise = normal(generators, x0.shape[1:], x0.device)
        return {
            "prior": prior_bpd(x0, gamma_1),
            "diffusion": exact(torch.cat(terms)).view(len(x0), -1).mean(1),
            "reconstruction": exact(reconstruction_bpd(x0, noise, gamma_0)),
        }

    def _times(self, generator: np.random.Generator) -> np.ndarray:
        """K times in [0, 1), float64 (K,), one of each K-th part, at the same random place in all of them.

        With T steps these are the middles of steps; each step turns up equally often, and once if K is T.
        """
        k = np.arange(self.timesteps)
        if self.steps is None:
            return (k + generator.random()) / self.timesteps
        return ((k * self.steps + generator.integers(self.steps)) // self.timesteps + 0.5) / self.steps

    def _term(self, x0: Tensor, labels: Tensor | None, time: Tensor, noise: Tensor) -> Tensor:
        """The diffusion loss of each row at its time, (B,)."""
        levels = levels_at(self.net.gamma, time, self.steps)
        alpha, sigma = alpha_sigma(levels.gamma, x0)
        eps_hat = self.net(alpha * x0 + sigma * noise, levels.gamma, labels)
        return diffusion_bpd(noise, eps_hat, levels.weight)


def terms(pipeline: DiffusionPipeline, timesteps: int | None, batch_size: int) -> VDMTerms:
    """The terms of a pipeline, as its configuration says; timesteps: times of each image, by default 128, or
    all T of a bound in T steps.
    """
    steps = pipeline.config.timesteps
    if timesteps is not None and not 1 <= timesteps <= (steps or timesteps):
        raise ValueError(f"--bpd_timesteps must be in 1..{steps or ''}, or None; got {timesteps}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    return VDMTerms(pipeline.unet, steps, timesteps or steps or CONTINUOUS_TIMES, batch_size)
