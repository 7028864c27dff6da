"""Bits per dimension of a flow against the closed form of a Gaussian and the exact bits of a mixture."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from test_flow import MEAN, STD, UNET, GaussianVelocity, small_flow
from test_likelihood import images_of
from torch.distributions import Normal

from trilemma.eval.bounds.bits_per_dim import ODELikelihood, bits_per_dim, bits_per_image
from trilemma.eval.bounds.flow import terms
from trilemma.eval.bounds.gaussian import process_of
from trilemma.eval.bounds.ode import ode_terms
from trilemma.eval.bounds.unconditional import path
from trilemma.eval.metrics.table import metric_of
from trilemma.eval.scoring.naming import metric_name
from trilemma.pipelines.flow import ClassConditionalFlowPipeline, FlowPipeline
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.images.points import MIXTURE

CPU = torch.device("cpu")


class MixtureVelocity(ModelMixin, ConfigMixin):
    """E[noise - x0 | x_s] for the mixture, before its points are rounded: the perfect network."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.register_to_config(in_channels=2, out_channels=2, sample_size=1)

    def forward(self, x, time_step, class_labels=None):
        s = (torch.as_tensor(time_step).double() / 1000).clamp(1e-9, 1 - 1e-9).view(-1, 1, 1, 1)
        x = x.double()  # here, so that the two large parts of the derivative meet in float64
        return UNet2DOutput(sample=(MIXTURE.expected_noise(x, 1 - s, s) - x) / (1 - s))


def flow(net):
    return FlowPipeline(net, FlowMatchEulerDiscreteScheduler())


def per_image(pipeline, images, **options):
    bound = terms(pipeline, options.pop("timesteps", None), options.pop("batch_size", 64))
    metric = bits_per_image(bound, images, seed=0, device=CPU, **options)
    metric.compute()
    return torch.stack([metric.metric_state[f"{name}"] for name in bound.names], 1)


def gaussian_images(count):
    x = np.random.default_rng(6).normal(MEAN, STD, (count, 1, 4, 4))
    return images_of(((x + 1) * 127.5).round().clip(0, 255))


def placed(images):
    """Where in its bins each image is scored with seed 0."""
    rngs = [np.random.default_rng([0, row]) for row in range(len(images))]
    places = np.stack([rng.random((1, 4, 4), dtype=np.float32) for rng in rngs])
    return torch.from_numpy(images.pixels).double() / 127.5 - 1 + (torch.from_numpy(places) - 0.5) / 127.5


def test_the_density_of_a_gaussian_is_exact_for_each_image():
    """Its velocity has a diagonal derivative, of which random signs give the trace without error."""
    images = gaussian_images(6)
    bits = per_image(flow(GaussianVelocity()), images)
    exact = -Normal(MEAN, STD).log_prob(placed(images)).flatten(1).mean(1) / math.log(2) + math.log2(127.5)
    torch.testing.assert_close(bits.sum(1), exact, rtol=0, atol=1e-3)


def test_bits_of_the_mixture_are_within_two_hundredths_of_the_truth():
    points, _ = MIXTURE.draw(np.random.default_rng(0), 1000)
    images = images_of(((points + 1) * 127.5).round().clip(0, 255)[:, :, None, None])
    truth = float(MIXTURE.true_bpd(torch.from_numpy(images.pixels)).mean())
    measured = bits_per_dim(flow(MixtureVelocity()), images, batch_size=1000)["bpd"]
    assert abs(measured.value - truth) < 0.02
    half = (measured.interval[1] - measured.interval[0]) / 2
    assert half < 0.1, "the interval is of the mean over these images"


def test_a_step_of_half_the_length_changes_little():
    images = gaussian_images(4)
    bits = {
        steps: per_image(flow(GaussianVelocity()), images, timesteps=steps).sum(1) for steps in (4, 16, 64)
    }
    errors = [(bits[steps] - bits[64]).abs().max() for steps in (4, 16)]
    assert errors[1] < 1e-3 < errors[0]


def test_batches_company_and_shares_change_no_image():
    pipeline = small_flow()
    images = images_of(np.random.default_rng(5).integers(0, 256, (5, 1, 8, 8)))
    whole = per_image(pipeline, images, timesteps=2)
    for options in (dict(batch_size=1), dict(batch_size=3)):
        again = per_image(pipeline, images, timesteps=2, **options)
        torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-5)
    some = per_image(pipeline, images, timesteps=2, indices=[4, 1])
    torch.testing.assert_close(some, whole[[4, 1]], rtol=1e-4, atol=1e-5)


def test_a_model_with_classes_scores_an_image_with_its_label():
    torch.manual_seed(0)
    net = UNet2DModel(**UNET, in_channels=1, out_channels=1, num_class_embeds=3).eval()
    with torch.no_grad():
        net.class_embedding.weight.mul_(10)
    pipeline = ClassConditionalFlowPipeline(net, FlowMatchEulerDiscreteScheduler())
    pixels = np.random.default_rng(5).integers(0, 256, (2, 1, 8, 8))
    bits = [
        per_image(pipeline, images_of(pixels, np.array(labels)), timesteps=2) for labels in ([0, 1], [1, 1])
    ]
    assert not torch.allclose(bits[0][0], bits[1][0])
    torch.testing.assert_close(bits[0][1], bits[1][1], rtol=1e-4, atol=1e-5)


class GaussianNoise(ModelMixin, ConfigMixin):
    """E[noise | x_t] for the same Gaussian images, at time steps between the T levels too."""

    def __init__(self, levels):
        super().__init__()
        self.anchor, self.levels = torch.nn.Parameter(torch.zeros(1)), levels
        self.register_to_config(in_channels=1, out_channels=1, sample_size=4)

    def forward(self, x_t, t, class_labels=None):
        s = float(np.interp(float(t), np.arange(len(self.levels)), self.levels))
        alpha, sigma = (part / (s**2 + (1 - s) ** 2) ** 0.5 for part in (1 - s, s))
        noise = sigma * (x_t.double() - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)
        return UNet2DOutput(sample=noise.float())


def test_a_diffusion_model_has_the_bits_of_its_probability_flow():
    """In closed form: its law at the least noise, s_1, is N((1 - s_1) MEAN, (1 - s_1)^2 STD^2 + s_1^2)."""
    scheduler = DDPMScheduler(1000)
    abar = process_of(scheduler).abar[1:]
    ratio = ((1 - abar) / abar).sqrt()
    levels = (ratio / (1 + ratio)).numpy()
    pipeline = UnconditionalPipeline(GaussianNoise(levels), scheduler)
    images = gaussian_images(4)
    metric = bits_per_image(ode_terms(path(pipeline), None, 9), images, seed=0, device=CPU)
    bits = sum(metric.metric_state[name] for name in ("latent", "volume", "bins"))
    s = levels[0]
    law = Normal((1 - s) * MEAN, float(((1 - s) ** 2 * STD**2 + s**2) ** 0.5))
    exact = -law.log_prob(placed(images)).flatten(1).mean(1) / math.log(2) + math.log2(127.5)
    torch.testing.assert_close(bits, exact, rtol=0, atol=2e-3)
    measured = ODELikelihood(pipeline, None, 9).measure(images)
    assert set(measured) == {"ode_bpd", "latent_ode_bpd", "volume_ode_bpd", "bins_ode_bpd"}
    assert measured["ode_bpd"].value == pytest.approx(float(bits.mean()))


def test_the_names_of_both_bounds():
    assert [metric_of(name) for name in ("ode_bpd", "latent_ode_bpd")] == ["ode_bpd"] * 2
    assert [metric_of(name) for name in ("bpd", "latent_bpd", "prior_bpd")] == ["bpd"] * 3
    assert metric_name("ode_bpd", None, 9, "test", True) == "bpd_test_ode"


def test_a_family_without_an_equation_is_refused():
    with pytest.raises(ValueError, match=r"ode_bpd: vae models have no .* class_conditional, flow, uncond"):
        ODELikelihood(SimpleNamespace(family="vae"), None, 9)


@pytest.mark.parametrize(
    ("timesteps", "batch_size", "name"), [(0, 5, "--bpd_timesteps"), (3, 0, "batch_size")]
)
def test_numbers_that_cannot_be_are_refused(timesteps, batch_size, name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1"):
        terms(small_flow(), timesteps, batch_size)
