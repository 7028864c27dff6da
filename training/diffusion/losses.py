"""How far a prediction is from its target: pointwise losses, SNR weightings, the variational bound, MMD.

Everything is float32 in, one value per example (B,) out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.pipelines.networks.vdm_model import exact
from trilemma.training.diffusion.process import GaussianProcess, beside

VLB_WEIGHT = 0.001
"""lambda of the hybrid loss, Nichol & Dhariwal 2021, equation 16."""


def mean_per_example(values: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return values.flatten(1).mean(1)


def mmd(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """Squared maximum mean discrepancy of two batches, the same value for each example.

    Gretton et al. 2012 (JMLR 13), the biased statistic (never negative), with a sum of Gaussian kernels whose
    widths are 1/4 to 4 times the mean squared distance (Li et al. 2015, arXiv 1502.02761). It compares the
    two laws, not the pairs.
    """
    if len(prediction) < 2:
        raise ValueError("--loss_type mmd compares batches: --train_batch_size must be at least 2")
    both = torch.cat([prediction.flatten(1), target.flatten(1)])
    distance = torch.cdist(both, both).square()
    width = distance.detach().sum() / (len(both) * (len(both) - 1))
    kernel = sum(torch.exp(-distance / (2 * width * scale)) for scale in (0.25, 0.5, 1.0, 2.0, 4.0))
    sign = torch.ones(len(both), device=both.device)
    sign[len(prediction) :] = -1
    # Not as matrix products, which autocast would round to half precision.
    return ((sign[:, None] * sign * kernel).sum() / len(prediction) ** 2).expand(len(prediction))


class Loss(NamedTuple):
    """How a row of --loss_type trains.

    simple(prediction, target, delta) -> (B,), or None; vlb_weight: factor of the variational bound, summed
    over T steps;
    importance: t is drawn by how much each contributes to the bound.
    """

    simple: Callable[[Tensor, Tensor, float], Tensor] | None
    vlb_weight: float = 0.0
    importance: bool = False

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance too."""
        return self.vlb_weight > 0


def l2(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """Mean squared error, (B,)."""
    return mean_per_example((prediction - target).square())


LOSSES: dict[str, Loss] = {
    "l2": Loss(l2),
    "l1": Loss(lambda a, b, delta: mean_per_example((a - b).abs())),
    "huber": Loss(lambda a, b, delta: mean_per_example(F.huber_loss(a, b, reduction="none", delta=delta))),
    "mmd": Loss(mmd),
    "hybrid": Loss(l2, vlb_weight=VLB_WEIGHT),
    "vlb": Loss(None, vlb_weight=1.0, importance=True),
}


class Weighting(NamedTuple):
    """A weight on the squared error of x0 by its SNR; `None` leaves the target's own error unweighted."""

    of_snr: Callable[[Tensor], Tensor] | None

    def __call__(self, snr: Tensor, error_scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Weight (B,) float32 on the target's error; snr (B,), error_scale from `TARGETS`."""
        return (
            torch.ones_like(snr).float()
            if self.of_snr is None
            else (self.of_snr(snr) / error_scale(snr)).float()
        )


UNWEIGHTED = Weighting(None)


def min_snr(gamma: float) -> Weighting:
    """min(SNR, gamma) on x0, Hang et al. 2023 (arXiv 2303.09556), equation 9."""
    return Weighting(lambda snr: snr.clamp(max=gamma))


def p2(gamma: float, k: float) -> Weighting:
    """1 / (k + SNR)^gamma on epsilon, Choi et al. 2022 (arXiv 2204.00227), equation 8."""
    return Weighting(lambda snr: snr / (k + snr) ** gamma)


def log_variance_range(process: GaussianProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """log of the posterior variance and log beta_t, float64 (B,): the two ends of a learned variance.

    The posterior's is 0 at t = 1; the value at t = 2 stands in, as in Nichol & Dhariwal's code.
    """
    return process.posterior_variance(t.clamp(min=2)).log(), process.beta(t).log()


def learned_log_variance(output: Tensor, process: GaussianProcess, t: Tensor) -> Tensor:
    """log variance from a network output in [-1, 1], Nichol & Dhariwal 2021, equation 15; (B, C, H, W)."""
    low, high = (beside(values, output) for values in log_variance_range(process, t))
    fraction = (output + 1) / 2
    return fraction * high + (1 - fraction) * low


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(q || p) of two Gaussians, elementwise, in nats."""
    return 0.5 * (
        log_var_p - log_var_q + torch.exp(log_var_q - log_var_p) - 1
        + (mean_q - mean_p).square() * torch.exp(-log_var_p)
    )  # fmt: skip


def discretised_gaussian_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the Gaussian's mass on x0's 8-bit bin, elementwise, in nats; Ho et al. 2020, equation 13.

    x0 in [-1, 1] on the grid -1 + k / 127.5; the two end bins reach to infinity. Differences of the normal
    CDF are taken on the side of the smaller tail, so that bins far from the mean keep their digits.
    """
    centred, scale = x0 - mean, torch.exp(-0.5 * log_variance)
    upper, lower = (centred + 1 / 255) * scale, (centred - 1 / 255) * scale
    flip = centred > 0
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    top, bottom = x0 > 0.999, x0 < -0.999
    log_mass = _log_difference(torch.special.log_ndtr(high), torch.special.log_ndtr(low))
    log_mass = torch.where(top, torch.special.log_ndtr(-lower), log_mass)
    return -torch.where(bottom, torch.special.log_ndtr(upper), log_mass)


def _log_difference(high: Tensor, low: Tensor) -> Tensor:
    """log(exp(high) - exp(low)) for high > low."""
    return high + torch.log(-torch.expm1((low - high).clamp(max=-1e-12)))


def vlb_term_bpd(
    process: GaussianProcess, x0: Tensor, x_t: Tensor, t: Tensor, x0_hat: Tensor, log_variance: Tensor
) -> Tensor:
    """The bound's term at step t in bits per dimension, (B,): a KL for t > 1, the 8-bit likelihood at 1.

    Ho et al. 2020, equation 5. x0, x_t, x0_hat, log_variance (B, C, H, W); t (B,) in 1..T.
    """
    mean, _ = process.posterior(x0_hat, x_t, t)
    true_mean, true_variance = process.posterior(x0, x_t, t)
    true_log = beside(true_variance.clamp(min=1e-20).log(), x0)
    kl = mean_per_example(gaussian_kl(true_mean, true_log, mean, log_variance))
    reconstruction = mean_per_example(discretised_gaussian_nll(x0, mean, log_variance))
    return torch.where(t == 1, reconstruction, kl) / math.log(2)


def prior_bpd(process: GaussianProcess, x0: Tensor) -> Tensor:
    """The bound's term L_T = KL(q(x_T | x_0) || N(0, I)) in bits per dimension, float64 (B,); no network."""
    abar = process.abar[-1]
    zero = torch.zeros_like(abar)
    kl = gaussian_kl(abar.sqrt() * exact(x0), (1 - abar).log(), zero, zero)
    return mean_per_example(kl) / math.log(2)
