"""Points of the plane: data and their exact law, energy distance, samplers and bounds against the law."""

import json
import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from entry import run
from matplotlib.figure import Figure
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from trilemma.eval.bounds.bits_per_dim import bits_per_dim
from trilemma.eval.bounds.precise import precise_bpd
from trilemma.eval.features.extractors import load_extractor
from trilemma.eval.metrics.build import build_metrics
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.plots import points as point_plots
from trilemma.eval.plots.process import process
from trilemma.eval.plots.sheets import sheet
from trilemma.eval.scoring.reference import ReferenceStatistics
from trilemma.eval.scoring.yardsticks import Reference, pick_extractor, score, yardsticks
from trilemma.pipelines.networks.vdm_model import Gamma
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.pipelines.vdm import VDMPipeline, alpha_sigma
from trilemma.training.diffusion.process import noise_schedule
from trilemma.training.images.batches import Order, batches
from trilemma.training.images.image_set import hold_out, load_images, to_float, to_uint8
from trilemma.training.images.points import MIXTURE, POINTS, SHAPE, Mixture, MixtureDenoiser, picture
from trilemma.training.loop.records import RunLog
from trilemma.training.options.groups import DataConfig

SAMPLES = 2000
GRID = torch.cartesian_prod(torch.arange(256), torch.arange(256)).to(torch.uint8).view(-1, *SHAPE)


@cache
def grid_bpd():
    """Of every point of the grid."""
    return MIXTURE.true_bpd(GRID)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def points(name, split="train"):
    images = load_images(DataConfig(dataset_name=name), split)
    return images.__getitems__(range(len(images)))[0]


# The data


@pytest.mark.parametrize("name", POINTS)
def test_points_are_tiny_images_and_always_the_same(name):
    train, test = (load_images(DataConfig(dataset_name=name), split) for split in ("train", "test"))
    assert (train.channels, train.resolution, len(train)) == (2, 1, POINTS[name].splits["train"])
    assert train.fingerprint == load_images(DataConfig(dataset_name=name)).fingerprint != test.fingerprint
    x0 = to_float(points(name))
    assert x0.shape == (len(train), *SHAPE)
    assert 0.8 < x0.abs().max() < 0.99  # fills the square and leaves a margin
    assert (train.labels is None) == (name == "swirl")


def test_the_swirl_is_a_spiral_with_noise():
    """A point t (cos t, sin t) with noise n lies, to first order, at the radius angle + 2 pi k of its arm."""
    x, y = (to_float(points("swirl")).double().flatten(1) * 17).unbind(1)
    radius, angle = torch.hypot(x, y), torch.atan2(y, x)
    off = (radius - angle + math.pi) % (2 * math.pi) - math.pi
    assert abs(float(off.mean())) < 4 * 0.5 / 1024**0.5 + 0.02
    # Radial noise, and tangential noise over the radius: 0.5 (1 + 1 / t^2)^0.5.
    assert 0.48 < float(off.std()) < 0.54
    assert 1.5 * math.pi - 2 < float(radius.min()) < float(radius.max()) < 4.5 * math.pi + 2


@pytest.mark.parametrize(
    "option",
    [{"channels": 1}, {"resolution": 8}, {"random_flip": True}, {"label_column": "none"}],
    ids=lambda option: next(iter(option)),
)
def test_options_of_images_are_errors(option):
    with pytest.raises(ValueError, match=f"--{next(iter(option))} is for images; swirl has points"):
        load_images(DataConfig(dataset_name="swirl", **option))


def test_what_is_done_to_images_can_be_done_to_points():
    images = load_images(DataConfig(dataset_name="mixture", classes=("1", "3"), max_train_images=500))
    assert images.class_names == ("1", "3")
    assert images.points
    assert set(images.labels) == {0, 1}
    rest, held_out = hold_out(images, 100, seed=0)
    assert (len(rest), len(held_out)) == (400, 100)
    x0, labels = next(batches(rest, Order(32, seed=0), device="cpu", num_workers=1))
    assert (x0.shape, x0.dtype, labels.shape) == ((32, *SHAPE), torch.float32, (32,))
    with pytest.raises(ValueError, match="mixture has no split 'validation'"):
        load_images(DataConfig(dataset_name="mixture"), "validation")


# The law of the mixture


def continuous_law(alpha=1.0, sigma=0.0):
    """alpha x_0 + sigma noise, as torch has it."""
    weights, means, stds = (
        torch.tensor(values, dtype=torch.float64) for values in (MIXTURE.weights, MIXTURE.means, MIXTURE.stds)
    )
    parts = Independent(Normal(alpha * means, ((alpha * stds) ** 2 + sigma**2).sqrt()), 1)
    return MixtureSameFamily(Categorical(weights), parts)


def test_the_law_of_the_grid_is_a_law_and_that_of_the_points():
    bpd = grid_bpd()
    mass = 2 ** (-2 * bpd)
    assert_close(mass.sum(), torch.ones_like(mass.sum()))
    entropy = (mass * bpd).sum()
    for split in ("train", "test"):
        found = MIXTURE.true_bpd(points("mixture", split))
        assert abs(found.mean() - entropy) < 4 * found.std() / len(found) ** 0.5
    # Cells are small against the components: their mass is nearly density times area.
    density = continuous_law().log_prob(to_float(GRID).double().flatten(1)).exp() / 127.5**2
    assert_close(mass, density, rtol=0, atol=0.02 * float(mass.max()))


def test_the_labels_are_the_components():
    images = load_images(DataConfig(dataset_name="mixture"))
    x0 = to_float(points("mixture")).double().flatten(1)
    for mode, weight in enumerate(MIXTURE.weights):
        own = x0[torch.from_numpy(images.labels == mode)]
        assert abs(len(own) / len(x0) - weight) < 4 * (weight * (1 - weight) / len(x0)) ** 0.5
        std = torch.tensor(MIXTURE.stds[mode], dtype=torch.float64)
        off = (own.mean(0) - torch.tensor(MIXTURE.means[mode], dtype=torch.float64)).abs()
        assert (off < 4 * std / len(own) ** 0.5).all()
        assert_close(own.std(0), std, rtol=0.1, atol=0)


@pytest.mark.parametrize("alpha", [0.05, 0.7, 0.9999])
def test_expected_noise_is_the_score(alpha):
    """E[noise | x_t] = -sigma grad log p(x_t) (Tweedie's formula), by automatic differentiation."""
    sigma = (1 - alpha**2) ** 0.5
    x_t = torch.randn(50, 2, generator=rng(), dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(continuous_law(alpha, sigma).log_prob(x_t).sum(), x_t)
    levels = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (alpha, sigma))
    found = MIXTURE.expected_noise(x_t.detach().view(-1, *SHAPE), *levels)
    assert_close(found.flatten(1), -sigma * score)


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.9])
def test_expected_noise_on_the_grid_is_the_sum_over_all_its_points(sigma):
    alpha = (1 - sigma**2) ** 0.5
    x0 = points("mixture", "test")[:8].double() / 127.5 - 1
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=rng(), dtype=torch.float64)
    log_prior = -2 * math.log(2) * grid_bpd()
    atoms = GRID.double().flatten(1) / 127.5 - 1
    evidence = log_prior - 0.5 * ((x_t.flatten(1)[:, None] - alpha * atoms) / sigma).square().sum(2)
    expected = (x_t.flatten(1) - alpha * evidence.softmax(1) @ atoms) / sigma
    levels = [torch.full((8, 1, 1, 1), value, dtype=torch.float64) for value in (alpha, sigma)]
    found = MIXTURE.expected_noise_on_grid(x_t, *levels).flatten(1)
    assert_close(found, expected)
    # Only noise finer than the grid shows it.
    apart = (found - MIXTURE.expected_noise(x_t, *levels).flatten(1)).abs().max()
    assert (apart > 0.5) == (sigma < 1 / 255)


# The energy distance


def statistics_of(features):
    features = features.float()
    return ReferenceStatistics(SimpleNamespace(mean=features.mean(0)), None, features=features)


def energy(samples, reference) -> Measurement:
    """Of features (N, D) against (M, D)."""
    metric = build_metrics(["energy"], statistics_of(reference), len(samples))["energy"]
    for index in torch.arange(len(samples)).split(997):
        metric.update(index, samples[index].float())
    return metric.compute()["energy"]


@pytest.mark.parametrize("dimension", [1, 2, 40])
def test_energy_is_its_definition(dimension):
    x = torch.randn(70, dimension, generator=rng(1)).double().round(decimals=3).float().double()
    y = (0.3 + 1.5 * torch.randn(90, dimension, generator=rng(2))).float().double()

    def mean_distance(a, b, pairs):
        return float((a[:, None] - b).norm(dim=2).sum()) / pairs

    expected = 2 * mean_distance(x, y, 70 * 90) - mean_distance(x, x, 70 * 69) - mean_distance(y, y, 90 * 89)
    found = energy(x, y)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.floor == 0


def test_energy_is_that_of_two_normal_laws_within_its_interval():
    """E|z| for z ~ N(m, s^2) is that of the folded normal."""

    def folded(mean, std):
        tail = math.erf(mean / (std * 2**0.5))
        return std * (2 / math.pi) ** 0.5 * math.exp(-(mean**2) / (2 * std**2)) + mean * tail

    x = 1 + 2 * torch.randn(2000, 1, generator=rng(1), dtype=torch.float64)
    y = torch.randn(4000, 1, generator=rng(2), dtype=torch.float64)
    truth = 2 * folded(1, 5**0.5) - folded(0, 8**0.5) - folded(0, 2**0.5)
    low, high = energy(x, y).interval
    assert low < truth < high
    assert high - low < truth


def test_energy_of_one_law_is_zero_within_its_interval():
    """Without bias, and the interval holds where a plug-in estimate would be positive by construction."""
    found = [
        energy(torch.randn(400, 2, generator=rng(k)), torch.randn(1000, 2, generator=rng(100 + k)))
        for k in range(20)
    ]
    values = torch.tensor([one.value for one in found])
    assert abs(values.mean()) < 4 * values.std() / 20**0.5
    assert sum(one.interval[0] <= 0 <= one.interval[1] for one in found) >= 16


@pytest.mark.parametrize("name", POINTS)
def test_points_are_scored_as_they_are(name, tmp_path):
    """Samples of the very law, by the path that every evaluation takes."""
    images = load_images(DataConfig(dataset_name=name))
    reference, accelerator = Reference(images.subset(range(1000))), Accelerator(cpu=True)
    assert pick_extractor(reference, tmp_path) == "pixels"
    sticks = yardsticks(["energy", "fd"], "pixels", reference, accelerator, tmp_path)
    samples = points(name, "test")[:1000]
    scores = score(sticks, [(torch.arange(1000), samples, None)], 1000, accelerator)[sticks[0]]
    low, high = scores["energy"].interval
    # Two samples of one law: zero within the errors of both, of which the interval holds the first.
    assert 2 * low - high < 0 < 2 * high - low
    assert load_extractor("pixels", reference=images).dim == 2


# Samplers with a perfect network


def oracle(steps=1000):
    """A pipeline whose network is exact; x_0 is clipped, as in training."""
    schedule = noise_schedule("linear", steps)
    scheduler = DDPMScheduler(
        num_train_timesteps=steps, beta_start=schedule.beta_start, beta_end=schedule.beta_end,
        clip_sample=True, timestep_spacing="trailing", variance_type="fixed_large",
    )  # fmt: skip
    return quiet(UnconditionalPipeline(MixtureDenoiser(MIXTURE, schedule.process()), scheduler))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class VDMOracle(ModelMixin, ConfigMixin):
    """The exact noise in the place of a `VDMModel`: of the mixture, or of the grid that its points are on."""

    def __init__(self, mixture, expected_noise, gamma_min=-13.3, gamma_max=5.0):
        super().__init__()
        self.register_to_config(in_channels=2, sample_size=1, num_class_embeds=None)
        self.gamma, self.expected_noise = Gamma("linear", gamma_min, gamma_max), expected_noise

    def forward(self, z, gamma, class_labels=None):
        return self.expected_noise(z, *alpha_sigma(gamma, z)).float()


def vdm_oracle(mixture=MIXTURE, **options):
    return quiet(VDMPipeline(VDMOracle(mixture, mixture.expected_noise), **options))


def draw(pipeline, steps, count=SAMPLES):
    made = pipeline(batch_size=count, generator=rng(), num_inference_steps=steps, output_type="pt").images
    return to_uint8(made)


def shares(samples):
    """Share of each component among samples, by its probability given the point."""
    x = to_float(samples).double().flatten(1)
    law = continuous_law()
    log_joint = law.component_distribution.log_prob(x[:, None]) + law.mixture_distribution.logits
    return log_joint.softmax(1).mean(0)


PIPELINES = {
    "ddpm": (oracle, (10, 25, 500)),
    "ddim": (lambda: oracle().with_sampler("ddim"), (10, 25, 250)),
    "dpmsolver++": (lambda: oracle().with_sampler("dpmsolver++"), (10, 25, 250)),
    "ancestral": (vdm_oracle, (5, 15, 500)),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_samplers_converge_to_the_law(name):
    """The energy distance falls as steps grow, to zero within its 95% interval; then every component has its
    weight within 4 standard errors, so that clipping x_0 to the square does no harm either.
    """
    make, all_steps = PIPELINES[name]
    pipeline, law = quiet(make()), points("mixture", "test")[:4000].flatten(1)
    found = []
    for steps in all_steps:
        samples = draw(pipeline, steps)
        found.append(energy(samples.flatten(1), law))
    values = [one.value for one in found]
    assert values[0] > values[1] > values[2]
    assert found[-1].interval[0] < 0 < found[-1].interval[1] < found[0].interval[0]
    weights = torch.tensor(MIXTURE.weights, dtype=torch.float64)
    assert ((shares(samples) - weights).abs() < 4 * (weights * (1 - weights) / SAMPLES).sqrt()).all()


@pytest.mark.parametrize("steps", [3, 30])
def test_the_shortcut_chain_has_the_law_of_its_recursion(steps):
    """For one Gaussian N(m, s^2), x0_hat = m + g (z - alpha m) with g = alpha s^2 / (alpha^2 s^2 + sigma^2):
    a step takes the variance v of x0_hat to g^2 (alpha^2 v + sigma^2), which is less than s^2, and less with
    every step. A network that is perfect for the bound is not the one that this chain wants.
    """
    std = 0.3
    law = Mixture((1.0,), ((0.1, -0.2),), ((std, std),))
    gamma = Gamma("linear", -13.3, 5.0)(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    variance = 0.0  # of x0_hat; at the start z is pure noise, as though the mean of x0 were known and 0
    for k in range(steps):
        alpha2, sigma2 = float(gamma[k].neg().sigmoid()), float(gamma[k].sigmoid())
        gain2 = alpha2 * std**4 / (alpha2 * std**2 + sigma2) ** 2
        variance = gain2 * (1.0 if k == 0 else alpha2 * variance + sigma2)
    assert variance < std**2
    made = quiet(vdm_oracle(law, chain="shortcut"))(
        batch_size=20_000, generator=rng(), num_inference_steps=steps, output_type="pt"
    ).images
    x = made.double().flatten(1) * 2 - 1
    assert_close(x.var(0), torch.full((2,), variance, dtype=torch.float64), rtol=0.05, atol=1e-4)
    assert_close(x.mean(0), torch.tensor([0.1, -0.2], dtype=torch.float64), rtol=0, atol=0.02)


# Bounds with a perfect network


def test_bound_of_the_exact_denoiser_is_above_the_truth_and_near():
    """Above the true negative log-likelihood, and within 0.05 bits per dimension, each by 3 standard errors.

    Time starts where the noise hides the grid (gamma = -9, sigma of 1.4 cells), since this exact denoiser is
    that of the mixture before it was rounded.
    """
    pixels = points("mixture", "test")[:3000]
    net = VDMOracle(MIXTURE, MIXTURE.expected_noise, gamma_min=-9.0)
    bound, error = precise_bpd(net, to_float(pixels), times=400)
    gap = bound - float(MIXTURE.true_bpd(pixels).mean())
    assert 3 * error < gap < 0.05 - 3 * error
    # Without the regression: the same within its much larger error.
    images = load_images(DataConfig(dataset_name="mixture"), "test")
    pipeline = quiet(VDMPipeline(net))
    measured = bits_per_dim(pipeline, images, timesteps=16, batch_size=4096, indices=range(3000))["bpd"]
    assert measured.interval[0] < bound < measured.interval[1]


def test_bound_of_evaluation_agrees_with_the_truth():
    """`--metrics bpd` with the exact denoiser of the grid, from the least noise that training starts with."""
    images = load_images(DataConfig(dataset_name="mixture"), "test")
    pipeline = quiet(VDMPipeline(VDMOracle(MIXTURE, MIXTURE.expected_noise_on_grid)))
    measured = bits_per_dim(pipeline, images, timesteps=32, batch_size=512, indices=range(96))
    truth = float(MIXTURE.true_bpd(points("mixture", "test")[:96]).mean())
    low, high = measured["bpd"].interval
    assert low < truth + 0.05
    assert truth < high
    assert measured["reconstruction_bpd"].value < 0.1
    assert measured["prior_bpd"].value < 0.01


# Pictures and runs


def test_a_picture_has_a_dot_for_each_point():
    corners = torch.tensor([[0, 0], [255, 0], [255, 0]], dtype=torch.uint8).view(-1, *SHAPE)
    drawn = picture(corners)
    assert (drawn.shape, drawn.dtype) == ((1, 512, 512), torch.uint8)
    assert (drawn[0, -1, 0], drawn[0, -1, -1], drawn[0, 0, 0], drawn[0, 256, 256]) == (0, 0, 255, 255)
    assert sheet(corners, points=True).size == (512, 512)
    states = corners[:, None].expand(-1, 4, *SHAPE)
    figure = process(states, states, [0, 0.3, 0.6, 1], points=True)
    assert len(figure.axes) == 2 * 4  # all points of a state in one picture


def test_trackers_see_points_as_a_picture():
    shown = []
    tracker = SimpleNamespace(name="tensorboard", log_images=lambda images, **_: shown.append(images))
    log = SimpleNamespace(accelerator=SimpleNamespace(trackers=[tracker]), _track=lambda call: call())
    RunLog.images(log, "samples", points("swirl"), 1, points=True)
    assert shown[0]["samples"].shape == (1, 512, 512, 3)


def test_plots_of_points_are_figures():
    data, pipeline = points("mixture")[:50], oracle(steps=50)
    states = point_plots.chain(pipeline, range(6), 10)
    assert states.shape == (11, 6, *SHAPE)
    made = pipeline(seeds=range(6), num_inference_steps=10, trajectory=11, output_type="pt")
    assert_close(made.trajectory, (states / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-6)
    levels = [torch.full((1, 1, 1, 1), 0.5**0.5)] * 2
    for figure in (
        point_plots.scatters({"a": data, "b": data}, data),
        point_plots.ways({"a": states}, data),
        point_plots.fields({"a": lambda x_t: MIXTURE.expected_noise(x_t, *levels)}, data),
    ):
        assert isinstance(figure, Figure)


def test_a_run_on_points_is_evaluated_as_any_other(tmp_path):
    """From training to `eval/evaluate.py`, by the flags that images have."""
    net = {
        "_class_name": "UNet2DModel", "block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "add_attention": False,
    }  # fmt: skip
    (tmp_path / "net.json").write_text(json.dumps(net))
    out, cache = tmp_path / "out", ("--cache_dir", str(tmp_path / "cache"))
    flags = "--dataset_name swirl --max_train_steps 4 --train_batch_size 32 --ddpm_num_steps 50"
    flags += " --ddpm_num_inference_steps 5 --eval_batch_size 30 --validation_size 24 --eval_steps 2"
    flags += " --eval_metrics energy fd --eval_num_samples 60 --lr_warmup_steps 1 --sample_steps 2"
    places = ("--model_config_name_or_path", str(tmp_path / "net.json"), "--output_dir", str(out))
    run("training/train_unconditional.py", *flags.split(), *places, *cache)
    run("eval/evaluate.py", "--model", str(out), "--metrics", "energy", "bpd", "--num_samples", "50",
        "--bpd_images", "4", "--bpd_timesteps", "2", *cache)  # fmt: skip
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines if line["metric"] == "energy_pixels"] == [60, 60, 50]
    assert {line["metric"] for line in lines} > {"fd_pixels", "bpd_train", "bpd_test"}
    assert {"samples.png", "process.png", "best"} <= {path.name for path in out.iterdir()}
