"""Bits per dimension against laws whose entropy is known, torch.distributions and closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from entry import from_child
from torch import nn
from torch.distributions import Normal, kl_divergence

from trilemma.eval.bounds.bits_per_dim import bits_per_dim, bits_per_image
from trilemma.eval.bounds.gaussian import gaussian_terms, process_of
from trilemma.eval.metrics.sample_metric import NORMAL_QUANTILE
from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.diffusion.losses import log_variance_range
from trilemma.training.diffusion.process import SCHEDULES, TARGETS, noise_schedule
from trilemma.training.images.image_set import Images, to_float
from trilemma.training.loop.machine import closing_groups

EDGE = 1 + 1 / 255  # of the outermost 8-bit bin
MEAN, STD = 0.1, 0.2
CPU = torch.device("cpu")


class Known(ModelMixin, ConfigMixin):
    """A network whose prediction of x_0 is a given function; it keeps what it was asked."""

    @register_to_config
    def __init__(self, in_channels=1, out_channels=1, sample_size=4, num_class_embeds=None):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.asked = []

    def forward(self, x, timestep, class_labels=None):
        t = timestep + 1
        self.asked.append((x, t))
        process, x_t = self.schedule, x.double()
        alpha = process.abar[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - process.abar[t]).sqrt().view(-1, 1, 1, 1)
        x0 = self.predict(x_t, alpha, sigma) if class_labels is None else self.predict(class_labels)
        noise = (x_t - alpha * x0) / sigma
        output = TARGETS[self.target].encode(x0, noise, alpha, sigma)
        variance = self.fraction(t).view(-1, 1, 1, 1).expand_as(output)[:, : self.config.out_channels - 1]
        return SimpleNamespace(sample=torch.cat([output, variance], dim=1).float())


def known(
    predict,
    steps,
    *,
    target="epsilon",
    variance="fixed_small",
    fraction=torch.zeros_like,
    clip=False,
    betas=None,
    **sizes,
):
    """A pipeline of that network; `fraction`, t -> (B,), is its learned variance where it has one."""
    schedule = noise_schedule("linear", steps)
    net = Known(out_channels=2 if variance == "learned_range" else 1, **sizes)
    net.predict, net.target, net.fraction = predict, target, fraction
    scheduler = DDPMScheduler(
        num_train_timesteps=steps, beta_start=schedule.beta_start, beta_end=schedule.beta_end,
        prediction_type=target, variance_type=variance, clip_sample=clip, trained_betas=betas,
    )  # fmt: skip
    net.schedule = process_of(scheduler)
    if net.config.num_class_embeds:
        return ClassConditionalPipeline(net, scheduler)
    return UnconditionalPipeline(net, scheduler)


def small_unet(steps=10, **options):
    """A pipeline with a real network of random weights."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        add_attention=False, dropout=0.3,
    )  # fmt: skip
    schedule = noise_schedule("linear", steps)
    ends = {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    scheduler = DDPMScheduler(num_train_timesteps=steps, **ends, **options)
    return UnconditionalPipeline(net.eval(), scheduler)


def images_of(pixels, labels=None):
    pixels = np.asarray(pixels, dtype=np.uint8)
    digests = np.zeros((len(pixels), 32), np.uint8)
    return Images(pixels, digests, np.arange(len(pixels)), labels, None, name="x", split="y")


def uniform_images(count, size=4):
    return images_of(np.random.default_rng(5).integers(0, 256, (count, 1, size, size)))


def gaussian_images(count, size=4):
    x = np.random.default_rng(6).normal(MEAN, STD, (count, 1, size, size))
    return images_of(((x + 1) * 127.5).round().clip(0, 255))


def gaussian_posterior(x_t, alpha, sigma):
    """E[x_0 | x_t] where x_0 ~ N(MEAN, STD^2)."""
    return MEAN + alpha * STD**2 * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def posterior_variance_of_x0(process, t):
    """Var[x_0 | x_t], the same."""
    abar = process.abar[t]
    return STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)


def reverse_variance(process, t):
    """Var[x_{t-1} | x_t] under that law, from the joint covariance of the two."""
    before, beta = process.abar[t - 1], process.beta(t)
    marginal = before * STD**2 + 1 - before  # of x_{t-1}
    return marginal - (1 - beta) * marginal**2 / ((1 - beta) * marginal + beta)


def gaussian_bits(images):
    """-log2 of the law's mass on the pixels' bins, (N,): its mean is the images' own cross-entropy."""
    x = to_float(torch.from_numpy(images.pixels)).double()
    law = Normal(MEAN, STD)
    return -(law.cdf(x + 1 / 255) - law.cdf(x - 1 / 255)).log2().flatten(1).mean(1)


# --- laws that are known


@pytest.mark.parametrize("target", TARGETS)
def test_exact_reverse_process_attains_the_entropy(target):
    """With the true mean and variance of every step of a Gaussian law, the bound is the entropy."""
    process = noise_schedule("linear", 50).process()

    def fraction(t):
        low, high = log_variance_range(process, t)
        return 2 * (reverse_variance(process, t).log() - low) / (high - low) - 1

    learned = {"variance": "learned_range", "fraction": fraction}
    pipeline = known(gaussian_posterior, 50, target=target, sample_size=8, **learned)
    images = gaussian_images(600, 8)
    metric = bits_per_image(gaussian_terms(pipeline, None, 5000), images, seed=0, device=CPU)
    excess = metric.prior + metric.diffusion + metric.reconstruction - gaussian_bits(images)
    error = float(excess.std()) / 600**0.5
    assert error < 0.01
    assert abs(float(excess.mean())) < 3 * error
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    mass = Normal(MEAN, STD).cdf(bins + 1 / 255) - Normal(MEAN, STD).cdf(bins - 1 / 255)
    entropy = float(-(mass * mass.log2()).nansum())
    low, high = metric.compute()["bpd"].interval
    assert low < entropy < high


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("steps", "count"), [(50, 400), (1000, 60)])
def test_fixed_variances_cost_what_the_closed_form_says(variance, steps, count):
    """The expected KL of each step for a Gaussian law, summed."""
    pipeline = known(gaussian_posterior, steps, variance=variance, sample_size=8)
    process, t = pipeline.unet.schedule, torch.arange(2, steps + 1)
    q = process.posterior_variance(t)
    p = q if variance == "fixed_small" else process.beta(t)
    weight = process.abar[t - 1].sqrt() * process.beta(t) / (1 - process.abar[t])
    mean_error = weight**2 * posterior_variance_of_x0(process, t)
    expected = float((0.5 * ((p / q).log() + (q + mean_error) / p - 1)).sum()) / math.log(2)
    images = gaussian_images(count, 8)
    values = bits_per_dim(pipeline, images, batch_size=2000)
    value, (_, high) = values["diffusion_bpd"].value, values["diffusion_bpd"].interval
    error = (high - value) / NORMAL_QUANTILE
    assert error < 0.06
    assert abs(value - expected) < 3 * error
    assert values["bpd"].value > float(gaussian_bits(images).mean()) + 0.1


def evenly_in_gamma(steps):
    """betas under which log SNR falls linearly from 11 to -6."""
    abar = torch.sigmoid(-torch.linspace(-11, 6, steps, dtype=torch.float64))
    return (1 - abar / torch.cat([torch.ones(1).double(), abar[:-1]])).tolist()


def test_the_bound_nears_the_entropy_as_steps_grow():
    """From above, with variance beta_t; what is left is the decoder's: its noise is as wide as a bin."""
    images, excesses = gaussian_images(60, 8), []
    for steps in (15, 60, 240):
        learned = {"variance": "learned_range", "fraction": torch.ones_like}
        pipeline = known(gaussian_posterior, steps, betas=evenly_in_gamma(steps), sample_size=8, **learned)
        values = bits_per_dim(pipeline, images, batch_size=2000)
        excesses.append(values["bpd"].value - float(gaussian_bits(images).mean()))
    assert 0 < excesses[2] < excesses[1] < excesses[0]
    assert excesses[2] < 0.12
    assert excesses[0] > 0.3


def uniform_posterior(x_t, alpha, sigma):
    """E[x_0 | x_t] where x_0 is uniform on [-EDGE, EDGE]: the mean of a truncated normal."""
    mean, std, unit = x_t / alpha, sigma / alpha, Normal(torch.zeros((), dtype=torch.float64), 1.0)
    low, high = (-EDGE - mean) / std, (EDGE - mean) / std
    difference = unit.log_prob(low).exp() - unit.log_prob(high).exp()
    return mean + std * difference / (unit.cdf(high) - unit.cdf(low))


def test_uniform_noise_takes_eight_bits_and_no_model_less():
    images = uniform_images(40, 8)
    learned = {"variance": "learned_range", "fraction": torch.ones_like, "sample_size": 8}
    best = bits_per_dim(known(uniform_posterior, 1000, **learned), images, batch_size=1000)["bpd"]
    assert best.interval[1] > 8
    assert best.value == pytest.approx(8, abs=0.1)
    for predict in (gaussian_posterior, lambda x_t, alpha, sigma: x_t.tanh()):
        assert bits_per_dim(known(predict, 100, sample_size=8), images)["bpd"].value > 8.5
    assert bits_per_dim(small_unet(), uniform_images(10, 8))["bpd"].value > 8.5


# --- the terms


def some_network(x_t, alpha, sigma):
    return 1.3 * torch.tanh(0.7 * x_t + 0.2 * sigma)


def variance_by_definition(variance, process, t):
    """The variance table of Ho et al.'s and Nichol & Dhariwal's code, with NumPy's index t - 1."""
    beta = 1 - process.abar[1:] / process.abar[:-1]
    posterior = beta * (1 - process.abar[:-1]) / (1 - process.abar[1:])
    clipped = torch.cat([posterior[1:2], posterior[1:]])
    rows = {
        "fixed_small": clipped,
        "fixed_large": torch.cat([posterior[1:2], beta[1:]]),
        "learned_range": torch.exp(0.5 * (1 + 0.3) * beta.log() + 0.5 * (1 - 0.3) * clipped.log()),
    }
    return rows[variance][t - 1].view(-1, 1, 1, 1)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_each_term_equals_its_definition(variance, clip):
    steps, count = 20, 6
    fraction = lambda t: torch.full((len(t),), 0.3)  # noqa: E731
    betas = torch.linspace(
        1e-3, 0.15, steps
    ).tolist()  # too few for x_T to be noise, so that the prior counts
    pipeline = known(some_network, steps, variance=variance, fraction=fraction, clip=clip, betas=betas)
    pixels = np.random.default_rng(0).choice([0, 1, 77, 128, 254, 255], (count, 1, 4, 4))
    values = bits_per_dim(pipeline, images_of(pixels), batch_size=7)

    process, asked = pipeline.unet.schedule, pipeline.unet.asked
    assert max(len(t) for _, t in asked) == 7
    x_t, t = (torch.cat(parts) for parts in zip(*asked, strict=True))
    assert t.view(count, steps).tolist() == [list(range(1, steps + 1))] * count
    x0 = to_float(torch.from_numpy(pixels)).double().repeat_interleave(steps, 0)
    x_t, abar = x_t.double(), process.abar.view(-1, 1, 1, 1)
    noise = (x_t - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()
    assert noise.unique().numel() == noise.numel()
    assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
    assert abs(float(noise.std()) - 1) < 4 / noise.numel() ** 0.5

    x0_hat = some_network(x_t, abar[t].sqrt(), (1 - abar[t]).sqrt())
    x0_hat = x0_hat.clamp(-1, 1) if clip else x0_hat
    std = variance_by_definition(variance, process, t).sqrt()
    later = t > 1
    beta = 1 - abar[t] / abar[t - 1]

    def posterior(x):  # by Bayes' rule from q(x_t | x_{t-1}) and q(x_{t-1} | x_0)
        precision = (1 - beta) / beta + 1 / (1 - abar[t - 1])
        mean = ((1 - beta).sqrt() * x_t / beta + abar[t - 1].sqrt() * x / (1 - abar[t - 1])) / precision
        return Normal(mean[later], precision.rsqrt()[later])

    kl = kl_divergence(posterior(x0), Normal(posterior(x0_hat).mean, std[later])).sum() / x0[::steps].numel()
    own = x0[~later]
    off, ndtr = (own - x0_hat[~later]).abs(), lambda x: 0.5 * torch.erfc(-x / std[~later] / 2**0.5)
    mass = ndtr(1 / 255 - off) - ndtr(-1 / 255 - off)  # in the lower tail, where erfc keeps its digits
    outward = (own - x0_hat[~later]) * own > 0  # the bins at the ends reach to infinity, away from the grid
    mass = torch.where(own.abs() > 0.999, ndtr(torch.where(outward, 1 / 255 - off, 1 / 255 + off)), mass)
    last = Normal(process.abar[-1].sqrt() * own, (1 - process.abar[-1]).sqrt())
    expected = {
        "prior_bpd": kl_divergence(last, Normal(0.0, 1.0)).mean(),
        "diffusion_bpd": kl,
        "reconstruction_bpd": -mass.log().mean(),
    }
    for name, value in expected.items():
        assert values[name].value == pytest.approx(float(value) / math.log(2), rel=2e-5), name
    assert values["bpd"].value == pytest.approx(sum(values[name].value for name in expected), rel=1e-12)
    assert list(values) == ["bpd", *expected]


def per_image(pipeline, images, timesteps=None, **options):
    """(N, 3) terms of each image."""
    terms = gaussian_terms(pipeline, timesteps, options.pop("batch_size", 100))
    metric = bits_per_image(terms, images, device=CPU, **{"seed": 0, **options})
    return torch.stack([metric.prior, metric.diffusion, metric.reconstruction], dim=1)


@pytest.mark.parametrize("target", ["sample", "v_prediction"])
@pytest.mark.parametrize("clip", [True, False])
def test_the_target_makes_no_difference(target, clip):
    images = uniform_images(4)
    one, other = (
        per_image(known(some_network, 100, target=name, clip=clip), images) for name in ("epsilon", target)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_ends_of_a_learned_variance_are_the_fixed_ones():
    """-1 is fixed_small; 1 is fixed_large but for t = 1, where the learned range reaches up to beta_1."""
    images = gaussian_images(4)
    small = per_image(known(some_network, 50, variance="fixed_small"), images)
    large = per_image(known(some_network, 50, variance="fixed_large"), images)
    lowest, highest = (
        per_image(known(some_network, 50, variance="learned_range", fraction=fraction), images)
        for fraction in (lambda t: -torch.ones(len(t)), lambda t: torch.ones(len(t)))
    )
    torch.testing.assert_close(lowest, small, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(highest[:, :2], large[:, :2], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(large[:, 2], small[:, 2], rtol=0, atol=0)
    assert not torch.isclose(highest[:, 2], large[:, 2], rtol=1e-3).any()


def test_predictions_are_clipped_as_the_sampler_clips_them():
    images = gaussian_images(4)
    far, edge = (lambda x_t, alpha, sigma, c=c: torch.full_like(x_t, c) for c in (3.0, 1.0))
    clipped, plain = per_image(known(far, 50, clip=True), images), per_image(known(far, 50), images)
    torch.testing.assert_close(clipped, per_image(known(edge, 50), images), rtol=1e-4, atol=1e-6)
    assert (plain[:, 1:] > clipped[:, 1:]).all()


# --- Monte Carlo


@pytest.mark.parametrize("timesteps", [1, 3, 4, 10, 18, 19])
def test_systematic_times_take_every_t_equally_often(timesteps):
    terms = gaussian_terms(known(some_network, 20), timesteps, 8)
    starts = [SimpleNamespace(integers=lambda high, r=r: range(high)[r]) for r in range(-19, 0)]
    times = np.stack([terms._times(start) for start in starts])
    assert (times[:, 0] == 1).all()
    assert all(len(set(row)) == timesteps + 1 for row in times)
    assert np.bincount(times[:, 1:].flatten(), minlength=21).tolist() == [0, 0] + [timesteps] * 19


def test_monte_carlo_agrees_with_the_full_sum_within_its_stated_error():
    """On copies of one image all spread is noise and times: the intervals cover as often as they say."""
    steps, copies, repeats = 50, 40, 60
    pipeline = known(some_network, steps)
    copied = images_of(np.repeat(uniform_images(1).pixels, copies, axis=0))
    full = np.mean([bits_per_dim(pipeline, copied, seed=s, batch_size=2000)["bpd"].value for s in range(12)])
    options = {"timesteps": 4, "batch_size": 200}
    estimates = [bits_per_dim(pipeline, copied, seed=100 + s, **options)["bpd"] for s in range(repeats)]
    covered = np.mean([e.interval[0] < full < e.interval[1] for e in estimates])
    assert 0.85 <= covered <= 1  # 0.95 of 60: five standard deviations down
    values = np.array([e.value for e in estimates])
    stated = np.mean([e.interval[1] - e.interval[0] for e in estimates]) / 2 / NORMAL_QUANTILE
    assert abs(values.mean() - full) < 4 * stated / repeats**0.5
    assert 0.7 < values.std() / stated < 1.4


def test_monte_carlo_of_all_timesteps_is_the_full_sum():
    pipeline, images = known(some_network, 20), uniform_images(3)
    assert bits_per_dim(pipeline, images, timesteps=19) == bits_per_dim(pipeline, images)


def test_interval_is_of_the_mean_over_images():
    images = gaussian_images(30)
    values = per_image(known(some_network, 20), images).sum(1)
    result = bits_per_dim(known(some_network, 20), images)["bpd"]
    half = 1.959964 * values.numpy().std(ddof=1) / 30**0.5
    assert result.value == pytest.approx(float(values.mean()), rel=1e-12)
    assert result.interval == pytest.approx((result.value - half, result.value + half), rel=1e-12)
    assert result.n == 30


# --- who computes what


@pytest.mark.parametrize("timesteps", [None, 3])
def test_batches_and_company_change_no_image(timesteps):
    pipeline, images = small_unet(), uniform_images(7, 8)
    whole = per_image(pipeline, images, timesteps, batch_size=64)
    for batch_size in (1, 7, 20):
        again = per_image(pipeline, images, timesteps, batch_size=batch_size)
        torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-7)
    some = per_image(pipeline, images, timesteps, indices=[5, 2])
    torch.testing.assert_close(some, whole[[5, 2]], rtol=1e-5, atol=1e-7)
    assert not torch.isclose(per_image(pipeline, images, timesteps, seed=1)[:, 1:], whole[:, 1:]).any()


def shares(pipeline, images, world):
    terms = gaussian_terms(pipeline, None, 30)
    return [bits_per_image(terms, images, seed=0, device=CPU, rank=r, world=world) for r in range(world)]


@pytest.mark.parametrize("world", [2, 3, 9])
def test_shares_add_up(world):
    pipeline, images = known(some_network, 20), uniform_images(23)
    whole, parts = shares(pipeline, images, 1)[0], shares(pipeline, images, world)
    assert [int(part.seen.sum()) for part in parts] == [len(range(23)[r::world]) for r in range(world)]
    first = parts[0]
    for part in parts[1:]:
        for name, state in first.metric_state.items():
            state += part.metric_state[name]
    for name, value in whole.compute().items():
        assert first.compute()[name].value == pytest.approx(value.value, rel=1e-9), name
        assert first.compute()[name].interval == pytest.approx(value.interval, rel=1e-9), name


def one_rank(rank, world, path, queue):
    with closing_groups():
        _one_rank(rank, world, path, queue)


def _one_rank(rank, world, path, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    accelerator = SimpleNamespace(process_index=rank, num_processes=world)
    queue.put(bits_per_dim(known(some_network, 20), uniform_images(3), accelerator=accelerator))
    dist.barrier()


@pytest.mark.distributed
def test_two_processes_say_what_one_says(tmp_path):
    context = mp.get_context("fork")  # spares the imports
    queue = context.Queue()
    ranks = [context.Process(target=one_rank, args=(r, 2, tmp_path / "store", queue)) for r in range(2)]
    for process in ranks:
        process.start()
    one, other = from_child(queue, *ranks), from_child(queue, *ranks)
    for process in ranks:
        process.join()
    alone = bits_per_dim(known(some_network, 20), uniform_images(3))
    assert one == other
    for name, value in alone.items():
        assert one[name].value == pytest.approx(value.value, rel=1e-9)


def test_class_labels_stay_with_their_images():
    """The class tells the image exactly, so the diffusion terms vanish if every row has its own label."""
    labels = np.array([2, 0, 1, 1, 0])
    levels = torch.tensor([0.0, 100.0, 255.0])
    images = images_of(np.broadcast_to(levels[labels].view(-1, 1, 1, 1), (5, 1, 4, 4)), labels)

    def predict(class_labels):
        return to_float(levels[class_labels]).double().view(-1, 1, 1, 1)

    pipeline = known(predict, 20, target="sample", num_class_embeds=4)
    pipeline.unet.predict = lambda asked: predict(asked).expand(-1, 1, 4, 4)
    for timesteps in (None, 3):
        values = bits_per_dim(pipeline, images, timesteps=timesteps, batch_size=9)
        assert values["diffusion_bpd"].value == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="--label_column"):
        bits_per_dim(pipeline, images_of(images.pixels))
    with pytest.raises(ValueError, match="3 classes; x has a label 3"):
        bits_per_dim(pipeline, images_of(images.pixels, labels + 1))


def test_a_saved_model_has_the_same_bits(tmp_path):
    pipeline = small_unet(prediction_type="v_prediction", variance_type="fixed_large")
    images = uniform_images(3, 8)
    before = bits_per_dim(pipeline, images)
    pipeline.save_pretrained(tmp_path)
    assert bits_per_dim(DDPMPipeline.from_pretrained(tmp_path), images) == before
    assert bits_per_dim(pipeline.with_sampler("ddim"), images) == before


def test_dropout_is_off_and_comes_back():
    pipeline, images = small_unet(), uniform_images(3, 8)
    expected = bits_per_dim(pipeline, images)
    pipeline.unet.train()
    assert bits_per_dim(pipeline, images) == expected
    assert pipeline.unet.training


def test_a_network_in_half_precision_is_fed_its_dtype():
    pipeline, images = small_unet(), uniform_images(3, 8)
    full = bits_per_dim(pipeline, images)
    half = bits_per_dim(pipeline.to(torch.bfloat16), images)
    for name, value in full.items():
        assert half[name].value == pytest.approx(value.value, rel=0.05), name


# --- schedules


@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_process_is_the_schedulers(name, steps):
    scheduler = DDPMScheduler(num_train_timesteps=steps, beta_schedule=name, beta_end=0.03)
    process = process_of(scheduler)
    assert process.abar.dtype == torch.float64
    assert process.abar[0] == 1
    torch.testing.assert_close(process.abar[1:].float(), scheduler.alphas_cumprod, rtol=2e-4, atol=1e-8)


def test_trained_betas_keep_their_digits(tmp_path):
    gamma = torch.linspace(-13.3, 5, 100, dtype=torch.float64)
    abar = torch.cat([torch.ones(1).double(), torch.sigmoid(-gamma)])
    betas = (1 - abar[1:] / abar[:-1]).tolist()
    DDPMScheduler(num_train_timesteps=100, trained_betas=betas).save_pretrained(tmp_path)
    scheduler = DDPMScheduler.from_pretrained(tmp_path)
    process = process_of(scheduler)
    torch.testing.assert_close(-process.snr(torch.arange(1, 101)).log(), gamma, rtol=0, atol=1e-6)
    single = scheduler.alphas_cumprod
    assert ((1 - single).log() - single.log() - gamma).abs().max() > 1e-3  # why it is not used


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas and num_train_timesteps=10"),
        ({"beta_schedule": "laplace"}, "must be one of linear.*got 'laplace'"),
        ({"variance_type": "learned"}, "must be one of fixed_small, .*; got 'learned'"),
        ({"variance_type": "learned_range"}, "must have 2 outputs; got 1"),
        ({"thresholding": True}, "thresholding"),
    ],
)
def test_what_has_no_bound_is_refused(options, message):
    pipeline = small_unet()
    pipeline.register_modules(scheduler=DDPMScheduler(num_train_timesteps=10, **options))
    with pytest.raises(ValueError, match=message):
        bits_per_dim(pipeline, uniform_images(2, 8))


def test_wrong_arguments_are_refused():
    pipeline, images = small_unet(), uniform_images(2, 8)
    for timesteps in (0, 10):
        with pytest.raises(ValueError, match=r"timesteps must be in 1..9, or None for all"):
            bits_per_dim(pipeline, images, timesteps=timesteps)
    with pytest.raises(ValueError, match="batch_size"):
        bits_per_dim(pipeline, images, batch_size=0)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\); those of x are \(1, 4, 4\)"):
        bits_per_dim(pipeline, uniform_images(2, 4))


def test_a_bound_that_is_not_finite_is_an_error():
    pipeline = known(lambda x_t, alpha, sigma: x_t * float("nan"), 10)
    with pytest.raises(ValueError, match="diffusion_bpd is not finite for 2 images, the first is 0"):
        bits_per_dim(pipeline, uniform_images(2))
