"""Denoising diffusion: draw t, add noise, predict a target, compare.

Ho et al. 2020 (arXiv 2006.11239), algorithm 1; learned variance and the variational bound from Nichol &
Dhariwal 2021 (arXiv 2102.09672). Which target, loss and weighting is read once here from the configuration.
"""

import logging
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor, nn

from trilemma.pipelines.samplers import KNOWN_TO_ALL
from trilemma.training.devices.compiled import compiled_forward
from trilemma.training.diffusion.label_dropout import LabelDropout
from trilemma.training.diffusion.losses import (
    LOSSES,
    UNWEIGHTED,
    Weighting,
    learned_log_variance,
    min_snr,
    p2,
    prior_bpd,
    vlb_term_bpd,
)
from trilemma.training.diffusion.process import TARGETS, NoiseSchedule, noise_schedule, normal_like
from trilemma.training.diffusion.times import ImportanceTimes, UniformTimes
from trilemma.training.loop.method import Logs, Objective
from trilemma.training.options.ddpm import DDPMConfig, ProcessConfig

logger = logging.getLogger(__name__)

QUARTILES = 4


class DDPM(Objective):
    """The loss of one noise level per image; `net(x_t, t - 1, class_labels)` as UNet2DModel takes them.

    condition: how labels (B,) become the network's class labels, or None for a network that takes none.
    make_pipeline: (net, scheduler) -> the pipeline that samples from it.
    """

    passes = ("denoise",)

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        config: DDPMConfig,
        make_pipeline: Callable[[nn.Module, DDPMScheduler], DiffusionPipeline],
        condition: LabelDropout | None = None,
    ):
        super().__init__()
        self.net, self.denoise, self.process = net, net.forward, schedule.process()
        self.target, self.loss, self.delta = (
            TARGETS[config.prediction_type],
            LOSSES[config.loss_type],
            config.huber_delta,
        )
        self.weighting = weighting(config)
        self.times = ImportanceTimes(schedule.steps) if self.loss.importance else UniformTimes(schedule.steps)
        self.condition, self.make_pipeline = condition, make_pipeline
        self.num_classes = condition.num_classes if condition else None
        self.scheduler = ddpm_scheduler(schedule, config)

    def forward(
        self, x0: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Logs]:
        """Losses (B,) for x0 (B, C, H, W) in [-1, 1]; logs the loss by quartile of t."""
        t, importance = self.times.sample(len(x0), x0.device, generator)
        noise = normal_like(x0, generator)
        x_t = self.process.diffuse(x0, t, noise)
        class_labels = self.condition(labels) if self.condition else None
        # float(): under autocast the network answers in half precision, losses are always float32.
        output = self.denoise(x_t, t - 1, class_labels).sample.float()

        logs: Logs = {}
        losses = torch.zeros(len(x0), device=x0.device)
        alpha, sigma = self.process.signal_and_noise(t, x0)
        prediction, variance = output[:, : x0.shape[1]], output[:, x0.shape[1] :]
        if self.loss.simple:
            weight = self.weighting(self.process.snr(t), self.target.error_scale).to(x0.device)
            losses = weight * self.loss.simple(
                prediction, self.target.encode(x0, noise, alpha, sigma), self.delta
            )
        if self.loss.vlb_weight:
            # The simple loss trains the mean; without one, the bound trains mean and variance.
            mean_output = prediction.detach() if self.loss.simple else prediction
            x0_hat = self.target.to_x0(mean_output, x_t, alpha, sigma)
            log_variance = learned_log_variance(variance, self.process, t)
            term = self.process.steps * vlb_term_bpd(self.process, x0, x_t, t, x0_hat, log_variance)
            self.times.observe(t, term.detach())
            losses = losses + self.loss.vlb_weight * importance * term
            logs["bpd"] = importance * term.detach() + prior_bpd(self.process, x0).float().to(x0.device)
            if not self.training:
                logs["bpd"] = self.precise_bpd(x0, class_labels, generator)
        return losses, logs | by_quartile(losses.detach(), t, self.process.steps)

    def precise_bpd(
        self, x0: Tensor, class_labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """The bound (B,) of x0 (B, C, H, W), with x0_hat clipped as in sampling, of a model with a learned
        variance.

        Of all T terms the one at t = 1 is by far the largest: it is always computed, and one random other
        term estimates the rest. With one t per image, as in training, it would be missing for most images and
        count T times for the others.
        """
        rest = self.process.steps - 1
        others, _ = UniformTimes(rest).sample(len(x0), x0.device, generator)
        bound = prior_bpd(self.process, x0).float().to(x0.device)
        for t, count in ((torch.ones_like(others), 1), (others + 1, rest)):
            x_t = self.process.diffuse(x0, t, normal_like(x0, generator))
            prediction, variance = self.denoise(x_t, t - 1, class_labels).sample.float().chunk(2, dim=1)
            x0_hat = self.target.to_x0(prediction, x_t, *self.process.signal_and_noise(t, x0)).clamp(-1, 1)
            log_variance = learned_log_variance(variance, self.process, t)
            bound = bound + count * vlb_term_bpd(self.process, x0, x_t, t, x0_hat, log_variance)
        return bound

    def pipeline(self, net: nn.Module) -> DiffusionPipeline:
        """A pipeline whose saved scheduler carries this objective's schedule and target."""
        return self.make_pipeline(net, self.scheduler)

    def compile(self, required: bool = True) -> None:
        """Compile the forward pass alone: `net` stays as it is for sampling and saving."""
        self.denoise = compiled_forward(self.net.forward, required)


def output_channels(config: DDPMConfig, channels: int) -> int:
    """Channels that the network gives: twice the images' where it predicts the variance too."""
    return channels * (1 + LOSSES[config.loss_type].learns_variance)


def schedule_of(config: ProcessConfig) -> NoiseSchedule:
    """The noise schedule of the flags; says so where betas were changed to make x_T noise."""
    schedule = noise_schedule(
        config.ddpm_beta_schedule, config.ddpm_num_steps, config.beta_start, config.beta_end
    )
    if schedule.remark:
        logger.info("%s: %s", schedule.name, schedule.remark)
    return schedule


def weighting(config: DDPMConfig) -> Weighting:
    """The SNR weighting of the flags."""
    if config.snr_gamma is not None:
        return min_snr(config.snr_gamma)
    return UNWEIGHTED if config.p2_gamma is None else p2(config.p2_gamma, config.p2_k)


def ddpm_scheduler(schedule: NoiseSchedule, config: DDPMConfig) -> DDPMScheduler:
    """The stock scheduler of a model of this schedule; `trailing`, so that few steps start at T too.

    Most schedulers do not know the name of every schedule, but all know `trained_betas`.
    """
    return DDPMScheduler(
        num_train_timesteps=schedule.steps,
        beta_schedule=schedule.name,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        trained_betas=None if schedule.name in KNOWN_TO_ALL else schedule.betas().tolist(),
        prediction_type=config.prediction_type,
        variance_type="learned_range" if LOSSES[config.loss_type].learns_variance else config.variance_type,
        clip_sample=True,
        timestep_spacing="trailing",
    )


def by_quartile(losses: Tensor, t: Tensor, steps: int) -> Logs:
    """Losses (B,) under the name of their quarter of 1..T, NaN elsewhere."""
    quartile = (t - 1) * QUARTILES // steps
    return {f"loss_q{q + 1}": torch.where(quartile == q, losses, torch.nan) for q in range(QUARTILES)}
