"""Losses against torch, diffusers, numerical integration and their papers' formulas written a second way."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

from trilemma.training.diffusion import losses
from trilemma.training.diffusion.process import TARGETS, noise_schedule

PROCESS = noise_schedule("linear", 1000).process()


def pair(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("l2", lambda a, b: F.mse_loss(a, b)),
        ("l1", lambda a, b: F.l1_loss(a, b)),
        ("huber", lambda a, b: F.huber_loss(a, b, delta=0.3)),
    ],
)
def test_pointwise_losses(name, oracle):
    a, b = pair(5, 3, 4, 4)
    ours = losses.LOSSES[name].simple(a, b, 0.3)
    assert ours.shape == (5,)
    torch.testing.assert_close(ours.mean(), oracle(a, b))
    torch.testing.assert_close(ours[2], oracle(a[2], b[2]))


def test_mmd_is_the_double_sum():
    a, b = pair(6, 7)
    both = torch.cat([a, b])
    width = sum(float((x - y).square().sum()) for x in both for y in both) / (12 * 11)

    def k(x, y):
        distance = float((x - y).square().sum())
        return sum(math.exp(-distance / (2 * width * s)) for s in (0.25, 0.5, 1, 2, 4))

    direct = (
        sum(k(x, y) for x in a for y in a) / 36
        + sum(k(x, y) for x in b for y in b) / 36
        - 2 * sum(k(x, y) for x in a for y in b) / 36
    )
    ours = losses.mmd(a, b, 1.0)
    torch.testing.assert_close(ours, torch.full((6,), direct), rtol=1e-4, atol=1e-5)


def test_mmd_properties():
    a, b = pair(64, 4)
    torch.testing.assert_close(losses.mmd(a, a, 1.0), torch.zeros(64), atol=1e-6, rtol=0)
    assert losses.mmd(a, b + 2, 1.0)[0] > losses.mmd(a, b, 1.0)[0] > 0
    x = a.clone().requires_grad_()
    losses.mmd(x, a[torch.randperm(64)], 1.0).mean().backward()
    assert x.grad.isfinite().all()
    with pytest.raises(ValueError, match="--train_batch_size"):
        losses.mmd(a[:1], b[:1], 1.0)


def test_min_snr_weights_equal_the_papers_table():
    snr = torch.tensor([1e-3, 0.5, 5.0, 80.0], dtype=torch.float64)
    weight = losses.min_snr(5.0)
    capped = snr.clamp(max=5.0)
    for name, expected in (
        ("epsilon", capped / snr),
        ("sample", capped),
        ("v_prediction", capped / (snr + 1)),
    ):
        ours = weight(snr, TARGETS[name].error_scale)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=0)


def test_p2_weights_epsilon_by_its_formula_and_is_the_same_loss_for_every_target():
    snr = torch.tensor([1e-3, 0.5, 5.0, 80.0], dtype=torch.float64)
    weight = losses.p2(1.0, 1.0)
    torch.testing.assert_close(
        weight(snr, TARGETS["epsilon"].error_scale).double(), 1 / (1 + snr), rtol=1e-6, atol=0
    )
    on_x0 = [weight(snr, TARGETS[n].error_scale).double() * TARGETS[n].error_scale(snr) for n in TARGETS]
    for other in on_x0[1:]:
        torch.testing.assert_close(on_x0[0], other, rtol=1e-6, atol=0)


def test_unweighted_is_one():
    snr = torch.rand(4, dtype=torch.float64)
    assert (losses.UNWEIGHTED(snr, TARGETS["epsilon"].error_scale) == 1).all()


def test_gaussian_kl_equals_torch():
    a, b = pair(10)
    p = torch.distributions.Normal(a, 0.7)
    q = torch.distributions.Normal(b, 1.9)
    ours = losses.gaussian_kl(a, torch.tensor(0.7).log() * 2, b, torch.tensor(1.9).log() * 2)
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(p, q), rtol=1e-4, atol=1e-5)


def test_discretised_likelihood_sums_to_one_over_all_grey_levels():
    levels = torch.arange(256) / 127.5 - 1
    for mean, log_variance in ((0.3, -2.0), (-1.4, -3.0), (0.0, 1.0), (0.999, -9.0)):
        nll = losses.discretised_gaussian_nll(levels, torch.tensor(mean), torch.tensor(log_variance))
        torch.testing.assert_close((-nll).exp().sum(), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_discretised_likelihood_far_from_the_mean_is_the_density_times_the_bin():
    x0, mean, log_variance = torch.tensor(0.5 / 127.5), torch.tensor(0.9), torch.tensor(-6.0)
    nll = losses.discretised_gaussian_nll(x0.double(), mean.double(), log_variance.double())
    points = torch.linspace(float(x0) - 1 / 255, float(x0) + 1 / 255, 20001, dtype=torch.float64)
    density = torch.distributions.Normal(mean.double(), (log_variance / 2).exp().double()).log_prob(points)
    integral = torch.logsumexp(density, 0) + math.log(2 / 255 / 20001)
    torch.testing.assert_close(-nll, integral, rtol=1e-3, atol=0)
    assert losses.discretised_gaussian_nll(x0, mean, torch.tensor(-14.0)).isfinite()


def test_discretised_likelihood_has_finite_gradients_in_the_tails():
    mean = torch.tensor([0.9, -0.9, 5.0], requires_grad=True)
    log_variance = torch.tensor([-9.0, -9.0, -2.0], requires_grad=True)
    losses.discretised_gaussian_nll(torch.zeros(3), mean, log_variance).sum().backward()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()


def test_learned_variance_equals_the_schedulers_range():
    scheduler = DDPMScheduler(variance_type="learned_range")
    output = torch.rand(3, 1, 2, 2) * 2 - 1
    for t in (2, 300, 1000):
        ours = losses.learned_log_variance(output, PROCESS, torch.full((3,), t))
        theirs = scheduler._get_variance(t - 1, predicted_variance=output)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_vlb_term_of_a_perfect_prediction_is_the_variance_mismatch():
    x0, noise = pair(4, 1, 4, 4)
    t = torch.tensor([2, 10, 500, 1000])
    x_t = PROCESS.diffuse(x0, t, noise)
    low, high = (v.float().view(-1, 1, 1, 1).expand_as(x0) for v in losses.log_variance_range(PROCESS, t))
    exact = losses.vlb_term_bpd(PROCESS, x0, x_t, t, x0, low)
    torch.testing.assert_close(exact, torch.zeros(4), atol=1e-5, rtol=0)
    loose = losses.vlb_term_bpd(PROCESS, x0, x_t, t, x0, high)
    ratio = (low - high)[:, 0, 0, 0]
    expected = 0.5 * (-ratio + ratio.exp() - 1) / math.log(2)
    torch.testing.assert_close(loose, expected, rtol=1e-3, atol=1e-6)


def test_vlb_term_is_the_simple_loss_times_its_known_weight():
    """Ho et al. 2020, equation 12: beta^2 / (2 variance alpha (1 - abar)) under the posterior's variance."""
    x0, noise = pair(3, 2, 4, 4)
    error = torch.randn(x0.shape) * 0.1
    t = torch.tensor([5, 200, 900])
    x_t = PROCESS.diffuse(x0, t, noise)
    alpha, sigma = PROCESS.signal_and_noise(t, x0)
    x0_hat = TARGETS["epsilon"].to_x0(noise + error, x_t, alpha, sigma)
    low, _ = (v.float().view(-1, 1, 1, 1).expand_as(x0) for v in losses.log_variance_range(PROCESS, t))
    term = losses.vlb_term_bpd(PROCESS, x0, x_t, t, x0_hat, low)
    beta, variance = PROCESS.beta(t), PROCESS.posterior_variance(t)
    weight = beta**2 / (2 * variance * (1 - beta) * (1 - PROCESS.abar[t]))
    expected = weight * losses.mean_per_example(error.square()) / math.log(2)
    torch.testing.assert_close(term.double(), expected, rtol=2e-3, atol=1e-6)
