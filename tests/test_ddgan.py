"""The denoising-diffusion GAN: posterior against diffusers, R1 by finite differences, runs end to end."""

import copy
import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from entry import environment, run, start, two_ranks
from safetensors.torch import load_file
from torch.testing import assert_close

from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.pipelines.ddgan import DDGANPipeline, condition
from trilemma.training.diffusion.few_steps import Pairs, few_step_scheduler, latent_row, vp_process
from trilemma.training.families.ddgan import PRESETS, DDGANConfig, GANOptimConfig
from trilemma.training.loop.checkpoints import checkpoint_steps, find_checkpoint
from trilemma.training.loop.watchdog import GRACE, PATIENCE, SIGNS, CollapsedRun, Watchdog
from trilemma.training.networks.discriminator import GROUP, Discriminator, group_deviation
from trilemma.training.objectives.ddgan import DDGAN, DiscriminatorTurn, compare
from trilemma.training.options.command_line import parse

SCRIPT = "training/train_ddgan.py"
CLASSES = ("zero", "one", "two")


def make_net(**config):
    torch.manual_seed(0)
    row = latent_row({"norm_num_groups": 4})
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
        **(row | config),
    ).eval()  # fmt: skip


def make_pipeline(steps=4, class_names=None, **config):
    pipe = DDGANPipeline(make_net(**config), few_step_scheduler(vp_process(steps, 0.1, 20.0)), class_names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_pairs(classes=0, steps=4):
    return Pairs(make_net(), vp_process(steps, 0.1, 20.0), classes)


def make_discriminator(classes=0):
    torch.manual_seed(1)
    return Discriminator(1, 8, (8, 8), classes)


def images_of(pipe, seeds, **options):
    return pipe(seeds=seeds, output_type="pt", **options).images


# The process


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_process_is_the_integral_of_its_noise_rate(steps):
    """abar(b) / abar(a) = exp(-integral of beta from a to b), here by Simpson's rule."""
    abar = vp_process(steps, 0.1, 20.0).abar
    ends = np.linspace(1e-3, 1, steps + 1)
    for t in range(1, steps + 1):
        low, high = ends[t - 1], ends[t]
        rate = [0.1 + time * 19.9 for time in (low, (low + high) / 2, high)]
        integral = (high - low) / 6 * (rate[0] + 4 * rate[1] + rate[2])
        assert_close(abar[t] / abar[t - 1], torch.tensor(np.exp(-integral)), rtol=1e-12, atol=0)
    assert abar[0] == 1
    assert abar[-1].sqrt() < 0.01  # x_T is noise


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_posterior_step_is_that_of_the_stock_scheduler(steps):
    process = vp_process(steps, 0.1, 20.0)
    betas = process.beta(torch.arange(1, steps + 1)).tolist()
    scheduler = DDPMScheduler(steps, trained_betas=betas, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(steps)
    torch.manual_seed(0)
    x0_hat, x_t = torch.randn(2, 5, 1, 8, 8).unbind(0)
    for t in range(1, steps + 1):
        theirs = scheduler.step(x0_hat, t - 1, x_t, generator=torch.manual_seed(t)).prev_sample
        mean, variance = process.posterior(x0_hat, x_t, torch.full((5,), t))
        noise = torch.randn(x_t.shape, generator=torch.manual_seed(t))
        ours = mean + variance.sqrt().float().view(-1, 1, 1, 1) * noise
        assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        if t == 1:
            assert_close(ours, x0_hat, atol=1e-6, rtol=0)


def test_real_pairs_have_the_law_of_the_chain():
    """At each t the means and (co)variances of (x_{t-1}, x_t) given x_0 = 0.5, from 40,000 draws."""
    pairs, x0 = make_pairs(), torch.full((40_000, 1, 1, 1), 0.5)
    abar = pairs.process.abar
    for t in range(1, 5):
        before, x_t = (x.flatten().double() for x in pairs.real(x0, torch.full((len(x0),), t)))
        now, last = abar[t], abar[t - 1]
        assert_close(x_t.mean(), now.sqrt() / 2, atol=0.02, rtol=0)
        assert_close(x_t.var(), 1 - now, atol=0.03, rtol=0)
        assert_close(before.var(), 1 - last, atol=0.03, rtol=0)
        covariance = ((x_t - x_t.mean()) * (before - before.mean())).mean()
        assert_close(covariance, (now / last).sqrt() * (1 - last), atol=0.03, rtol=0)
        if t == 1:
            assert_close(before, torch.full_like(before, 0.5))


def test_the_latent_vector_is_as_wide_as_the_networks_embedding_of_t():
    assert Pairs(make_net(time_embedding_dim=24), vp_process(4, 0.1, 20.0), 3).width == 24
    pipe = make_pipeline(class_names=CLASSES, time_embedding_dim=24)
    assert pipe(seeds=[1], output_type="pt").images.shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="40 classes leave no room for z in the 32 numbers"):
        make_pairs(classes=40)


def test_generated_pairs_at_t_1_are_the_prediction_itself():
    pairs = make_pairs()
    x0_hat, before = pairs.generated(torch.randn(4, 1, 8, 8), torch.ones(4, dtype=torch.long), None)
    assert_close(before, x0_hat)
    assert x0_hat.abs().max() <= 1


# The discriminator


def test_r1_by_double_differentiation_is_that_of_finite_differences():
    """The penalty of a pair, and its derivative with respect to the discriminator's weights."""
    discriminator, pairs = make_discriminator().double(), make_pairs()
    x0, generator = torch.randn(GROUP, 1, 8, 8, dtype=torch.float64), torch.Generator()
    real, x_t = (x.double() for x in pairs.real(x0, torch.full((GROUP,), 2)))
    t, weight = torch.full((GROUP,), 2), discriminator.first.weight

    def penalty(x):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x, x_t, t).sum(), x, create_graph=True)
        return gradient.square().sum()

    torch.manual_seed(2)
    direction, h = torch.randn_like(real), 1e-6
    x = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, x_t, t).sum(), x)
    difference = discriminator(real + h * direction, x_t, t) - discriminator(real - h * direction, x_t, t)
    assert_close((gradient * direction).sum(), difference.sum() / (2 * h), rtol=1e-5, atol=1e-8)

    (second,) = torch.autograd.grad(penalty(real), weight)
    step = torch.randn_like(weight)
    with torch.no_grad():
        weight += h * step
    above = penalty(real)
    with torch.no_grad():
        weight -= 2 * h * step
    difference = (above - penalty(real)) / (2 * h)
    assert_close((second * step).sum(), difference.detach(), rtol=1e-4, atol=1e-8)

    turn, state = DiscriminatorTurn(discriminator.float(), pairs, r1_gamma=0.5), torch.get_rng_state()
    x0 = x0.float()
    plain, _ = turn(x0, None, False, generator.manual_seed(3))
    penalised, logs = turn(x0, None, True, generator.manual_seed(3))
    assert_close(penalised - plain, 0.25 * logs["r1"])
    t = pairs.times(x0, generator.manual_seed(3))
    real, x_t = pairs.real(x0, t, generator)
    x = real.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, x_t, t).sum(), x)
    assert_close(logs["r1"], gradient.square().sum((1, 2, 3)))
    assert torch.equal(state, torch.get_rng_state())


def test_one_batch_of_both_kinds_is_the_two_kinds_alone():
    """No group of the minibatch deviation holds real and generated examples: one forward stands for two."""
    discriminator = make_discriminator()
    x, x_t, t = torch.randn(16, 1, 8, 8), torch.randn(16, 1, 8, 8), torch.randint(1, 5, (16,))
    alone = torch.cat([discriminator(x[:8], x_t[:8], t[:8]), discriminator(x[8:], x_t[8:], t[8:])])
    assert_close(discriminator(x, x_t, t), alone)


def test_group_deviation():
    h = torch.randn(8, 3, 2, 2)
    wanted = torch.stack([g.std(0, unbiased=False).mean() for g in h.split(GROUP)]).repeat_interleave(GROUP)
    assert_close(group_deviation(h), wanted.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), atol=1e-5, rtol=1e-4)
    assert group_deviation(h[:1].expand(4, -1, -1, -1)).max() < 1e-3
    assert group_deviation(torch.randn(7, 3, 2, 2)).shape == (7, 1, 2, 2)


@pytest.mark.parametrize("resolution", [8, 16, 28, 32])
def test_the_gradient_is_alive_at_the_start(resolution):
    """Logits differ from image to image and every weight gets a gradient; with the usual set-up both fade."""
    torch.manual_seed(0)
    discriminator = Discriminator(3, resolution, (16, 32, 32, 32), num_classes=3)
    x, x_t = torch.randn(2, 16, 3, resolution, resolution)
    logits = discriminator(x, x_t, torch.randint(1, 5, (16,)), torch.randint(3, (16,)))
    assert logits.shape == (16,)
    assert logits.std() > 0.05
    torch.nn.functional.softplus(-logits).mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in discriminator.parameters())


# The pipeline


def test_the_pipeline_against_its_definition():
    """T network calls, a fresh z at each, the stock scheduler's posterior, noise from the image's seed."""
    pipe = make_pipeline()
    generator, image, calls = torch.Generator().manual_seed(7), None, []
    image = torch.randn(1, 1, 8, 8, generator=generator)
    abar = vp_process(4, 0.1, 20.0).abar
    for t in (4, 3, 2, 1):
        z = torch.randn(1, 32, generator=generator)
        with torch.no_grad():
            x0_hat = pipe.unet(image, t - 1, z).sample.tanh()
        now, last = abar[t], abar[t - 1]
        beta = 1 - now / last
        mean = last.sqrt() * beta / (1 - now) * x0_hat
        mean = mean + (1 - beta).sqrt() * (1 - last) / (1 - now) * image
        noise = torch.randn(image.shape, generator=generator) if t > 1 else torch.zeros_like(image)
        image = (mean + (beta * (1 - last) / (1 - now)).sqrt() * noise).float()
        calls.append(z)
    hook = pipe.unet.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[2]))
    assert_close(images_of(pipe, [7]), image / 2 + 0.5, atol=1e-5, rtol=0)
    hook.remove()
    assert len(calls) == 8
    for expected, seen in zip(calls[:4], calls[4:], strict=True):
        assert_close(seen, expected)


@pytest.mark.parametrize("class_names", [None, CLASSES])
def test_an_image_belongs_to_its_seed(class_names):
    pipe = make_pipeline(class_names=class_names)
    together = images_of(pipe, [3, 4, 5])
    assert_close(together, torch.cat([images_of(pipe, [seed]) for seed in (3, 4, 5)]), atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1])
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    assert_close(pipe(3, generator=generators, output_type="pt").images, together)


def test_output_types_and_trajectory():
    pipe = make_pipeline()
    tensor = images_of(pipe, [0, 1])
    array = pipe(seeds=[0, 1], output_type="np").images
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    picture = np.asarray(pipe(seeds=[0, 1]).images[0])
    np.testing.assert_array_equal(picture, (array[0, :, :, 0] * 255).round().astype(np.uint8))
    (alone,) = pipe(seeds=[0, 1], output_type="pt", return_dict=False)
    assert torch.equal(alone, tensor)
    kept = pipe(seeds=[0, 1], output_type="pt", trajectory=5).trajectory
    assert kept.shape == (5, 2, 1, 8, 8)
    assert torch.equal(kept[-1], tensor)
    noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert_close(kept[0, 1], (noise / 2 + 0.5).clamp(0, 1))


def test_classes_by_name_and_number():
    pipe = make_pipeline(class_names=CLASSES)
    named = images_of(pipe, [0, 1, 2], class_labels=["two", "zero", "one"])
    assert torch.equal(named, images_of(pipe, [0, 1, 2], class_labels=[2, 0, 1]))
    assert_close(named[:1], images_of(pipe, [0], class_labels="two"), atol=1e-6, rtol=0)
    assert not torch.allclose(named[:1], images_of(pipe, [0], class_labels="one"))
    labels = pipe._labels(None, 300, torch.Generator().manual_seed(0))
    assert torch.bincount(labels, minlength=3).min() > 70
    with pytest.raises(ValueError, match="0 'zero', 1 'one', 2 'two', or None; got 'three'"):
        pipe(class_labels="three")
    with pytest.raises(ValueError, match="no classes"):
        make_pipeline()(class_labels=1)


def test_the_condition_vector():
    z = torch.randn(5000, 29)
    vector = condition(z, torch.arange(5000) % 3, 3)
    assert_close(vector[:, 3:], z)
    assert (vector[:, :3].argmax(1) == torch.arange(5000) % 3).all()
    assert_close(vector[:, :3].square().mean(), torch.tensor(1.0))  # as for z
    assert condition(z, None, 0) is z


def test_what_the_pipeline_refuses():
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="num_inference_steps must be 4"):
        pipe(num_inference_steps=50)
    with pytest.raises(ValueError, match="output_type"):
        pipe(output_type="jpeg")
    with pytest.raises(ValueError, match="not both"):
        pipe(seeds=[1], generator=torch.Generator())
    with pytest.raises(ValueError, match="posterior"):
        DDGANPipeline(pipe.unet, DDIMScheduler(4, prediction_type="sample"))
    with pytest.raises(ValueError, match="--sampler must be one of ddpm for a DDGANPipeline; got 'ddim'"):
        pipe.with_sampler("ddim")
    other = pipe.with_sampler("ddpm")
    other.register_modules(scheduler=DDIMScheduler(4, prediction_type="sample"))
    with pytest.raises(ValueError, match="posterior; got a DDIMScheduler"):
        other(seeds=[1])
    with pytest.raises(ValueError, match="identity"):
        DDGANPipeline(make_net(class_embed_type=None), pipe.scheduler)


def test_a_stranger_draws_the_same_images(tmp_path):
    pipe = make_pipeline(class_names=CLASSES)
    wanted = images_of(pipe, [3, 4], class_labels=["two", "zero"])
    torch.save(wanted, tmp_path / "wanted.pt")
    folder = save_bundle(pipe, tmp_path / "bundle")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["_class_name"] == ["pipeline_ddgan", "DDGANPipeline"]
    stranger = f"""
import sys
sys.modules["trilemma"] = None
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = pipe(seeds=[3, 4], class_labels=["two", "zero"], output_type="pt").images
torch.testing.assert_close(images, torch.load({str(tmp_path / "wanted.pt")!r}), atol=1e-5, rtol=0)
"""
    done = subprocess.run(
        [sys.executable, "-c", stranger], capture_output=True, text=True, cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# The method


def make_method(class_names=None, warmup=0, optim=None, **options):
    accelerator = Accelerator(cpu=True)
    classes = len(class_names or ())
    config = DDGANConfig(**({"watchdog_steps": 0, "r1_interval": 2} | options))
    optim = GANOptimConfig(
        **({"train_batch_size": 8, "learning_rate": 1e-3, "lr_warmup_steps": warmup} | (optim or {}))
    )
    return DDGAN(make_net(), make_discriminator(classes), accelerator, config, optim, 100, class_names)


def flat(net):
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


@pytest.mark.parametrize("class_names", [None, CLASSES])
def test_each_turn_moves_its_own_network_alone(class_names):
    method = make_method(class_names)
    x0, labels = torch.rand(8, 1, 8, 8) * 2 - 1, torch.arange(8) % 3
    for turn, mine, other in ((0, method.discriminator, method.net), (1, method.net, method.discriminator)):
        before, untouched = flat(mine), flat(other)
        method.discriminator.requires_grad_(turn == 0)
        arguments = (True,) if turn == 0 else ()
        losses, _ = method.turns[turn](x0, labels if class_names else None, *arguments)
        assert losses.shape == (8,)
        method._update(turn, losses)
        assert not torch.equal(flat(mine), before)
        assert torch.equal(flat(other), untouched)
        assert all(p.grad is None for p in other.parameters())


def test_the_loss_of_held_out_images_has_the_parts_of_that_of_training():
    """They share a chart."""
    method, x0 = make_method(), torch.rand(8, 1, 8, 8)
    for logs in (method.step(x0, None), method.validate(x0, None, torch.Generator().manual_seed(0))):
        parts = logs["loss_discriminator"].mean() + logs["loss_generator"].mean()
        assert_close(logs["loss"].mean(), parts)


def test_a_state_goes_on_bit_for_bit():
    torch.manual_seed(0)
    x0 = torch.rand(8, 1, 8, 8) * 2 - 1
    one, other = make_method(), make_method()
    for _ in range(3):
        one.step(x0, None)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    torch.manual_seed(5)
    first = [one.step(x0, None)["loss"] for _ in range(3)]
    torch.manual_seed(5)
    second = [other.step(x0, None)["loss"] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(flat(one.net), flat(other.net))
    assert torch.equal(flat(one.discriminator), flat(other.discriminator))
    assert [one.learning_rate(turn) for turn in (0, 1)] == [other.learning_rate(turn) for turn in (0, 1)]


def test_both_rates_warm_up_together_whatever_the_turns():
    method = make_method(warmup=4, discriminator_steps=3, discriminator_learning_rate=2e-3)
    for _ in range(6):
        assert method.learning_rate(0) == pytest.approx(2 * method.learning_rate(1))
        method.step(torch.rand(8, 1, 8, 8), None)


def test_milestones_lower_both_rates_at_the_same_step():
    optim = {"lr_scheduler": "multistep", "lr_milestones": (2, 4), "lr_gamma": 0.1}
    method = make_method(optim=optim, discriminator_steps=3, discriminator_learning_rate=2e-3)
    rates = []
    for _ in range(5):
        rates.append(method.learning_rate(1))
        assert method.learning_rate(0) == pytest.approx(2 * rates[-1])
        method.step(torch.rand(8, 1, 8, 8), None)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_r1_comes_every_so_many_steps():
    method = make_method(r1_interval=3)
    x0 = torch.rand(8, 1, 8, 8)
    assert ["r1" in method.step(x0, None) for _ in range(6)] == [False, False, True] * 2


def test_what_collapse_looks_like():
    x0, noisiest = torch.rand(32, 1, 8, 8) * 2 - 1, torch.arange(32) < 16
    healthy = compare(x0.flip(0), x0, torch.ones(32, dtype=torch.bool))
    assert_close(healthy["contrast"], torch.tensor(1.0))
    assert_close(healthy["diversity"], torch.tensor(1.0))
    black, alike = compare(-torch.ones_like(x0), x0, noisiest), compare(x0[:1].expand_as(x0), x0, noisiest)
    assert black["contrast"] == 0
    assert black["saturated"].mean() == 1
    assert alike["diversity"] < 1e-6 < 0.5 < alike["contrast"]
    labels = torch.arange(32) % 4
    assert_close(compare(x0, x0, noisiest, labels, 4)["diversity"], torch.tensor(1.0))
    one_for_each_class = compare(x0[:4][labels], x0, noisiest, labels, 4)
    assert one_for_each_class["diversity"] < 1e-6 < 0.5 < one_for_each_class["contrast"]
    nothing_to_compare = torch.zeros(32, dtype=torch.bool)
    assert compare(x0, x0, nothing_to_compare)["diversity"].isnan()  # and so does not count


HEALTHY = {
    "contrast": 1.0, "diversity": 0.9, "saturated": 0.5, "saturated_data": 0.5, "logit_spread": 2.0,
    "loss_discriminator": 1.2, "loss_generator": 1.0,
}  # fmt: skip
BROKEN = {"contrast": 0.01, "diversity": 0.01, "saturated": 0.99, "logit_spread": 1e-4}
BROKEN |= {"loss_discriminator": 8.0, "loss_generator": 7.0}


def watch(dog, numbers, first, steps):
    for step in range(first, first + steps):
        logs = {name: torch.tensor(value) for name, value in numbers.items()}
        dog.watch({"loss": torch.zeros(4), **logs}, step)
    return first + steps


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_stops_a_run_that_shows_it_for_long_enough(name):
    dog = Watchdog(5, Accelerator(cpu=True))
    broken = {**HEALTHY, name: BROKEN[name]}
    step = watch(dog, broken, 1, 5 * GRACE)
    assert not dog.calm  # and so no checkpoint, but at the start that is no failure
    step = watch(dog, HEALTHY, step, 5)
    assert dog.calm
    step = watch(dog, broken, step, 5 * (PATIENCE - 1))
    assert not dog.calm
    step = watch(dog, HEALTHY, step, 5)
    assert dog.calm  # it recovered
    with pytest.raises(CollapsedRun, match=rf"{SIGNS[name].meaning}.*To try: .*--"):
        watch(dog, broken, step, 5 * PATIENCE)


def test_a_run_that_never_was_healthy_stops_after_the_start_without_a_checkpoint(caplog):
    dog = Watchdog(5, Accelerator(cpu=True))
    for step in range(1, 5 * GRACE + 5):
        watch(dog, HEALTHY | {"contrast": 0.01}, step, 1)
        assert dog.calm == (step < 5)
    assert "step 5: the images are nearly constant" in caplog.text
    with pytest.raises(CollapsedRun, match="--overwrite_output_dir"):
        watch(dog, HEALTHY | {"contrast": 0.01}, 5 * GRACE + 5, 1)


def test_what_was_not_seen_in_a_window_is_not_judged():
    dog = Watchdog(5, Accelerator(cpu=True))
    watch(dog, HEALTHY | {"diversity": float("nan")}, 1, 5 * (GRACE + PATIENCE))
    assert dog.calm


def test_the_watchdog_can_be_turned_off():
    dog = Watchdog(0, Accelerator(cpu=True))
    watch(dog, HEALTHY | BROKEN, 1, 200)
    assert dog.calm


# The entry point


def refused(capsys, *argv):
    with pytest.raises(SystemExit):
        parse("ddgan", "", list(argv))
    return capsys.readouterr().err


def test_what_the_command_line_refuses(capsys):
    assert "has just been updated" in refused(capsys, "--gradient_accumulation_steps", "2")
    assert "multiple of 4" in refused(capsys, "--train_batch_size", "6")
    assert "--beta_max" in refused(capsys, "--beta_max", "0.05")
    assert "the first at least 4" in refused(capsys, "--discriminator_channels", "2", "8")
    assert "does not apply here" in refused(capsys, "--prediction_type", "epsilon")
    assert "--sampler" in refused(capsys, "--sampler", "ddim")
    assert "--ddpm_num_steps" in refused(capsys, "--ddpm_num_steps", "1000")
    assert "--ddpm_num_steps, 4; got 3" in refused(capsys, "--ddpm_num_inference_steps", "3")
    assert "go together" in refused(capsys, "--lr_scheduler", "multistep")


def test_the_rates_of_both_networks_take_milestones():
    config = parse("ddgan", "", ["--lr_scheduler", "multistep", "--lr_milestones", "10", "20"])
    assert config.optim.lr_milestones == (10, 20)


@pytest.fixture
def flags(tmp_path, tiny):
    """Of a run that takes milliseconds a step."""
    steps = tiny.index("--ddpm_num_inference_steps")
    warmup = tiny.index("--lr_warmup_steps")
    kept = [w for i, w in enumerate(tiny) if i not in (steps, steps + 1, warmup, warmup + 1)]
    return [*kept, "--discriminator_channels", "8", "8", "--r1_interval", "3"]


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def checkpoint(folder):
    return find_checkpoint(folder / "checkpoints", "latest")[1]["method"]


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def scalars(folder):
    return [json.loads(line) for line in (folder / "logs" / "scalars.jsonl").read_text().splitlines()]


def test_a_run_fills_its_folder_and_fine_tunes(tmp_path, flags):
    out = tmp_path / "out"
    more = ["--class_conditional", "--max_train_steps", "6", "--sample_steps", "3"]
    more += ["--train_batch_size", "64"]  # images of one class, which diversity compares
    run(SCRIPT, *flags, *more, "--output_dir", str(out))
    names = {path.name for path in out.iterdir()}
    assert {"model_index.json", "pipeline_ddgan.py", "samples.png", "process.png", "schedules.png"} <= names
    assert {path.name for path in (out / "sheets").iterdir()} == {"step-00000003.png", "step-00000006.png"}
    assert not list(out.rglob("*discriminator*"))
    logged = {name for line in scalars(out) for name in line}
    wanted = """loss_generator loss_discriminator accuracy_real_t1 accuracy_fake_t4 logit_gap logit_spread r1
    contrast diversity saturated saturated_data gradient_norm_generator gradient_norm_discriminator"""
    assert set(wanted.split()) <= logged
    index = json.loads((out / "model_index.json").read_text())
    assert index["class_names"] == {digit: digit for digit in "0123456789"}
    more = ["--init_from", str(out), "--learning_rate", "1e-12", "--no-use_ema", "--max_train_steps", "1"]
    without = ["--no-class_conditional", "--output_dir", str(tmp_path / "others")]
    others = run(SCRIPT, *flags, *more, *without, check=False)
    assert others.wait() != 0
    assert "has 10 classes ('0', '1', " in others.output
    assert "--init_new_classes" in others.output
    run(SCRIPT, *flags, *more, "--class_conditional", "--output_dir", str(tmp_path / "more"))
    for name, tensor in weights(out).items():
        assert_close(weights(tmp_path / "more")[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.long
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, flags):
    flags = [*flags, "--max_train_steps", "20", "--checkpointing_steps", "4", "--mixed_precision", "bf16"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "uncut"))
    cut = tmp_path / "cut"
    for step in sorted(random.Random(0).sample(range(2, 19), 2)):
        killed = start(SCRIPT, *flags, "--output_dir", str(cut), signal_at=(step, signal.SIGKILL))
        assert killed.wait() == -signal.SIGKILL
    run(SCRIPT, *flags, "--output_dir", str(cut))
    assert_same(weights(tmp_path / "uncut"), weights(cut))
    uncut = checkpoint(tmp_path / "uncut")
    assert_same(uncut["discriminator"], checkpoint(cut)["discriminator"])
    for one, two in zip(uncut["optimizers"], checkpoint(cut)["optimizers"], strict=True):
        for index in one["state"]:
            assert_same(one["state"][index], two["state"][index])
    assert [line["step"] for line in scalars(cut) if "loss" in line] == list(range(1, 21))


def test_a_discriminator_a_hundred_times_too_fast_is_caught(tmp_path, flags):
    """The run stops with the sign and the flags to try, and the checkpoint from before it is still there."""
    out = tmp_path / "out"
    rate = 100 * PRESETS["digits"].options["discriminator_learning_rate"]
    fast = ["--discriminator_channels", "16", "32", "--discriminator_learning_rate", str(rate)]
    fast += ["--watchdog_steps", "20", "--checkpointing_steps", "20", "--validation_steps", "1000"]
    done = run(SCRIPT, *flags, *fast, "--max_train_steps", "1000", "--output_dir", str(out), check=False)
    assert done.wait() != 0
    assert "collapsed by step" in done.output
    assert "--discriminator_learning_rate" in done.output
    assert "Traceback" not in done.output
    stopped = int(done.output.split("collapsed by step ")[1].split(":")[0])
    assert checkpoint_steps(out / "checkpoints")[-1] <= stopped - 20 * PATIENCE
    assert not (out / "model_index.json").exists()


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_are_one_generator_and_one_discriminator(tmp_path, flags):
    """R1's second derivative included: gradients of both networks are means over the ranks."""
    one, two = two_ranks("two_ranks_gan.py", tmp_path, *flags, "--max_train_steps", "7")
    assert one["generator"] == two["generator"]
    assert one["discriminator"] == two["discriminator"]
    assert not set(one["x0"]) & set(two["x0"])
