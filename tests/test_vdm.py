"""Variational diffusion: gamma, the chains against diffusers, the gradient of its shape, runs end to end."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers import DDPMScheduler, UNet2DModel
from entry import environment, from_child, run
from test_train_unconditional import assert_same, scalars, weights
from torch.testing import assert_close

from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing, labels_like
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.pipelines.networks.vdm_model import GAMMAS, PointMLP, VDMModel
from trilemma.pipelines.shared import ids_with_null
from trilemma.pipelines.vdm import VDMPipeline, ancestral_step
from trilemma.training.diffusion.variational import levels_at
from trilemma.training.families.vdm import VDMConfig
from trilemma.training.loop.machine import closing_groups
from trilemma.training.loop.method import GradientDescent
from trilemma.training.networks.init_from import take_weights
from trilemma.training.networks.rows import NETS
from trilemma.training.objectives.vdm import VDM, _spread_times, build_vdm
from trilemma.training.options.command_line import parse
from trilemma.training.options.groups import OptimConfig

SCRIPT = "training/train_vdm.py"
CLASSES = ("zero", "one", "two")
UNET = {
    "_class_name": "UNet2DModel", "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False,
}  # fmt: skip


def make_model(classes=None, network=UNET, **options):
    """A model whose weights are all random, so that nothing is zero."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 1, "num_class_embeds": classes and classes + 1}
    model = VDMModel(network, **(sizes | options)).eval()
    with torch.no_grad():
        for parameter in model.gamma.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def make_pipeline(class_names=None, **options):
    pipe = VDMPipeline(make_model(class_names and len(class_names), **options), class_names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe, seeds, steps=3, **options):
    return pipe(seeds=seeds, num_inference_steps=steps, output_type="pt", **options).images


# gamma


@pytest.mark.parametrize("kind", GAMMAS)
def test_gamma_rises_between_its_pinned_ends(kind):
    gamma = make_model(gamma_type=kind).gamma
    time = torch.linspace(0, 1, 101, dtype=torch.float64)
    values, (start, end) = gamma(time), gamma.ends()
    assert (values.diff() > 0).all()
    assert_close(values[[0, -1]], torch.stack([start, end]), atol=1e-12, rtol=0)
    learned = kind in ("learned_linear", "monotone")
    assert torch.equal(gamma.ends(), gamma.initial_ends) != learned
    assert values.dtype == torch.float64


def test_what_lies_between_moves_no_end():
    gamma = make_model(gamma_type="monotone").gamma
    (value,) = torch.autograd.grad(gamma(torch.tensor([0.5]).double()).sum(), gamma.shape.inner)
    assert value.abs().sum() > 0
    at_ends = torch.autograd.grad(gamma(torch.tensor([0.0, 1.0]).double()).sum(), gamma.shape.inner)[0]
    assert_close(at_ends, torch.zeros_like(at_ends), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "monotone"])
def test_the_slope_is_the_derivative(kind):
    shape, time = make_model(gamma_type=kind).gamma.shape, torch.linspace(0, 1, 20, dtype=torch.float64)
    value, slope = shape(time.requires_grad_())
    assert_close(slope, torch.autograd.grad(value.sum(), time)[0])


def test_gamma_keeps_its_digits_in_a_model_of_half_precision():
    model, time = make_model(gamma_type="monotone"), torch.linspace(0, 1, 20, dtype=torch.float64)
    exact = model.gamma(time)
    assert torch.equal(model.bfloat16().gamma(time), exact)
    assert model.net.conv_in.weight.dtype == torch.bfloat16
    z = torch.randn(2, 1, 8, 8)
    assert model(z, exact[:2]).dtype == torch.float32


# The network


def test_the_network_sees_the_image_its_waves_and_the_level():
    model = make_model(classes=3, fourier_features=(1, 4))
    z, gamma = torch.randn(2, 1, 8, 8), torch.tensor([-13.3, -4.15], dtype=torch.float64)
    seen = []
    model.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    eps_hat = model(z, gamma, torch.tensor([0, 3]))
    (x, level, labels) = seen[0]
    waves = [f(2**n * torch.pi * z) for n in (1, 4) for f in (torch.sin, torch.cos)]
    assert_close(x, torch.cat([z, *waves], 1))
    assert_close(level, torch.tensor([0.0, 500.0]))
    assert labels.tolist() == [0, 3]
    assert_close(eps_hat, z + model.net(x, level, labels).sample)


@pytest.mark.parametrize("name", ["unet_8", "vdm_8"])
def test_at_the_start_of_training_all_of_z_is_taken_for_noise(name):
    model = build_vdm(NETS[name], VDMConfig(fourier_features=(3,)), channels=1, resolution=8)
    z = torch.randn(2, 1, 8, 8)
    assert_close(model(z, torch.zeros(2)), z)


def test_what_a_network_within_may_be():
    with pytest.raises(ValueError, match="UNet2DModel, PointMLP; got 'PlainUNet2DModel'"):
        build_vdm(NETS["conv"], VDMConfig(), channels=1, resolution=8)
    with pytest.raises(ValueError, match="positional"):
        make_model(network=UNET | {"time_embedding_type": "fourier"})
    config = make_model(gamma_type="linear").config
    again = build_vdm(dict(config), VDMConfig(), channels=1, resolution=8)
    assert again.config.network["block_out_channels"] == (8,)
    assert again.config.gamma_type == "learned_linear"


def test_weights_are_taken_from_a_model_of_the_same_kind(tmp_path):
    make_pipeline(gamma_type="monotone").save_pretrained(tmp_path / "vdm")
    UNet2DModel(block_out_channels=(8,) * 4, norm_num_groups=4).save_pretrained(tmp_path / "ddpm" / "unet")
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "ddpm" / "model_index.json").write_text(json.dumps(index))
    model = make_model(gamma_type="monotone")
    with torch.no_grad():
        model.gamma.shift.zero_()
    take_weights(model, str(tmp_path / "vdm"))
    assert model.gamma.shift.abs().min() > 0
    with pytest.raises(ValueError, match="has a UNet2DModel, and this trains a VDMModel"):
        take_weights(model, str(tmp_path / "ddpm"))
    with pytest.raises(ValueError, match="another network"):
        take_weights(make_model(gamma_type="linear"), str(tmp_path / "vdm"))


def test_points_are_images_of_one_pixel():
    mlp = PointMLP(width=16, layers=2, num_class_embeds=4)
    sample, labels = torch.randn(5, 2, 1, 1), torch.arange(5) % 4
    output = mlp(sample, torch.arange(5.0), labels).sample
    assert output.shape == sample.shape
    assert_close(output[2:3], mlp(sample[2:3], 2.0, labels[2:3]).sample)
    assert not torch.allclose(output, mlp(sample, torch.arange(5.0) + 1, labels).sample)
    output.sum().backward()
    assert all(p.grad is not None for p in mlp.parameters())
    model = make_model(network={"_class_name": "PointMLP", "width": 8}, sample_size=1, in_channels=2)
    assert images_of(VDMPipeline(model), [0, 1]).shape == (2, 2, 1, 1)


# The chains


@pytest.mark.parametrize("steps", [5, 50])
def test_an_ancestral_step_is_that_of_diffusers_on_the_same_gamma(steps):
    """z_0 is the scheduler's step 0, and its variance is that of the posterior."""
    gamma = make_model(gamma_type="monotone").gamma(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    gamma = gamma.detach()
    abar = gamma.neg().sigmoid()
    betas = 1 - abar / torch.cat([torch.ones(1).double(), abar[:-1]])
    scheduler = DDPMScheduler(
        steps + 1, trained_betas=betas.tolist(), variance_type="fixed_small", clip_sample=False
    )
    # The scheduler's own are float32.
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas, 1 - betas, abar
    scheduler.set_timesteps(steps + 1)
    z, eps_hat = torch.randn(2, 4, 1, 8, 8, generator=torch.manual_seed(0))
    for t in range(1, steps + 1):
        theirs = scheduler.step(eps_hat, t, z, generator=torch.manual_seed(t)).prev_sample
        noise = torch.randn(z.shape, generator=torch.manual_seed(t))
        assert_close(ancestral_step(z, eps_hat, noise, gamma[t], gamma[t - 1]), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chain", ["ancestral", "shortcut"])
def test_the_pipeline_against_its_definition(chain):
    """Equally long steps, each from its law as the papers write it, noise from the image's seed."""
    pipe, steps = make_pipeline(gamma_type="monotone"), 4
    gamma = pipe.unet.gamma(torch.linspace(1, 0, steps + 1).double()).detach()
    alpha, sigma = gamma.neg().sigmoid().sqrt(), gamma.sigmoid().sqrt()
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(1, 1, 8, 8, generator=generator).double()
    for t in range(steps):
        with torch.no_grad():
            eps_hat = pipe.unet(z.float(), gamma[t : t + 1]).double()
        x0_hat = (z - sigma[t] * eps_hat) / alpha[t]
        noise = torch.randn(z.shape, generator=generator)
        if chain == "shortcut":
            z = alpha[t + 1] * x0_hat + sigma[t + 1] * noise
            continue
        ratio = alpha[t] / alpha[t + 1]
        between = sigma[t] ** 2 - ratio**2 * sigma[t + 1] ** 2
        mean = ratio * sigma[t + 1] ** 2 / sigma[t] ** 2 * z + alpha[t + 1] * between / sigma[t] ** 2 * x0_hat
        z = mean + (between * sigma[t + 1] ** 2 / sigma[t] ** 2).sqrt() * noise
    expected = (z / alpha[-1] / 2 + 0.5).clamp(0, 1)
    assert_close(images_of(pipe, [7], steps, chain=chain).double(), expected, atol=1e-5, rtol=0)


def test_samplers_by_name():
    pipe = make_pipeline()
    other = pipe.with_sampler("shortcut")
    assert (pipe.sampler, other.sampler) == ("ancestral", "shortcut")
    assert torch.equal(images_of(other, [1]), images_of(pipe, [1], chain="shortcut"))
    assert not torch.allclose(images_of(other, [1]), images_of(pipe, [1]))
    assert (pipe.steps(None), pipe.steps(7), pipe.calls(7, False), pipe.calls(7, True)) == (250, 7, 7, 14)
    with pytest.raises(ValueError, match="one of ancestral, shortcut for a VDMPipeline; got 'ddim'"):
        pipe.with_sampler("ddim")


@pytest.mark.parametrize("class_names", [None, CLASSES])
def test_an_image_belongs_to_its_seed(class_names):
    pipe = make_pipeline(class_names)
    together = images_of(pipe, [3, 4, 5])
    assert_close(together, torch.cat([images_of(pipe, [seed]) for seed in (3, 4, 5)]), atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1])


def test_output_types_and_trajectory():
    pipe = make_pipeline()
    tensor = images_of(pipe, [0, 1])
    array = pipe(seeds=[0, 1], num_inference_steps=3, output_type="np").images
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    picture = np.asarray(pipe(seeds=[0, 1], num_inference_steps=3).images[0])
    np.testing.assert_array_equal(picture, (array[0, :, :, 0] * 255).round().astype(np.uint8))
    kept = pipe(seeds=[0, 1], num_inference_steps=3, output_type="pt", trajectory=4).trajectory
    assert kept.shape == (4, 2, 1, 8, 8)
    assert torch.equal(kept[-1], tensor)
    noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert_close(kept[0, 1], (noise / 2 + 0.5).clamp(0, 1))


def test_classes_by_name_and_number_and_none():
    pipe = make_pipeline(CLASSES)
    named = images_of(pipe, [0, 1, 2], class_labels=["two", "zero", None])
    assert torch.equal(named, images_of(pipe, [0, 1, 2], class_labels=[2, 0, None]))
    unknown = images_of(pipe, [0, 1, 2])
    assert_close(named[2], unknown[2], atol=1e-5, rtol=0)
    assert not torch.allclose(named[0], unknown[0])
    assert ids_with_null(None, 2, pipe.class_names, torch.device("cpu")).tolist() == [3, 3]


@pytest.mark.parametrize("chain", ["ancestral", "shortcut"])
def test_guidance_mixes_the_noise_of_the_class_and_of_none(chain):
    """By the pipeline of a network that mixes the two itself, in two calls; the last image has no class."""
    pipe, labels = make_pipeline(CLASSES), [2, 0, None]
    mixing, scales = copy.deepcopy(pipe), torch.tensor([2.5, 2.5, 1.0]).view(-1, 1, 1, 1)
    forward = pipe.unet.forward

    def mixed(z, gamma, labels):
        unknown = forward(z, gamma, torch.full_like(labels, 3))
        return unknown + scales * (forward(z, gamma, labels) - unknown)

    mixing.unet.forward = mixed
    options = dict(class_labels=labels, chain=chain)
    guided = images_of(pipe, [0, 1, 2], guidance_scale=2.5, **options)
    assert_close(guided, images_of(mixing, [0, 1, 2], **options), atol=1e-5, rtol=0)
    assert not torch.allclose(guided[:2], images_of(pipe, [0, 1, 2], **options)[:2], atol=1e-3)
    none = images_of(pipe, [0, 1, 2], guidance_scale=0, **options)
    assert_close(none, images_of(pipe, [0, 1, 2], chain=chain), atol=1e-5, rtol=0)


def test_only_guided_images_cost_a_second_call():
    pipe, rows = make_pipeline(CLASSES), []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    plain = images_of(pipe, [0, 1, 2], 1, class_labels=[2, 0, None])
    assert torch.equal(images_of(pipe, [0, 1, 2], 1, class_labels=[2, 0, None], guidance_scale=1), plain)
    images_of(pipe, [0, 1, 2], 1, class_labels=[2, 0, None], guidance_scale=3.0)
    assert torch.equal(images_of(pipe, [0], 1, guidance_scale=3.0), images_of(pipe, [0], 1))
    assert rows == [3, 3, 5, 1, 1]


@pytest.mark.parametrize("scale", [None, 1.0, 2.0])
def test_an_evaluation_tells_the_calls_that_guidance_costs(scale):
    pipe, calls = make_pipeline(CLASSES), []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    sampling = SamplingConfig(num_samples=4, num_inference_steps=3, guidance_scale=scale)
    drawing = Drawing(pipe, "a model", sampling, batch_size=2, accelerator=Accelerator(cpu=True))
    drawing.labels = labels_like(drawing, None)
    for _ in drawing:
        pass
    origin = drawing.origin(None, None)
    assert origin.guidance_scale == (scale or 1.0)
    assert origin.nfe == sum(calls) / 4


def test_what_the_pipeline_refuses():
    for options, message in (
        ({"class_labels": "three"}, "0 'zero', 1 'one', 2 'two', or None; got 'three'"),
        ({"class_labels": [0]}, "one for each of 2 images"),
        ({"class_labels": True}, "or None; got True"),
        ({"class_labels": [1.0, 2]}, "or None; got 1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number; got nan"),
        ({"guidance_scale": True}, "guidance_scale must be a finite number; got True"),
        ({"num_inference_steps": 0}, "at least 1; got 0"),
        ({"num_inference_steps": 5.0}, "an integer of at least 1; got 5.0"),
        ({"chain": "ddim"}, "one of ancestral, shortcut; got 'ddim'"),
        ({"output_type": "jpeg"}, "output_type"),
    ):
        with pytest.raises(ValueError, match=message):
            make_pipeline(CLASSES)(2, **options)
    with pytest.raises(ValueError, match="no classes"):
        make_pipeline()(class_labels=1)
    with pytest.raises(ValueError, match="must be 1 for a model that has no classes; got 2"):
        make_pipeline()(guidance_scale=2.0)
    assert torch.equal(images_of(make_pipeline(), [0], guidance_scale=1.0), images_of(make_pipeline(), [0]))


def test_a_stranger_has_the_same_gamma_and_draws_the_same_images(tmp_path):
    pipe = make_pipeline(CLASSES, gamma_type="monotone", fourier_features=(3,))
    pipe = pipe.with_sampler("shortcut")
    time = torch.linspace(0, 1, 50, dtype=torch.float64)
    images = images_of(pipe, [3, 4], class_labels=["two", None])
    torch.save((time, pipe.unet.gamma(time).detach(), images), tmp_path / "wanted.pt")
    folder = save_bundle(pipe, tmp_path / "bundle")
    stranger = f"""
import sys
sys.modules["trilemma"] = None
import torch
from diffusers import DiffusionPipeline
time, gamma, images = torch.load({str(tmp_path / "wanted.pt")!r})
options = dict(seeds=[3, 4], class_labels=["two", None], num_inference_steps=3, output_type="pt")
for dtype, limit in (torch.float32, 1e-5), (torch.bfloat16, 0.2):
    pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.net.conv_in.weight.dtype == dtype
    torch.testing.assert_close(pipe.unet.gamma(time), gamma, atol=1e-6, rtol=0)
    torch.testing.assert_close(pipe(**options).images, images, atol=limit, rtol=0)
"""
    done = subprocess.run(
        [sys.executable, "-c", stranger], capture_output=True, text=True, cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Expected types" not in done.stderr


# The objective


def make_objective(class_names=None, network=UNET, **options):
    classes = class_names and len(class_names)
    gamma = options.get("gamma", "monotone")
    model = make_model(classes, network, gamma_type=gamma)
    return VDM(model, VDMConfig(**({"gamma": gamma} | options)), class_names)


def some_images(count=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, 8, 8), generator=generator) / 127.5 - 1


def test_times_of_a_batch_are_evenly_spread():
    times = _spread_times(8, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert_close((times * 8).sort().values.diff(), torch.ones(7).double())
    many = torch.cat([_spread_times(4, torch.device("cpu"), None) for _ in range(500)])
    assert abs(float(many.mean()) - 0.5) < 0.02
    assert many.min() >= 0
    assert many.max() < 1


def gradients(objective, loss):
    names, parameters = zip(*objective.net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))


def test_the_shape_of_gamma_lessens_the_variance_and_all_else_the_bound():
    """One backward with the objective, against two of the same losses without its hooks."""
    objective, x0 = make_objective(), some_images()
    torch.manual_seed(3)
    losses, _ = objective(x0, None)
    one = gradients(objective, losses.mean())

    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trilemma.training.objectives.vdm._lessen_variance", lambda levels, diffusion: None)
        losses, logs = objective(x0, None)
    bound = gradients(objective, losses.mean())
    constant = (logs["prior_bpd"] + logs["reconstruction_bpd"]).detach()
    squared = gradients(objective, (losses - constant).square().mean())
    assert any(name.startswith("gamma.shape.") for name in one)
    for name, gradient in one.items():
        wanted = squared if name.startswith("gamma.shape.") else bound
        assert gradient.abs().sum() > 0, name
        assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)


def test_in_discrete_time_the_shape_minimises_the_bound_which_depends_on_it():
    objective = make_objective(vdm_timesteps=5)
    assert levels_at(objective.net.gamma, torch.tensor([0.3]).double(), 5).of_shape == ()
    losses, _ = objective(some_images(), None)
    assert all(gradient.abs().sum() > 0 for gradient in gradients(objective, losses.mean()).values())


def test_the_fidelity_is_that_of_the_chain_it_draws():
    """Its value step by step, and a gradient that reaches through the chain but never gamma."""
    objective, x0 = make_objective(vdm_timesteps=20, shortcut_steps=3), some_images(2)
    fidelity = objective.fidelity(x0, None, torch.Generator().manual_seed(5))

    generator, net = torch.Generator().manual_seed(5), objective.net
    t = torch.randperm(20, generator=generator)[:3] + 1
    gamma = net.gamma(t.sort(descending=True).values.double() / 20).detach()
    x0_hat, errors = x0, []
    for level in gamma:
        alpha, sigma = level.neg().sigmoid().sqrt().float(), level.sigmoid().sqrt().float()
        z = alpha * x0_hat + sigma * torch.randn(x0.shape, generator=generator)
        x0_hat = (z - sigma * net(z, level.expand(2))) / alpha
        errors.append((x0 - x0_hat).square().flatten(1).mean(1))
    expected = torch.stack(errors).mean(0)
    assert_close(fidelity, expected)
    weight = net.net.conv_in.weight
    ours, theirs = (torch.autograd.grad(f.sum(), weight)[0] for f in (fidelity, expected))
    assert_close(ours, theirs)
    again = objective.fidelity(x0, None, torch.Generator().manual_seed(5)).sum()
    assert not any(g is not None for g in torch.autograd.grad(again, list(net.gamma.parameters()), None,
                   allow_unused=True))  # fmt: skip


def test_terms_are_logged_and_add_up():
    objective = make_objective(vdm_timesteps=20, shortcut_steps=3, fidelity_weight=0.5)
    losses, logs = objective(some_images(), None, torch.Generator().manual_seed(2))
    assert_close(logs["bpd"], logs["prior_bpd"] + logs["diffusion_bpd"] + logs["reconstruction_bpd"])
    assert_close(losses.detach(), logs["bpd"] + 0.5 * logs["fidelity"])
    state = torch.get_rng_state()
    again, _ = objective(some_images(), None, torch.Generator().manual_seed(2))
    assert torch.equal(again, losses)
    assert torch.equal(state, torch.get_rng_state())


def test_a_diverged_gamma_is_a_loss_that_is_not_finite():
    objective = make_objective()
    torch.nn.init.constant_(objective.net.gamma.shift, torch.nan)
    losses, _ = objective(some_images(), None)
    assert not losses.isfinite().any()


def test_labels_are_dropped_to_the_unknown_class():
    seen, labels = [], torch.arange(6) % 3
    for p, training, expected in ((1.0, True, [3] * 6), (1.0, False, labels.tolist())):
        objective = make_objective(CLASSES, class_conditional=True, p_uncond=p).train(training)
        objective.denoise = lambda z, gamma, labels: seen.append(labels.tolist()) or z
        objective(some_images(), labels)
        assert seen.pop() == expected


def one_rank(rank, store, queue):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    with closing_groups():
        train_on(rank, store, queue)


def train_on(rank, store, queue):
    meeting = InitProcessGroupKwargs(init_method=f"file://{store}")  # a port might be taken meanwhile
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, kwargs_handlers=[meeting])
    assert accelerator.num_processes == 2
    objective = make_objective(CLASSES, class_conditional=True, vdm_timesteps=0)
    chained = make_objective(vdm_timesteps=8, shortcut_steps=3)
    for one in (objective, chained):
        method = GradientDescent(one, accelerator, OptimConfig(lr_warmup_steps=0, learning_rate=1e-2), 10)
        torch.manual_seed(rank)
        for k in range(4):
            method.step(some_images().roll(rank + k, 0), torch.arange(6) % 3)
        queue.put({name: float(p.double().norm()) for name, p in one.net.named_parameters()})


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_are_one_model_and_one_gamma(tmp_path):
    """Continuous time with classes, and discrete time with the chain; each rank has its own images."""
    context = mp.get_context("spawn")  # a fork of a process that has used autograd hangs in it
    queues = [context.Queue(), context.Queue()]
    store = tmp_path / "store"
    ranks = [context.Process(target=one_rank, args=(r, store, queue)) for r, queue in enumerate(queues)]
    for process in ranks:
        process.start()
    for _ in range(2):
        one, other = (from_child(queue, process) for queue, process in zip(queues, ranks, strict=True))
        assert one == other
        start = make_objective(CLASSES if "net.class_embedding.weight" in one else None)
        for name, parameter in start.net.named_parameters():
            assert one[name] != float(parameter.detach().double().norm()), name
    for process in ranks:
        process.join()


# The entry point


def refused(capsys, *argv):
    with pytest.raises(SystemExit):
        parse("vdm", "", list(argv))
    return capsys.readouterr().err


def test_what_the_command_line_refuses(capsys):
    assert "--vdm_timesteps is 0" in refused(capsys, "--shortcut_steps", "3")
    assert "at most --vdm_timesteps, 5" in refused(capsys, "--shortcut_steps", "9", "--vdm_timesteps", "5")
    assert "--class_conditional" in refused(capsys, "--p_uncond", "0.2")
    assert "--gamma_max must be above" in refused(capsys, "--gamma_max", "-20")
    assert "does not apply here" in refused(capsys, "--prediction_type", "epsilon")
    assert "--sampler" in refused(capsys, "--sampler", "ddim")


def test_a_network_that_does_not_fit_is_named_by_its_option(tmp_path):
    flags = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    done = run(SCRIPT, "--net", "simple", *flags, check=False)
    assert done.wait() != 0
    assert "error: --net or --model_config_name_or_path must be a UNet2DModel or a PointMLP" in done.output
    assert "--net unet_8, " in done.output
    assert "got a PlainUNet2DModel" in done.output


@pytest.mark.long
def test_a_cut_run_goes_on_exactly_and_its_bits_are_measured(tmp_path, tiny):
    """Labels, a learned gamma and the chain: 3 steps and 3 more are 6 steps, to the bit."""
    flags = [*tiny, "--class_conditional", "--vdm_timesteps", "8", "--shortcut_steps", "2"]
    flags += ["--sampler", "shortcut", "--lr_scheduler", "constant_with_warmup"]
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    run(SCRIPT, *flags, "--output_dir", str(uncut), "--max_train_steps", "6")
    for steps in ("3", "6"):
        done = run(SCRIPT, *flags, "--output_dir", str(cut), "--max_train_steps", steps)
    assert "Resuming from" in done.output
    assert_same(weights(uncut), weights(cut))
    assert {"gamma.shift", "gamma.shape.inner"} <= set(weights(uncut))

    names = {path.name for path in uncut.iterdir()}
    assert {"pipeline_vdm.py", "samples.png", "process.png", "schedules.png", "loss.png"} <= names
    line = next(line for line in reversed(scalars(uncut)) if "validation_bpd" in line)
    assert {"validation_prior_bpd", "validation_diffusion_bpd", "validation_reconstruction_bpd"} <= set(line)
    assert "variational diffusion model" in (uncut / "README.md").read_text()

    measured = ["--metrics", "bpd", "--bpd_images", "3", "--bpd_timesteps", "2"]
    run("eval/evaluate.py", "--model", str(uncut), *measured, "--cache_dir", str(tmp_path / "cache"))
    told = [json.loads(line) for line in (uncut / "results.jsonl").read_text().splitlines()]
    parts = ("", "_prior", "_diffusion", "_reconstruction")
    assert [t["metric"] for t in told] == [f"bpd_{s}{part}" for s in ("train", "test") for part in parts]
    assert all(np.isfinite(t["value"]) for t in told)
