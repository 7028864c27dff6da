"""The variational autoencoder: the mass of each level, its bound by integration over codes, whole runs."""

import json
import math
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from entry import environment, run, start, two_ranks
from PIL import Image
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from trilemma.eval.bounds.bits_per_dim import bits_per_dim
from trilemma.eval.bounds.vae import terms as bound_terms
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.pipelines.networks.vae_model import MIN_LOG_SCALE, VAEModel
from trilemma.pipelines.vae import VAEPipeline, arc
from trilemma.training.families.vae import PRESETS, VAEConfig
from trilemma.training.images.image_set import Images, to_float, to_uint8
from trilemma.training.networks.init_from import take_weights
from trilemma.training.objectives.vae import VAE, bound, discretised_logistic_nll
from trilemma.training.options.command_line import parse

SCRIPT = "training/train_vae.py"
LEVELS = torch.arange(256) / 127.5 - 1


def make_net(channels=1, **config):
    torch.manual_seed(0)
    return VAEModel(8, channels, **({"latent_dim": 3, "block_out_channels": (8, 8)} | config)).eval()


def make_pipeline(**config):
    pipe = VAEPipeline(make_net(**config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def grey_levels(count, channels=1, size=8):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, channels, size, size)))


def images_of(pipe, seeds, **options):
    return pipe(seeds=seeds, output_type="pt", **options).images


# The likelihood of pixels


def mass(location, log_scale):
    """Of the 256 levels, by differences of the logistic law's distribution function in float64."""
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 127.5 - 1
    edges[0], edges[-1] = -torch.inf, torch.inf
    cumulative = torch.sigmoid((edges - location) / math.exp(log_scale))
    return cumulative.diff()


@pytest.mark.parametrize("location", [-100.0, -1.0, -0.5, 0.0123, 0.9999, 1.0, 7.0])
@pytest.mark.parametrize("log_scale", [MIN_LOG_SCALE, -5.3, -4.0, -2.0, 0.0, 10.0, 60.0])
def test_the_mass_of_all_levels_is_one(location, log_scale):
    nll = discretised_logistic_nll(LEVELS, torch.tensor(location), torch.tensor(log_scale))
    assert nll.dtype == torch.float32
    assert nll.isfinite().all()
    assert_close(nll.neg().double().exp().sum(), torch.ones(()).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("location", "log_scale"), [(0.1, -2.0), (-1.2, -4.0), (0.9, 0.5), (0.0, 3.0)])
def test_the_mass_of_each_level(location, log_scale):
    nll = discretised_logistic_nll(LEVELS, torch.tensor(location), torch.tensor(log_scale))
    assert_close(nll.neg().double().exp(), mass(location, log_scale), atol=1e-8, rtol=1e-4)


def test_a_level_far_off_keeps_its_likelihood_and_its_gradient():
    """log of the mass where the mass itself is 0 in float64: minus the distance in scales."""
    location = torch.tensor([0.9], requires_grad=True)
    nll = discretised_logistic_nll(torch.tensor([-0.9]), location, torch.tensor([MIN_LOG_SCALE]))
    steps = (1.8 - 1 / 255) * math.exp(-MIN_LOG_SCALE)  # from the location to the bin's nearer edge
    assert steps > 745
    assert_close(nll, torch.tensor([steps]), rtol=0.01, atol=0)
    nll.backward()
    assert_close(location.grad, torch.tensor([math.exp(-MIN_LOG_SCALE)]), rtol=1e-3, atol=0)


def test_scales_stay_above_their_bound_and_go_on_learning():
    net = make_net()
    torch.nn.init.constant_(net.decoder.conv_out.bias, -20.0)
    _, log_scale = net.decode(torch.randn(2, 3))
    assert (log_scale >= MIN_LOG_SCALE).all()
    log_scale.sum().backward()
    assert (net.decoder.conv_out.bias.grad[1:] > 0).all()


# The bound


def test_the_divergence_is_that_of_torch():
    mean, log_variance = torch.randn(2, 5, 4)
    decode = lambda z: (torch.zeros(5, 1, 1, 1), torch.zeros(5, 1, 1, 1))  # noqa: E731
    kl, _ = bound(lambda x: (mean, log_variance), decode, torch.zeros(5, 1, 1, 1), torch.randn(5, 4))
    q = Normal(mean, (0.5 * log_variance).exp())
    assert_close(kl, kl_divergence(q, Normal(0.0, 1.0)))


def test_the_bound_by_integration_over_a_code_of_one_number():
    """log p(x) - E[bound] = KL(q(z | x) || p(z | x)), each side by quadrature in float64."""
    x0, mean, std = LEVELS[[140, 40]].view(1, 1, 1, 2), 0.4, 0.3

    def decode(z):
        location = torch.stack([torch.sin(2 * z[:, 0]), 0.5 * z[:, 0] - 0.7], dim=1)
        return location.view(-1, 1, 1, 2), torch.full((len(z), 1, 1, 2), -1.5)

    def encode(x):
        return torch.full((len(x), 1), mean), torch.full((len(x), 1), 2 * math.log(std))

    def log_likelihood(z):
        location = decode(z[:, None].double())[0].flatten(1)
        return sum(mass(location[:, i : i + 1], -1.5)[:, level].log() for i, level in ((0, 140), (1, 40)))

    # E over z ~ q of the terms, by the nodes of Gauss and Hermite in the place of draws of the noise.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    noise, weights = torch.from_numpy(nodes).float()[:, None], torch.from_numpy(weights / weights.sum())
    kl, reconstruction = bound(encode, decode, x0.expand(60, 1, 1, 2), noise)
    elbo = -(kl.sum(1).double() + reconstruction.double()) @ weights

    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    joint = Normal(0.0, 1.0).log_prob(z) + log_likelihood(z)
    evidence = torch.trapezoid(joint.exp(), z).log()
    log_q = Normal(mean, std).log_prob(z)
    gap = torch.trapezoid(log_q.exp() * (log_q - (joint - evidence)), z)
    assert gap > 0.01
    assert elbo < evidence
    assert_close(evidence - elbo, gap, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("beta", "free_bits"), [(1.0, 0.0), (4.0, 0.0), (1.0, 0.3), (0.5, 0.3)])
def test_beta_and_free_bits(beta, free_bits):
    """The loss has them, the logged bound has not; what is free gets no gradient."""
    net, x0 = make_net(), to_float(grey_levels(16))
    with torch.no_grad():  # of the three dimensions one is unused, one used a little, one much
        net.to_code.weight[[0, 3]] = 0.0
        net.to_code.bias[:] = torch.tensor([0.0, 0.5, 3.0, 0.0, 0.0, 0.0])
    losses, logs = VAE(net, VAEConfig(beta=beta, free_bits=free_bits))(
        x0, None, torch.Generator().manual_seed(0)
    )
    noise = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    kl, reconstruction = bound(net.encode, net.decode, x0, noise)
    per_dimension = kl.mean(0)
    assert per_dimension[0] == 0
    assert 0 < per_dimension[1] < 0.3 < per_dimension[2]
    unit = 64 * math.log(2)
    wanted = reconstruction.mean() + beta * per_dimension.clamp(min=free_bits).sum()
    assert_close(losses.mean(), wanted / unit)
    assert_close(logs["prior_bpd"], kl.sum(1) / unit)
    assert_close(logs["reconstruction_bpd"], reconstruction / unit)
    assert_close(logs["bpd"], (kl.sum(1) + reconstruction) / unit)
    assert not any(value.requires_grad for value in logs.values())
    (gradient,) = torch.autograd.grad(losses.mean() - reconstruction.mean() / unit, net.to_code.bias)
    assert (gradient.view(2, 3)[0, 1].abs() > 1e-6) == (free_bits == 0)
    assert gradient.view(2, 3)[0, 2].abs() > 1e-6


def test_the_objective_and_the_evaluation_agree():
    """The same noise: the same terms, image by image."""

    class Given:
        def __init__(self, values):
            self.values = values

        def standard_normal(self, shape, dtype):
            assert shape == self.values.shape
            return self.values.astype(dtype)

    pipe, x0 = make_pipeline(channels=3), to_float(grey_levels(5, channels=3))
    _, logs = VAE(pipe.vae, VAEConfig(beta=3.0, free_bits=1.0))(x0, None, torch.Generator().manual_seed(2))
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).numpy()
    terms = bound_terms(pipe, None, 64)(x0, None, [Given(row) for row in noise])
    assert {*terms} == {"prior", "reconstruction"}
    for name in terms:
        assert_close(terms[name].float(), logs[f"{name}_bpd"])


def test_bits_per_dimension_of_images():
    pixels = grey_levels(7).numpy().astype(np.uint8)
    digests = np.zeros((7, 32), np.uint8)
    images = Images(pixels, digests, np.arange(7), None, None, name="x", split="y")
    pipe = make_pipeline()
    pipe.vae.train()
    whole, parts = bits_per_dim(pipe, images), bits_per_dim(pipe, images, batch_size=2)
    assert pipe.vae.training
    assert list(whole) == ["bpd", "prior_bpd", "reconstruction_bpd"]
    for name, measured in whole.items():
        assert measured.value == pytest.approx(parts[name].value, rel=1e-5)
        assert measured.n == 7
    assert whole["bpd"].value == pytest.approx(whole["prior_bpd"].value + whole["reconstruction_bpd"].value)
    half = bits_per_dim(pipe.to(torch.bfloat16), images)
    assert half["bpd"].value == pytest.approx(whole["bpd"].value, rel=0.02)
    with pytest.raises(ValueError, match="--bpd_timesteps is for diffusion models"):
        bits_per_dim(pipe, images, timesteps=5)


# The pipeline


def test_the_pipeline_against_its_definition():
    pipe = make_pipeline()
    z = torch.randn(1, 3, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        location, _ = pipe.vae.decode(z)
    assert_close(images_of(pipe, [7]), (location / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("pixel_noise", [False, True])
def test_an_image_belongs_to_its_seed(pixel_noise):
    pipe = make_pipeline()
    together = images_of(pipe, [3, 4, 5], pixel_noise=pixel_noise)
    alone = [images_of(pipe, [seed], pixel_noise=pixel_noise, num_inference_steps=1) for seed in (3, 4, 5)]
    assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1])
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    made = pipe(3, generator=generators, pixel_noise=pixel_noise, output_type="pt", return_dict=False)
    assert_close(made[0], together)


def test_pixels_are_drawn_from_the_law_that_is_scored(monkeypatch):
    pipe = make_pipeline()
    shape = (2000, 1, 8, 8)
    monkeypatch.setattr(pipe.vae, "decode", lambda z: (torch.full(shape, 0.9), torch.full(shape, -3.0)))
    drawn = pipe(2000, generator=torch.Generator().manual_seed(0), pixel_noise=True, output_type="pt").images
    share = torch.bincount(to_uint8(drawn).flatten().long(), minlength=256) / drawn.numel()
    assert_close(share.double(), mass(0.9, -3.0), atol=0.002, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_taken_and_given_in_every_format(channels):
    pipe = make_pipeline(channels=channels)
    levels = grey_levels(2, channels).float() / 255
    with torch.no_grad():
        location, _ = pipe.vae.decode(pipe.vae.encode(levels * 2 - 1)[0])
    wanted = (location / 2 + 0.5).clamp(0, 1)
    arrays = levels.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray((a * 255).round().astype(np.uint8).squeeze()) for a in arrays]
    for images in (levels, arrays, pictures):
        assert_close(pipe.reconstruct(images, output_type="pt"), wanted, atol=1e-5, rtol=0)
    assert_close(pipe.reconstruct(pictures[0], output_type="pt"), wanted[:1], atol=1e-5, rtol=0)
    given = pipe.reconstruct(levels, output_type="np")
    assert_close(torch.from_numpy(given), wanted.permute(0, 2, 3, 1), atol=1e-6, rtol=0)
    drawn = np.stack([np.asarray(picture) for picture in pipe.reconstruct(levels)])
    np.testing.assert_array_equal(drawn.reshape(given.shape), (given * 255).round().astype(np.uint8))


def test_interpolation_goes_from_one_reconstruction_to_the_other():
    pipe = make_pipeline()
    first, second = grey_levels(6).float().div(255).split(3)
    rows = pipe.interpolate(first, second, steps=5, output_type="pt")
    assert rows.shape == (3, 5, 1, 8, 8)
    assert_close(rows[:, 0], pipe.reconstruct(first, output_type="pt"), atol=1e-5, rtol=0)
    assert_close(rows[:, -1], pipe.reconstruct(second, output_type="pt"), atol=1e-5, rtol=0)
    pictures = pipe.interpolate(first, second, steps=5)
    assert [len(row) for row in pictures] == [5, 5, 5]


def test_the_arc_keeps_its_radius_and_turns_evenly():
    torch.manual_seed(0)
    start, end = 3 * torch.nn.functional.normalize(torch.randn(2, 4, 16), dim=2)
    angle = torch.cosine_similarity(start, end).acos()
    for fraction in (0.0, 0.3, 0.5, 1.0):
        point = arc(start, end, fraction)
        assert_close(point.norm(dim=1), torch.full((4,), 3.0))
        assert_close(
            torch.cosine_similarity(start, point).clamp(-1, 1).acos(), fraction * angle, atol=2e-3, rtol=0
        )
    for other in (start, 2 * start, -start):  # where there is no one arc
        assert_close(arc(start, other, 0.25), 0.75 * start + 0.25 * other)


def test_what_the_pipeline_refuses():
    pipe, images = make_pipeline(), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="num_inference_steps must be 1"):
        pipe(num_inference_steps=50)
    for call in (pipe, lambda **o: pipe.reconstruct(images, **o)):
        with pytest.raises(ValueError, match="output_type must be one of pil, np, pt"):
            call(output_type="jpeg")
    with pytest.raises(ValueError, match="not both"):
        pipe(seeds=[1], generator=torch.Generator())
    with pytest.raises(ValueError, match="floats in \\[0, 1\\]"):
        pipe.reconstruct(images * 2 - 1)
    with pytest.raises(ValueError, match="floats in \\[0, 1\\]"):
        pipe.reconstruct((images * 255).to(torch.uint8))
    for bad in (torch.full((1, 1, 8, 8), torch.nan), np.full((1, 8, 8, 1), np.nan, dtype=np.float32)):
        with pytest.raises(ValueError, match=r"floats in \[0, 1\].* in nan\.\.nan"):
            pipe.reconstruct(bad)
        with pytest.raises(ValueError, match=r"floats in \[0, 1\].* in nan\.\.nan"):
            pipe.interpolate(images[:1], bad)
    for none in ([], images[:0], np.zeros((0, 8, 8, 1), np.float32)):
        with pytest.raises(ValueError, match="images is empty; pass at least one image"):
            pipe.reconstruct(none)
        with pytest.raises(ValueError, match="images is empty; pass at least one image"):
            pipe.interpolate(none, none)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\); got \(3, 8, 8\)"):
        pipe.reconstruct(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="differ in number: 2 and 1"):
        pipe.interpolate(images, images[:1])
    with pytest.raises(ValueError, match="steps must be at least 2"):
        pipe.interpolate(images, images, steps=1)
    with pytest.raises(ValueError, match="a multiple of 4; got 10"):
        VAEModel(10, block_out_channels=(8, 8, 8))


def test_a_stranger_has_the_same_images(tmp_path):
    pipe = make_pipeline()
    wanted = images_of(pipe, [3, 4])
    torch.save([wanted, pipe.reconstruct(wanted, output_type="pt")], tmp_path / "wanted.pt")
    folder = save_bundle(pipe, tmp_path / "bundle")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["vae"] == ["modeling_vae_model", "VAEModel"]
    assert index["_class_name"] == ["pipeline_vae", "VAEPipeline"]
    stranger = f"""
import sys
sys.modules["trilemma"] = None
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
images, again = torch.load({str(tmp_path / "wanted.pt")!r})
mine = pipe(seeds=[3, 4], output_type="pt").images
torch.testing.assert_close(mine, images, atol=1e-5, rtol=0)
torch.testing.assert_close(pipe.reconstruct(mine, output_type="pt"), again, atol=1e-5, rtol=0)
"""
    done = subprocess.run(
        [sys.executable, "-c", stranger], capture_output=True, text=True, cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# The entry point


def refused(capsys, *argv):
    with pytest.raises(SystemExit):
        parse("vae", "", list(argv))
    return capsys.readouterr().err


def test_what_the_command_line_refuses(capsys):
    assert "--vae_channels must be multiples of 8" in refused(capsys, "--vae_channels", "12", "16")
    assert "--free_bits has no effect without --beta" in refused(capsys, "--beta", "0", "--free_bits", "1")
    assert "--free_bits must be at least 0" in refused(capsys, "--free_bits", "-1")
    assert "--latent_dim must be at least 1" in refused(capsys, "--latent_dim", "0")
    assert "does not apply here" in refused(capsys, "--prediction_type", "epsilon")
    assert "does not apply here" in refused(capsys, "--net", "unet_8")
    assert "--sampler" in refused(capsys, "--sampler", "ddim")
    assert "--ddpm_num_inference_steps" in refused(capsys, "--ddpm_num_inference_steps", "10")


@pytest.mark.parametrize("name", PRESETS)
def test_the_networks_of_the_presets_fit_their_images(name):
    options = parse("vae", "", ["--preset", name]).objective
    side, channels = {"digits": (8, 1), "cifar10": (32, 3)}.get(name, (28, 1))
    with torch.device("meta"):
        net = VAEModel(side, channels, options.latent_dim, options.vae_channels)
        mean, _ = net.encode(torch.empty(2, channels, side, side))
        assert net.decode(mean)[0].shape == (2, channels, side, side)


@pytest.fixture
def flags(tmp_path):
    """Of a run that takes milliseconds a step."""
    return [
        "--vae_channels", "8", "8", "--latent_dim", "4", "--train_batch_size", "8", "--eval_batch_size", "4",
        "--logging_steps", "1", "--lr_warmup_steps", "3", "--validation_size", "20",
        "--validation_steps", "4", "--cache_dir", str(tmp_path / "cache"),
    ]  # fmt: skip


def weights(folder):
    return load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")


def scalars(folder):
    return [json.loads(line) for line in (folder / "logs" / "scalars.jsonl").read_text().splitlines()]


def test_a_run_fills_its_folder_is_scored_and_fine_tuned(tmp_path, flags):
    out = tmp_path / "out"
    more = ["--beta", "2", "--free_bits", "0.1", "--sample_steps", "2", "--max_train_steps", "2"]
    run(SCRIPT, *flags, *more, "--output_dir", str(out))
    names = {path.name for path in out.iterdir()}
    wanted = {"pipeline_vae.py", "samples.png", "reconstructions.png", "interpolations.png", "README.md"}
    assert wanted <= names
    assert not {"process.png", "schedules.png"} & names
    train, validation = [[line for line in scalars(out) if n in line] for n in ("bpd", "validation_bpd")]
    assert len(train) == 2
    for lines, prefix in ((train, ""), (validation, "validation_")):
        for line in lines:
            terms = line[f"{prefix}prior_bpd"] + line[f"{prefix}reconstruction_bpd"]
            assert line[f"{prefix}bpd"] == pytest.approx(terms, rel=1e-6)
            assert line[f"{prefix}loss"] > line[f"{prefix}bpd"]
    card = (out / "README.md").read_text()
    assert "variational autoencoder of 8x8 grey images" in card
    assert "(interpolations.png)" in card

    score = ["--metrics", "bpd", "--bpd_images", "20", "--cache_dir", str(tmp_path / "cache")]
    run("eval/evaluate.py", "--model", str(out), *score)
    lines = {
        line["metric"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())
    }
    assert {"bpd_train", "bpd_train_prior", "bpd_test", "bpd_test_reconstruction"} <= set(lines)
    # One draw of the noise each, of the same images and weights.
    assert lines["bpd_test"]["value"] == pytest.approx(validation[-1]["validation_bpd"], rel=0.05)

    more = ["--init_from", str(out), "--learning_rate", "1e-12", "--no-use_ema", "--max_train_steps", "1"]
    run(SCRIPT, *flags, *more, "--output_dir", str(tmp_path / "more"))
    for name, tensor in weights(out).items():
        assert_close(weights(tmp_path / "more")[name], tensor, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"another network \(.*\): 3 tensors differ, such as to_code.weight"):
        take_weights(make_net(latent_dim=5), str(out))


@pytest.mark.long
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, flags):
    flags = [*flags, "--max_train_steps", "16", "--checkpointing_steps", "4", "--free_bits", "0.05"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "uncut"))
    cut, step = tmp_path / "cut", random.Random(0).randrange(5, 15)
    killed = start(SCRIPT, *flags, "--output_dir", str(cut), signal_at=(step, signal.SIGKILL))
    assert killed.wait() == -signal.SIGKILL
    run(SCRIPT, *flags, "--output_dir", str(cut))
    uncut, resumed = weights(tmp_path / "uncut"), weights(cut)
    assert uncut.keys() == resumed.keys()
    assert all(torch.equal(uncut[name], resumed[name]) for name in uncut)
    assert [line["step"] for line in scalars(cut) if "loss" in line] == list(range(1, 17))


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_are_one_autoencoder(tmp_path, flags):
    one, two = two_ranks("two_ranks_vae.py", tmp_path, *flags, "--max_train_steps", "6")
    assert one["weights"] == two["weights"]
    assert not set(one["x0"]) & set(two["x0"])
    assert not set(one["noise"]) & set(two["noise"])
