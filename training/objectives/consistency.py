"""Consistency: a network that maps a noisy image, of any level, to the clean end of its path in one call.

Song et al. 2023 (arXiv 2303.01469): f(x_t, t) is the same all along a path of the probability-flow ODE, and
f(x, t) = x at its clean end. Learned as Geng et al. 2024 (arXiv 2406.14548) do: f(x_t, t) is drawn to
f(x_r, r), r < t, for x_r and x_t of the same image and the same noise, without a gradient through the second.
With r at the clean end this is denoising, so a diffusion model is a good start, and r approaches t in stages.

The process preserves variance, and f is what diffusers' `LCMScheduler` computes, so that it samples exactly
what was trained:

    f(x_t, t) = c_skip(t) x_t + c_out(t) x0_hat(x_t, t)

x0_hat follows from the network's output by the target, and is clipped to [-1, 1]. At t = 1, the least noisy
level, c_skip is 1 and c_out is 0.
"""

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, LCMScheduler
from torch import Tensor, nn

from trilemma.pipelines.consistency import ConsistencyPipeline
from trilemma.pipelines.samplers import KNOWN_TO_ALL
from trilemma.pipelines.shared import exact_device
from trilemma.training.devices.compiled import compiled_forward
from trilemma.training.devices.randomness import randomness_kept
from trilemma.training.diffusion.flow import TIME_STEPS
from trilemma.training.diffusion.label_dropout import LabelDropout
from trilemma.training.diffusion.losses import mean_per_example
from trilemma.training.diffusion.process import (
    MAX_SIGNAL,
    TARGETS,
    GaussianProcess,
    NoiseSchedule,
    beside,
    normal_like,
)
from trilemma.training.diffusion.times import UniformTimes
from trilemma.training.families.consistency import ConsistencyConfig
from trilemma.training.loop.method import GradientDescent, Logs, Objective
from trilemma.training.loop.watchdog import Sign, Watchdog
from trilemma.training.options.groups import OptimConfig

SIGMA_DATA = 0.5
"""Of the boundary condition; LCMScheduler has no other."""

NOISY = 0.9
"""From this share of the times on, x_t shows next to nothing of the image."""


def boundary(t: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, float64 (B,), for t (B,) in 1..T: 1 and 0 at t = 1. As `LCMScheduler` has them, after
    Song et al. 2023, appendix C.
    """
    distance = scaling * (t - 1).double()
    norm = distance.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, distance / norm.sqrt()


def last_time(process: GaussianProcess, prediction_type: str) -> int:
    """The time that training and sampling start from, in 2..T.

    T, but for epsilon the last at which sqrt(abar_t) is above `MAX_SIGNAL`: x0_hat is the network's output
    over sqrt(abar_t), and at the end of a cosine schedule that is 20,000 times its error.
    """
    if prediction_type != "epsilon":
        return process.steps
    strong = int((process.abar.sqrt() >= MAX_SIGNAL).sum()) - 1
    # LCMScheduler takes every time only if there are more than T / 2 of them.
    return max(strong, process.steps // 2 + 1)


def lcm_scheduler(schedule: NoiseSchedule, config: ConsistencyConfig) -> LCMScheduler:
    """The stock scheduler that samples a model of these options in 1 to `last_time` steps, evenly spaced."""
    return LCMScheduler(
        num_train_timesteps=schedule.steps,
        beta_schedule=schedule.name if schedule.name in KNOWN_TO_ALL else "linear",
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        trained_betas=None if schedule.name in KNOWN_TO_ALL else schedule.betas().tolist(),
        original_inference_steps=last_time(schedule.process(), config.prediction_type),
        clip_sample=True,
        prediction_type=config.prediction_type,
        timestep_scaling=config.timestep_scaling,
    )


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c of each image, (B,); Song & Dhariwal 2023 (arXiv 2310.14189), equation 7."""
    return ((a - b).flatten(1).square().sum(1) + c**2).sqrt() - c


def detail(x: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, (B,), for x (B, C, H, W): blur lowers it, noise raises
    it. The mean square itself for images of one pixel.
    """
    if x.shape[-1] == 1:
        return mean_per_example(x.square())
    across, down = x.diff(dim=-1).square(), x.diff(dim=-2).square()
    return (mean_per_example(across) + mean_per_example(down)) / 2


class Teacher(NamedTuple):
    """A trained network of the same classes: a diffusion model's of the same process and target, or a flow's.

    The first is called as the one that learns is. A flow's takes x_s = (1 - s) x_0 + s noise and the time
    step 1000 s, and predicts noise - x_0.
    """

    net: nn.Module
    is_flow: bool = False


class Consistency(Objective):
    """The distance between f at the two ends of a gap; `net(x_t, t - 1, class_labels)` as UNet2DModel has it.

    condition, class_names: of a class-conditional model. teacher: what is distilled, or whose guidance is
    learned. gap: (t - r) / t of training; validation has that of the last stage, so that
    its numbers can be compared through all stages.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        config: ConsistencyConfig,
        condition: LabelDropout | None = None,
        class_names: tuple[str, ...] | None = None,
        teacher: Teacher | None = None,
    ):
        super().__init__()
        self.net, self.denoise, self.process = net, net.forward, schedule.process()
        self.config, self.target = config, TARGETS[config.prediction_type]
        self.scheduler = lcm_scheduler(schedule, config)
        self.last = self.scheduler.config.original_inference_steps
        self.times = UniformTimes(self.last - 1)
        self.condition, self.class_names = condition, class_names
        self.num_classes = len(class_names) if class_names else None
        self.teacher = teacher  # a tuple: its weights are not this module's
        self.teach = None if teacher is None else teacher.net.forward
        self.passes = ("denoise",) if teacher is None else ("denoise", "teach")
        self.final = 2.0**-config.stages
        self.gap = self.final

    def forward(
        self, x0: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Logs]:
        """Losses (B,) for x0 (B, C, H, W) in [-1, 1]; logs the gap and, from near pure noise, the detail of
        f and of the images.
        """
        t = self.times.sample(len(x0), x0.device, generator)[0] + 1
        gap = self.gap if self.training else self.final
        r = self.before(t, gap)
        noise = normal_like(x0, generator)
        x_t, x_r = (self.process.diffuse(x0, time, noise) for time in (t, r))
        labels = self.condition(labels) if self.condition else None
        with torch.no_grad(), randomness_kept(x0.device):
            x_r = x_r if self.teach is None else self.taught(x_t, x_r, t, r, labels)
            end = self.f(x_r, r, labels)
        start = self.f(x_t, t, labels)
        c = self.config.huber_c or 0.00054 * x0[0].numel() ** 0.5
        weight = (self.last - 1) / (t - r) / x0[0].numel() ** 0.5
        losses = weight * pseudo_huber(start, end, c)
        return losses, {"gap": torch.full_like(losses, gap)} | self.signs(start.detach(), x0, t)

    def before(self, t: Tensor, gap: float) -> Tensor:
        """r (B,) in 1..t-1 for t (B,) in 2..T: a step at least, and 1, the clean end, with a gap of 1.

        Even steps reach the clean end from every t that is nearer to it than a step.
        """
        steps = (t - 1).to(exact_device(t.device)).double()  # to the clean end
        whole = self.last - 1 if self.config.spacing == "even" else steps
        return (steps - gap * whole).floor().long().clamp(min=0).to(t.device).clamp(max=t - 2) + 1

    def f(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The consistency function, float32 (B, C, H, W), for x_t (B, C, H, W) and t (B,) in 1..T."""
        # float(): under autocast the network answers in half precision.
        output = self.denoise(x_t, t - 1, labels).sample.float()
        x0_hat = self.target.to_x0(output, x_t, *self.process.signal_and_noise(t, x_t)).clamp(-1, 1)
        skip, out = boundary(t.to(self.process.abar.device), self.config.timestep_scaling)
        return beside(skip, x_t) * x_t + beside(out, x_t) * x0_hat

    def taught(self, x_t: Tensor, x_r: Tensor, t: Tensor, r: Tensor, labels: Tensor | None) -> Tensor:
        """x_r (B, C, H, W) as the diffusion model has it: a step of DDIM from x_t, or x_r with its guidance.

        A step of DDIM is x_r = (sigma_r / sigma_t) x_t + (alpha_r - alpha_t sigma_r / sigma_t) x0_hat, with
        x0_hat clipped. Guidance replaces x0_hat by null + scale (x0_hat - null) before that (Ho & Salimans
        2022); an image without its label gets none.
        """
        (alpha, sigma), (alpha_r, sigma_r) = (self.process.signal_and_noise(time, x_t) for time in (t, r))
        known = guided = self.taught_x0(x_t, t, labels)
        if self.config.guidance_scale != 1:
            null = self.taught_x0(x_t, t, torch.full_like(labels, self.num_classes))
            guided = null + self.config.guidance_scale * (known - null)
        ratio = sigma_r / sigma
        share = alpha_r - alpha * ratio
        if self.config.distil:
            return ratio * x_t + share * guided.clamp(-1, 1)
        return x_r + share * (guided.clamp(-1, 1) - known.clamp(-1, 1))

    def taught_x0(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The image that the teacher predicts, not clipped, float32 (B, C, H, W).

        x_t / (alpha + sigma) is a flow's x_s at s = sigma / (alpha + sigma); there x_0 = x_s - s velocity.
        """
        alpha, sigma = self.process.signal_and_noise(t, x_t)
        if not self.teacher.is_flow:
            return self.target.to_x0(self.teach(x_t, t - 1, labels).sample.float(), x_t, alpha, sigma)
        x_s, s = x_t / (alpha + sigma), sigma / (alpha + sigma)
        return x_s - s * self.teach(x_s, TIME_STEPS * s.flatten(), labels).sample.float()

    def signs(self, prediction: Tensor, x0: Tensor, t: Tensor) -> Logs:
        """What the watchdog looks at, for f (B, C, H, W) of x0 at t; NaN where it does not apply."""
        noisy = t > NOISY * self.last
        both = {"detail": detail(prediction), "detail_data": detail(x0)}
        return {name: torch.where(noisy, values, torch.nan) for name, values in both.items()}

    def pipeline(self, net: nn.Module) -> DiffusionPipeline:
        """A pipeline that samples from `net` in few steps."""
        return ConsistencyPipeline(net, self.scheduler, self.class_names)

    def compile(self, required: bool = True) -> None:
        """Compile the forward pass alone: `net` stays as it is for sampling and saving."""
        self.denoise = compiled_forward(self.net.forward, required)


_GENTLER = "lower --learning_rate, or raise --stage_steps, --train_batch_size or --ema_max_decay"

SIGNS: dict[str, Sign] = {
    "detail": Sign(
        lambda m: m["gap"] < 1 / 8 and not 0.1 < m["detail"] / m["detail_data"] < 10,
        "images from noise are blurred or noisy, whatever the loss says: the squared difference of "
        "neighbouring pixels is below a tenth or above ten times the data's",
        _GENTLER,
    ),
}
"""Name of the log that shows it -> sign. Only when the gap is small: a large one averages over images."""


class Tuning(GradientDescent):
    """Gradient descent on a `Consistency` whose gap closes, watched for signs of failure."""

    def __init__(
        self, objective: Consistency, accelerator: Accelerator, config: OptimConfig, total_steps: int
    ):
        super().__init__(objective, accelerator, config, total_steps)
        self.watchdog = Watchdog(objective.config.watchdog_steps, accelerator, SIGNS)

    def step(self, x0: Tensor, labels: Tensor | None) -> Logs:
        """One micro-batch, with the gap of the next optimizer step."""
        self.objective.gap = self.objective.config.gap(self.updates.expected())
        logs = super().step(x0, labels)
        if self.accelerator.sync_gradients:
            self.watchdog.watch(logs, self.updates.expected())
        return logs

    def state_dict(self) -> dict[str, Any]:
        """That of gradient descent, and the teacher's weights: its folder may hold others by then."""
        teacher = self.objective.teacher
        return super().state_dict() | {"teacher": teacher and teacher.net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; ValueError when its weights have other names or shapes."""
        super().load_state_dict(state)
        if state.get("teacher") is not None:  # states of version 0.1 may lack it
            self.objective.teacher.net.load_state_dict(state["teacher"])

    def healthy(self) -> bool:
        """Whether these weights are worth a checkpoint."""
        return self.watchdog.calm
