"""The few large steps of the denoising-diffusion GAN: the process, and pairs (x_{t-1}, x_t) of both kinds.

Xiao, Kreis & Vahdat 2022 (arXiv 2112.07804), section 3 and algorithm 1.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from trilemma.pipelines.ddgan import condition, latent_width
from trilemma.training.diffusion.process import GaussianProcess, beside, normal_like

FIRST_TIME = 1e-3
"""Where their continuous time begins; x_0 is said to be the image at this time."""


def vp_process(steps: int, beta_min: float, beta_max: float) -> GaussianProcess:
    """The variance-preserving process of Song et al. 2021 (arXiv 2011.13456, equation 33) at T + 1 times.

    abar(time) = exp(-(beta_max - beta_min) time^2 / 2 - beta_min time), as the paper's code takes it: from
    `FIRST_TIME` to 1, and relative to the first, so that abar_0 = 1.
    """
    time = torch.linspace(FIRST_TIME, 1, steps + 1, dtype=torch.float64)
    log_abar = -(beta_max - beta_min) * time.square() / 2 - beta_min * time
    return GaussianProcess((log_abar - log_abar[0]).exp())


def few_step_scheduler(process: GaussianProcess) -> DDPMScheduler:
    """The stock scheduler whose step draws from q(x_{t-1} | x_t, x0_hat)."""
    betas = process.beta(torch.arange(1, process.steps + 1))
    return DDPMScheduler(
        num_train_timesteps=process.steps,
        trained_betas=betas.tolist(),
        prediction_type="sample",
        variance_type="fixed_small",
        clip_sample=False,
    )


def latent_row(row: dict[str, Any]) -> dict[str, Any]:
    """A network's configuration, changed so that a vector (z and the class) scales and shifts every norm."""
    scaled = {"class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift"}
    # Without its own groups, scale_shift drops the norm of the middle attention.
    return {**row, **scaled, "attn_norm_num_groups": row.get("norm_num_groups", 32)}


class Pairs:
    """Where x_{t-1} and x_t come from, for real and for generated images."""

    def __init__(self, net: UNet2DModel, process: GaussianProcess, num_classes: int):
        self.process, self.num_classes = process, num_classes
        self.denoise, self.width = net.forward, latent_width(net)
        if num_classes >= self.width:
            raise ValueError(
                f"--class_conditional: {num_classes} classes leave no room for z in the {self.width} numbers "
                "that this --net takes beside x_t; take one with a wider first block"
            )

    def times(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """t uniform in 1..T, one for each of x0 (B, ...)."""
        where = x0.device if generator is None else generator.device
        t = torch.randint(self.process.steps, (len(x0),), generator=generator, device=where)
        return t.to(x0.device) + 1

    def real(self, x0: Tensor, t: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x_{t-1} ~ q(. | x_0) and x_t ~ q(. | x_{t-1}), float32; x_0 itself at t = 1."""
        before = self.process.diffuse(x0, t - 1, normal_like(x0, generator))
        beta = self.process.beta(t)
        noise = normal_like(x0, generator)
        return before, beside((1 - beta).sqrt(), x0) * before + beside(beta.sqrt(), x0) * noise

    def generated(
        self, x_t: Tensor, t: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x0_hat in [-1, 1] and x_{t-1} ~ q(. | x_t, x0_hat), float32; x0_hat itself at t = 1."""
        z = normal_like(x_t.new_empty(len(x_t), self.width - self.num_classes), generator)
        vector = condition(z, labels, self.num_classes)
        x0_hat = self.denoise(x_t, t - 1, vector).sample.float().tanh()
        mean, variance = self.process.posterior(x0_hat, x_t, t)
        noise = normal_like(x_t, generator)
        return x0_hat, mean + beside(variance.sqrt(), mean) * noise
