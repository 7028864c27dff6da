"""The bound of a discrete-time diffusion model, for every family that denoises with a `DDPMScheduler`.

Ho et al. 2020 (arXiv 2006.11239), equation 5, with L_T, L_1..L_{T-1} and L_0 under the names

    prior           KL(q(x_T | x_0) || N(0, I)), in closed form
    diffusion       sum over t = 2..T of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), one x_t for each t
    reconstruction  -log p(x_0 | x_1), a Gaussian's mass on the 8-bit bins (equation 13)

It is the bound of the chain that a DDPMScheduler samples: the predicted x_0 is clipped before it enters the
mean if the scheduler clips, and the variance is the scheduler's. The last step of sampling adds no noise, so
the variance at t = 1 is a choice; it is the one of Ho et al.'s and Nichol & Dhariwal's code, on which the
published numbers rest (see `VARIANCES`). The schedule is rebuilt in float64 from the scheduler's
configuration: its own `alphas_cumprod` is float32, which is too coarse where 1 - abar is small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import Tensor

from trilemma.eval.bounds.noise import normal
from trilemma.eval.bounds.ode import Path
from trilemma.pipelines.networks.vdm_model import exact
from trilemma.training.diffusion.losses import (
    learned_log_variance,
    log_variance_range,
    prior_bpd,
    vlb_term_bpd,
)
from trilemma.training.diffusion.process import (
    SCHEDULES,
    TARGETS,
    GaussianProcess,
    NoiseSchedule,
    Target,
    beside,
)


def process_of(scheduler: SchedulerMixin) -> GaussianProcess:
    """The noising process that a diffusers scheduler was configured with, in float64."""
    config = scheduler.config
    steps, name = config.num_train_timesteps, config.beta_schedule
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("the scheduler has rescale_betas_zero_snr=True: at T no bound is finite for epsilon")
    if config.trained_betas is not None:
        betas = torch.from_numpy(np.array(config.trained_betas, dtype=np.float64))
        if len(betas) != steps:
            raise ValueError(f"the scheduler has {len(betas)} trained_betas and num_train_timesteps={steps}")
        return GaussianProcess(torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)]))
    if name not in SCHEDULES:
        raise ValueError(f"the scheduler's beta_schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    return NoiseSchedule(name, steps, config.beta_start, config.beta_end).process()


def _fixed_small(output: Tensor, process: GaussianProcess, t: Tensor) -> Tensor:
    return beside(log_variance_range(process, t)[0], output)


def _fixed_large(output: Tensor, process: GaussianProcess, t: Tensor) -> Tensor:
    low, high = log_variance_range(process, t)
    return beside(torch.where(t.to(low.device) == 1, low, high), output)


VARIANCES: dict[str, Callable[[Tensor, GaussianProcess, Tensor], Tensor]] = {
    "fixed_small": _fixed_small,
    "fixed_large": _fixed_large,
    "learned_range": learned_log_variance,
}
"""diffusers' names -> log variance of p(x_{t-1} | x_t), broadcasting over (B, C, H, W), from (the network's
output beyond the mean, process, t).

At t = 1 the posterior has no variance. That of t = 2 stands in for it, in both fixed rows ("to get a better
decoder log likelihood", as the code of both papers says) and as the lower end of the learned range, whose
upper end is beta_1.
"""


@dataclass(frozen=True, eq=False)
class GaussianTerms:
    """The bound of a network that denoises; see the top of this file and `bits_per_dim`."""

    net: ModelMixin
    process: GaussianProcess
    target: Target
    log_variance: Callable[[Tensor, GaussianProcess, Tensor], Tensor]
    clip: float  # the predicted x_0 is clipped to [-clip, clip]
    conditional: bool  # the network takes labels
    timesteps: int
    batch_size: int
    names = ("prior", "diffusion", "reconstruction")

    @property
    def images_at_once(self) -> int:
        """As many as one forward of the network holds, and at least one, which may take several."""
        return max(1, self.batch_size // (1 + self.timesteps))

    @torch.no_grad()
    def __call__(
        self, x0: Tensor, labels: Tensor | None, generators: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """name -> (B,) float64 bits per dimension; each image is noised to t = 1 and `timesteps` others."""
        t = np.stack([self._times(generator) for generator in generators])
        image, t = np.repeat(np.arange(len(x0)), t.shape[1]), t.flatten()
        terms = []
        for start in range(0, len(t), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            noise = normal([generators[i] for i in image[chunk]], x0.shape[1:], x0.device)
            at = torch.from_numpy(image[chunk]).to(x0.device)
            own_labels = labels[at] if self.conditional else None
            terms.append(self._term(x0[at], own_labels, torch.from_numpy(t[chunk]).to(x0.device), noise))
        terms = exact(torch.cat(terms)).view(len(x0), -1)
        return {
            "prior": prior_bpd(self.process, x0),
            "diffusion": terms[:, 1:].mean(1) * (self.process.steps - 1),
            "reconstruction": terms[:, 0],
        }

    def _times(self, generator: np.random.Generator) -> np.ndarray:
        """t = 1, then K of 2..T, evenly spread from a random start (systematic sampling): int64 (K + 1,).

        Over the T - 1 starts every t turns up equally often. With K = T - 1 every start gives 2..T.
        """
        terms, k = self.process.steps - 1, np.arange(self.timesteps)
        return np.append(1, 2 + (k * terms + generator.integers(terms)) // self.timesteps)

    def _term(self, x0: Tensor, labels: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        """The term at step t of each row, (B,); the network's dtype and outputs are as in the pipelines."""
        x_t = self.process.diffuse(x0, t, noise)
        condition = () if labels is None else (labels,)
        output = self.net(x_t.to(self.net.dtype), t - 1, *condition).sample.float()
        prediction, rest = output[:, : x0.shape[1]], output[:, x0.shape[1] :]
        alpha, sigma = self.process.signal_and_noise(t, x0)
        x0_hat = self.target.to_x0(prediction, x_t, alpha, sigma).clamp(-self.clip, self.clip)
        return vlb_term_bpd(self.process, x0, x_t, t, x0_hat, self.log_variance(rest, self.process, t))


def gaussian_terms(pipeline: DiffusionPipeline, timesteps: int | None, batch_size: int) -> GaussianTerms:
    """The terms of a pipeline of `unet` and `scheduler`, as the configurations of both say."""
    config, net = pipeline.scheduler.config, pipeline.unet
    process = process_of(pipeline.scheduler).to(pipeline.device)
    variance, possible = config.get("variance_type"), process.steps - 1
    if variance not in VARIANCES:
        raise ValueError(
            f"the scheduler's variance_type must be one of {', '.join(VARIANCES)}; got {variance!r}. "
            "Give the pipeline the DDPMScheduler that it was trained with"
        )
    outputs, needed = net.config.out_channels, 2 * net.config.in_channels
    if variance == "learned_range" and outputs != needed:
        raise ValueError(f"a network of learned_range variance must have {needed} outputs; got {outputs}")
    if config.get("thresholding"):
        raise ValueError(
            "the scheduler has thresholding=True; bits per dimension are implemented for clip_sample only"
        )
    if timesteps is not None and not 1 <= timesteps <= possible:
        raise ValueError(f"--bpd_timesteps must be in 1..{possible}, or None for all; got {timesteps}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    return GaussianTerms(
        net=net,
        process=process,
        target=TARGETS[config.prediction_type],
        log_variance=VARIANCES[variance],
        clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample") else float("inf"),
        conditional=net.config.get("num_class_embeds") is not None,
        timesteps=timesteps or possible,
        batch_size=batch_size,
    )


def gaussian_path(pipeline: DiffusionPipeline) -> Path:
    """The probability flow of a pipeline whose scheduler is a `DDPMScheduler` or was made from one.

    Song et al. 2021 (arXiv 2011.13456), equation 13. With x_t = alpha x_0 + sigma noise and alpha^2 + sigma^2
    = 1, the state x_t / (alpha + sigma) is (1 - s) x_0 + s noise for s = sigma / (alpha + sigma), and moves
    with velocity noise_hat - x0_hat. Between the T noise levels the network gets times in between. x0_hat is
    not clipped here, so this is not quite the law of samples.
    """
    net, config = pipeline.network, pipeline.scheduler.config
    abar, target = process_of(pipeline.scheduler).abar[1:], TARGETS[config.prediction_type]
    noise_over_signal = ((1 - abar) / abar).sqrt()
    levels = (noise_over_signal / (1 + noise_over_signal)).numpy()
    conditional = net.config.get("num_class_embeds") is not None

    def velocity(y: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        size = ((1 - s).square() + s.square()).sqrt()
        alpha, sigma = (float(part / size) for part in (1 - s, s))
        step = torch.tensor(np.interp(float(s), levels, np.arange(len(levels))), dtype=torch.float32)
        x_t = y / float(size)
        condition = (labels,) if conditional else ()
        output = net(x_t.to(net.dtype), step.to(y.device), *condition).sample.float()[:, : y.shape[1]]
        x0_hat = target.to_x0(output, x_t, alpha, sigma)
        return (x_t - alpha * x0_hat) / sigma - x0_hat

    return Path(velocity, float(levels[0]), float(levels[-1]))
