"""The bound of variational diffusion against numerical integrals, closed forms and a second derivation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from test_likelihood import images_of
from test_vdm import make_model
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from trilemma.eval.bounds.bits_per_dim import bits_per_dim, bits_per_image
from trilemma.eval.bounds.vdm import CONTINUOUS_TIMES
from trilemma.eval.bounds.vdm import terms as bound_terms
from trilemma.pipelines.vdm import VDMPipeline, alpha_sigma, denoised
from trilemma.pipelines.vdm_model import Gamma
from trilemma.training.diffusion.losses import gaussian_kl
from trilemma.training.diffusion.process import GaussianProcess
from trilemma.training.diffusion.variational import diffusion_bpd, levels_at, prior_bpd, reconstruction_bpd

LEVELS = torch.tensor([0, 100, 101, 180, 255])
MASS = torch.tensor([0.3, 0.2, 0.25, 0.15, 0.1], dtype=torch.float64)
VALUES = LEVELS.double() / 127.5 - 1
ENTROPY = float(-(MASS * MASS.log2()).sum())


def posterior_mean(z, gamma):
    """E[x0 | z] of pixels that are VALUES with probabilities MASS; z (B, ...), gamma (B,) float64."""
    alpha, sigma = (part.sqrt().view(-1, *[1] * z.ndim) for part in (gamma.neg().sigmoid(), gamma.sigmoid()))
    log_share = MASS.log() - 0.5 * ((z.unsqueeze(-1) - alpha * VALUES) / sigma).square()
    return (log_share.softmax(-1) * VALUES).sum(-1)


class Exact(ModelMixin, ConfigMixin):
    """The best possible network for independent pixels of that law."""

    @register_to_config
    def __init__(self, sample_size: int = 1, in_channels: int = 1, num_class_embeds: int | None = None,
                 gamma_type: str = "linear", gamma_min: float = -13.3, gamma_max: float = 5.0):  # fmt: skip
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.gamma = Gamma(gamma_type, gamma_min, gamma_max)

    def forward(self, z, gamma, class_labels=None):
        z = z.double()
        alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (gamma.neg().sigmoid(), gamma.sigmoid()))
        return ((z - alpha * posterior_mean(z, gamma)) / sigma).float()


def exact(timesteps=None, **options):
    torch.manual_seed(0)
    return VDMPipeline(Exact(**options), timesteps=timesteps)


def lawful_images(count, size=1):
    levels = np.random.default_rng(3).choice(LEVELS.numpy(), (count, 1, size, size), p=MASS.numpy())
    return images_of(levels)


def balanced_images(count):
    """One-pixel images in exactly the law's proportions."""
    return images_of(LEVELS.repeat_interleave((MASS * count).round().long()).view(-1, 1, 1, 1).numpy())


def within(measurement, expected, errors=4):
    half = (measurement.interval[1] - measurement.interval[0]) / 2 / 1.96
    return abs(measurement.value - expected) < errors * half + 1e-9


# The one-pixel model


GRID = torch.linspace(-9, 9, 2001, dtype=torch.float64)


def integral_over_noise(f):
    """E[f(noise)] for noise ~ N(0, 1): f (values, noise) on the grid -> (values,)."""
    density = torch.exp(-0.5 * GRID**2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(f * density, GRID, dim=-1)


def integrals(low, high, times):
    """The three terms of the law in bits, by integrals over noise and a mean over `times` of a line."""
    a0, a1 = ((1 + math.exp(gamma)) ** -0.5 for gamma in (low, high))
    s0, s1 = ((1 + math.exp(-gamma)) ** -0.5 for gamma in (low, high))
    z = a1 * VALUES[:, None] + s1 * GRID
    log_ratio = Normal(a1 * VALUES[:, None], s1).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    prior = integral_over_noise(log_ratio)
    z = a0 * VALUES[:, None] + s0 * GRID
    every = torch.arange(256).double() / 127.5 - 1
    shares = Normal(a0 * every, s0).log_prob(z[..., None]).log_softmax(-1)
    own = shares.gather(-1, LEVELS.view(-1, 1, 1).expand(-1, len(GRID), 1)).squeeze(-1)
    reconstruction = -integral_over_noise(own)
    diffusion = torch.zeros(len(VALUES)).double()
    for time in times:
        gamma = torch.full((len(VALUES),), low + (high - low) * time).double()
        alpha, sigma = gamma[0].neg().sigmoid().sqrt(), gamma[0].sigmoid().sqrt()
        z = alpha * VALUES[:, None] + sigma * GRID
        eps_hat = (z - alpha * posterior_mean(z, gamma)) / sigma
        diffusion += 0.5 * (high - low) * integral_over_noise((GRID - eps_hat) ** 2) / len(times)
    return [float(MASS @ term) / math.log(2) for term in (prior, diffusion, reconstruction)]


def test_the_three_terms_of_one_pixel_are_their_integrals():
    """A wide decoder and a prior that is none, so that every term counts."""
    low, high = -7.0, 1.0
    pipeline = exact(gamma_min=low, gamma_max=high)
    values = bits_per_dim(pipeline, balanced_images(4000), batch_size=50_000, timesteps=20)
    expected = integrals(low, high, (torch.arange(50).double() + 0.5) / 50)
    for name, value in zip(("prior", "diffusion", "reconstruction"), expected, strict=True):
        assert value > 0.05, name
        assert within(values[f"{name}_bpd"], value), name
    assert values["diffusion_bpd"].interval[1] - values["diffusion_bpd"].value < 0.05


def test_the_best_network_attains_the_entropy():
    """With ends that leave nothing to prior and decoder, in infinitely many steps."""
    values = bits_per_dim(exact(), balanced_images(4000), batch_size=50_000, timesteps=30)
    assert within(values["bpd"], ENTROPY)
    assert values["prior_bpd"].value < 0.01
    assert values["reconstruction_bpd"].value < 0.05


def test_fewer_steps_have_a_looser_bound():
    images = lawful_images(300, 4)
    pipelines = [exact(steps, sample_size=4) for steps in (5, 30, 200)]
    bits = [bits_per_dim(pipeline, images, batch_size=50_000)["bpd"].value for pipeline in pipelines]
    assert bits[0] > bits[1] + 0.1 > bits[2] + 0.1
    assert bits[2] > ENTROPY - 0.02


def test_the_shape_of_gamma_makes_no_difference_in_continuous_time():
    images = lawful_images(300, 4)
    line = bits_per_dim(exact(sample_size=4), images, batch_size=50_000, timesteps=40)
    values = []
    for seed in (1, 2):
        pipeline = exact(sample_size=4, gamma_type="monotone_fixed_ends")
        shape = pipeline.unet.gamma.shape
        with torch.no_grad():
            torch.manual_seed(seed)
            shape.line.fill_(-2.0)
            shape.bias.add_((-1) ** seed)  # bent to one side, and to the other
        middle = pipeline.unet.gamma(torch.tensor([0.5]).double())
        assert abs(float(middle.detach()) + 4.15) > 1
        values.append(bits_per_dim(pipeline, images, batch_size=50_000, timesteps=40))
    for value in values:
        spread = sum((m.interval[1] - m.interval[0]) / 2 / 1.96 for m in (line["bpd"], value["bpd"]))
        assert abs(value["diffusion_bpd"].value - line["diffusion_bpd"].value) < 2 * spread
        assert value["prior_bpd"] == line["prior_bpd"]
        assert value["reconstruction_bpd"].value == pytest.approx(line["reconstruction_bpd"].value, abs=0.01)


# The terms


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_the_terms_of_steps_are_the_kl_divergences_of_their_posteriors(steps):
    """KL(q(z_s | z_t, x0) || p(z_s | z_t)) from the posterior of `GaussianProcess`, for any prediction."""
    schedule = make_model(gamma_type="monotone").gamma
    time = torch.arange(steps + 1).double() / steps
    abar = schedule(time).detach().neg().sigmoid()
    process = GaussianProcess(torch.cat([torch.ones(1).double(), abar]))  # its step 1 is z_0
    torch.manual_seed(0)
    x0, noise, eps_hat = torch.randn(3, 2, 1, 3, 3).unbind(0)
    for t in range(1, steps + 1):
        middle = torch.full((2,), (t - 0.5) / steps).double()
        levels = levels_at(schedule, middle, steps)
        alpha, sigma = alpha_sigma(levels.gamma, x0)
        z = alpha * x0 + sigma * noise
        ours = diffusion_bpd(noise, eps_hat, levels.weight) / steps
        at = torch.full((2,), t + 1)
        mean, variance = process.posterior(x0, z, at)
        predicted, _ = process.posterior(denoised(z, eps_hat, levels.gamma), z, at)
        log_variance = variance.log().view(-1, 1, 1, 1)
        kl = gaussian_kl(mean.double(), log_variance, predicted.double(), log_variance).flatten(1).mean(1)
        assert_close(ours.double(), kl / math.log(2), rtol=1e-3, atol=1e-6)


def test_many_steps_are_continuous_time():
    schedule, time = make_model(gamma_type="monotone").gamma, torch.linspace(0.05, 0.95, 7).double()
    many, limit = levels_at(schedule, time, 1_000_000), levels_at(schedule, time, None)
    assert_close(many.gamma, limit.gamma, rtol=1e-4, atol=1e-4)
    assert_close(many.weight, limit.weight, rtol=1e-4, atol=0)


@pytest.mark.parametrize("gamma", [-16.0, -13.3, -9.0, -4.0, 1.0])
def test_the_reconstruction_looks_at_every_value_that_matters(gamma):
    """Against the softmax over all 256 values, the gradient of gamma_0 included; edges too."""
    levels = torch.tensor([0, 1, 2, 77, 128, 253, 254, 255]).repeat(40).view(40, 1, 2, 4)
    x0, noise = levels / 127.5 - 1, torch.randn(40, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    gamma_0 = torch.tensor(gamma).double().requires_grad_()
    values, std = torch.arange(256).double() / 127.5 - 1, (gamma_0 / 2).exp()
    seen = values[levels] + std * noise.double()  # z_0 / alpha_0
    shares = (-0.5 * ((seen[..., None] - values) / std).square()).log_softmax(-1)
    expected = -shares.gather(-1, levels[..., None]).flatten(1).mean(1) / math.log(2)
    ours = reconstruction_bpd(x0, noise, gamma_0)
    assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)
    one, other = (torch.autograd.grad(f.sum(), gamma_0)[0] for f in (ours, expected))
    assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("gamma", "expected"), [(torch.nan,) * 2, (-torch.inf, torch.nan), (torch.inf, 8.0)])
def test_the_reconstruction_of_a_diverged_gamma_is_told_by_the_loss(gamma, expected):
    """NaN, not an exception; and 8 bits where nothing is left of the image."""
    bits = reconstruction_bpd(torch.zeros(2, 1, 1, 3), torch.randn(2, 1, 1, 3), torch.tensor(gamma).double())
    assert_close(bits, torch.full((2,), expected), equal_nan=True)


@pytest.mark.parametrize("gamma", [-1.0, 1.0, 5.0, 9.0])
def test_the_prior_is_the_divergence_of_two_normals(gamma):
    x0, gamma = torch.rand(5, 1, 3, 3) * 2 - 1, torch.tensor(gamma).double()
    last = Normal(gamma.neg().sigmoid().sqrt() * x0.double(), gamma.sigmoid().sqrt())
    expected = kl_divergence(last, Normal(0.0, 1.0)).flatten(1).mean(1) / math.log(2)
    assert_close(prior_bpd(x0, gamma), expected, rtol=1e-6, atol=1e-9)


# Who computes what


@pytest.mark.parametrize("timesteps", [1, 3, 4, 20])
def test_systematic_times_take_every_step_equally_often(timesteps):
    terms = bound_terms(exact(20), timesteps, 8)
    starts = [SimpleNamespace(integers=lambda high, r=r: r) for r in range(20)]
    t = np.stack([np.floor(terms._times(start) * 20) for start in starts]).astype(int)
    assert all(len(set(row)) == timesteps for row in t)
    assert np.bincount(t.flatten(), minlength=20).tolist() == [timesteps] * 20


def test_how_many_times_an_image_gets():
    assert bound_terms(exact(20), None, 8).timesteps == 20
    assert bound_terms(exact(), None, 8).timesteps == CONTINUOUS_TIMES
    assert bound_terms(exact(), 1000, 8).timesteps == 1000
    with pytest.raises(ValueError, match=r"1\.\.20, or None; got 21"):
        bound_terms(exact(20), 21, 8)


@pytest.mark.parametrize("steps", [None, 6])
def test_batches_and_company_change_no_image(steps):
    pipeline = VDMPipeline(make_model(classes=3), ("a", "b", "c"), timesteps=steps)
    images = images_of(np.random.default_rng(5).integers(0, 256, (5, 1, 8, 8)), np.array([0, 1, 2, 0, 1]))

    def per_image(batch_size, indices=None):
        terms = bound_terms(pipeline, 6, batch_size)
        metric = bits_per_image(terms, images, seed=0, device=torch.device("cpu"), indices=indices)
        return torch.stack([metric.prior, metric.diffusion, metric.reconstruction], dim=1)

    whole = per_image(64)
    for batch_size in (1, 7):
        assert_close(per_image(batch_size), whole, rtol=1e-5, atol=1e-7)
    assert_close(per_image(12, [3, 1]), whole[[3, 1]], rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="--label_column"):
        bits_per_dim(pipeline, images_of(images.pixels))


def test_a_saved_model_has_the_same_bits(tmp_path):
    pipeline = VDMPipeline(make_model(gamma_type="monotone"), timesteps=6)
    images = images_of(np.random.default_rng(5).integers(0, 256, (3, 1, 8, 8)))
    before = bits_per_dim(pipeline, images)
    pipeline.save_pretrained(tmp_path)
    again = bits_per_dim(VDMPipeline.from_pretrained(tmp_path, trust_remote_code=True), images)
    assert again.keys() == before.keys()
    for name, measured in before.items():
        # Tensors of a file may lie otherwise in memory: float32's 1.2e-7 in each of about 10 layers.
        assert again[name].value == pytest.approx(measured.value, rel=1e-5)
        assert again[name].n == measured.n
