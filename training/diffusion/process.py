"""How an image is noised, and the posterior of one step back: schedules, q(x_t | x_0), targets.

Ho et al. 2020 (arXiv 2006.11239), equations 4, 6 and 7. Coefficients are float64 until they meet an image: in
bfloat16, 1 - abar is exactly zero at the first steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trilemma.pipelines.shared import exact_device

MAX_BETA = 0.999
MAX_SIGNAL = 0.01
"""Largest sqrt(abar_T): above it x_T still shows the image, and N(0, I) is the wrong start for sampling."""


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of x's shape on its device, drawn where the generator is."""
    where = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=where).to(x.device)


class GaussianProcess(nn.Module):
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) for t in 0..T.

    abar: (T + 1,) float64, decreasing, abar[0] = 1.
    """

    abar: Tensor

    def __init__(self, abar: Tensor):
        super().__init__()
        self.register_buffer("abar", abar.double(), persistent=False)

    def _apply(self, fn, recurse=True):
        """Move with the model, but stay float64 whatever dtype the model is cast to."""
        self.abar = self.abar.to(exact_device(fn(self.abar.float()).device))
        return self

    def at(self, t: Tensor) -> Tensor:
        """abar_t, float64 (B,), on the device of the buffer; t (B,) in 0..T."""
        return self.abar[t.to(self.abar.device)]

    @property
    def steps(self) -> int:
        """T, the number of noise levels."""
        return len(self.abar) - 1

    def signal_and_noise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t), float32, shaped to multiply x (B, ...); t (B,)
        in 0..T.
        """
        abar = self.at(t)
        return beside(abar.sqrt(), x), beside((1 - abar).sqrt(), x)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t), float64 (B,); t in 1..T."""
        return self.at(t) / (1 - self.at(t))

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0), equation 4: float32 (B, ...) whatever the dtype of x0 and of the noise; t (B,)
        in 1..T.
        """
        alpha, sigma = self.signal_and_noise(t, x0)
        return alpha * x0.float() + sigma * noise.float()

    def beta(self, t: Tensor) -> Tensor:
        """beta_t = 1 - abar_t / abar_{t-1}, float64 (B,); t in 1..T."""
        return 1 - self.at(t) / self.at(t - 1)

    def posterior_variance(self, t: Tensor) -> Tensor:
        """Variance of q(x_{t-1} | x_t, x_0), equation 7: float64 (B,), exactly 0 at t = 1."""
        return self.beta(t) * (1 - self.at(t - 1)) / (1 - self.at(t))

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) float32 and variance (B,) float64 of q(x_{t-1} | x_t, x_0), eq. 7; t (B,) in 1..T."""
        now, before, beta = self.at(t), self.at(t - 1), self.beta(t)
        from_x0 = before.sqrt() * beta / (1 - now)
        from_x_t = (1 - beta).sqrt() * (1 - before) / (1 - now)
        return beside(from_x0, x0) * x0 + beside(from_x_t, x_t) * x_t, self.posterior_variance(t)


def beside(values: Tensor, images: Tensor) -> Tensor:
    """Exact values (B,) as float32 on the images' device, shaped to multiply images (B, ...)."""
    return values.float().view(-1, *[1] * (images.ndim - 1)).to(images.device)


class Target(NamedTuple):
    """What the network predicts, both ways, and how its squared error relates to that of x0.

    encode(x0, noise, alpha, sigma) -> target; to_x0(output, x_t, alpha, sigma) -> x0;
    error_scale(snr): ||target error||^2 / ||x0 error||^2.
    """

    encode: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    to_x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    error_scale: Callable[[Tensor], Tensor]


TARGETS: dict[str, Target] = {
    "epsilon": Target(
        lambda x0, noise, alpha, sigma: noise,
        lambda out, x_t, alpha, sigma: (x_t - sigma * out) / alpha,
        lambda snr: snr,
    ),
    "sample": Target(
        lambda x0, noise, alpha, sigma: x0,
        lambda out, x_t, alpha, sigma: out,
        torch.ones_like,
    ),
    # Salimans & Ho 2022 (arXiv 2202.00512), section 4
    "v_prediction": Target(
        lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
        lambda out, x_t, alpha, sigma: alpha * x_t - sigma * out,
        lambda snr: snr + 1,
    ),
}


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start


def _cosine(steps: int, start: float, end: float) -> Tensor:
    """Nichol & Dhariwal 2021, equation 17."""
    f = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=MAX_BETA)


SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}
"""diffusers' names -> betas (T,) float64 from (T, beta_start, beta_end); each but the cosine is linear in the
two ends.
"""


@dataclass(frozen=True)
class NoiseSchedule:
    """A schedule whose x_T is noise, under its name in diffusers, and a remark for the user."""

    name: str
    steps: int
    beta_start: float
    beta_end: float
    remark: str = ""

    def betas(self) -> Tensor:
        """beta_1..beta_T, float64."""
        return SCHEDULES[self.name](self.steps, self.beta_start, self.beta_end)

    def process(self) -> GaussianProcess:
        """The noising process of this schedule."""
        return GaussianProcess(torch.cat([torch.ones(1, dtype=torch.float64), (1 - self.betas()).cumprod(0)]))

    def signal(self) -> float:
        """sqrt(abar_T), what is left of the image at the end."""
        return float((1 - self.betas()).prod().sqrt())


def noise_schedule(
    name: str, steps: int, beta_start: float | None = None, beta_end: float | None = None
) -> NoiseSchedule:
    """The schedule of the flags, safe for any T.

    Ends of None are 1e-4 and 0.02, the paper's at T=1000, times 1000 / T while betas stay below 1; if more
    than `MAX_SIGNAL` of the image is left in x_T, the betas are scaled up until it is not. Other ends are
    used without scaling. ValueError if no scaling helps, or if those ends leave too much.
    """
    fixed = beta_start is not None or beta_end is not None or name == "squaredcos_cap_v2"
    factor = 1.0 if fixed else min(1000 / steps, MAX_BETA / 0.02)
    remark = "" if factor == 1 else f"betas scaled by {factor:.4g}, since T is {steps} and not 1000"
    schedule = NoiseSchedule(name, steps, (beta_start or 1e-4) * factor, (beta_end or 0.02) * factor, remark)
    betas = schedule.betas()
    if betas.min() <= 0 or betas.max() > MAX_BETA:
        raise ValueError(_refusal(schedule, f"beta reaches {betas.max():.3g}, past {MAX_BETA}"))
    if schedule.signal() <= MAX_SIGNAL:
        return schedule
    if fixed:
        raise ValueError(_refusal(schedule, f"sqrt(abar_T) is {schedule.signal():.3g}: x_T shows the image"))
    return _strengthened(schedule)


def _strengthened(schedule: NoiseSchedule) -> NoiseSchedule:
    """The same shape with larger betas, so that sqrt(abar_T) is MAX_SIGNAL."""

    def scaled(factor: float) -> NoiseSchedule:
        signal = f"sqrt(abar_T) was {schedule.signal():.3g}"
        remark = f"{signal}; betas scaled by {factor:.3f} to bring it to {MAX_SIGNAL}"
        return NoiseSchedule(
            schedule.name, schedule.steps, schedule.beta_start * factor, schedule.beta_end * factor, remark
        )

    low, high = 1.0, MAX_BETA / float(schedule.betas().max())
    if scaled(high).signal() > MAX_SIGNAL:
        raise ValueError(_refusal(schedule, "no scaling of its betas below 1 turns x_T into noise"))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).signal() > MAX_SIGNAL else (low, middle)
    return scaled(high)


def _refusal(schedule: NoiseSchedule, why: str) -> str:
    return (
        f"--ddpm_beta_schedule {schedule.name} with --ddpm_num_steps {schedule.steps} and betas "
        f"{schedule.beta_start:.3g}..{schedule.beta_end:.3g} cannot be used: {why}. "
        "Use more steps, other betas, or squaredcos_cap_v2."
    )
