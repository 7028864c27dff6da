"""The noising process against diffusers, a direct application of Bayes' rule, and the limits it must
respect.
"""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from trilemma.training.diffusion.process import (
    MAX_SIGNAL,
    SCHEDULES,
    TARGETS,
    GaussianProcess,
    noise_schedule,
)

CASES = [(name, steps) for name in SCHEDULES for steps in (50, 1000, 4000)]


def stock(schedule):
    return DDPMScheduler(
        num_train_timesteps=schedule.steps,
        beta_schedule=schedule.name,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
    )


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_schedule_equals_diffusers(name, steps):
    schedule = noise_schedule(name, steps)
    abar = schedule.process().abar
    assert abar.dtype == torch.float64
    assert abar[0] == 1
    assert len(abar) == steps + 1
    torch.testing.assert_close(abar[1:].float(), stock(schedule).alphas_cumprod, rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_the_end_is_noise(name, steps):
    assert noise_schedule(name, steps).signal() <= MAX_SIGNAL * (1 + 1e-9)


def test_linear_at_1000_is_the_papers():
    schedule = noise_schedule("linear", 1000)
    assert (schedule.beta_start, schedule.beta_end, schedule.remark) == (1e-4, 0.02, "")


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_few_steps_are_safe_or_refused(name, steps):
    if steps <= 2:
        with pytest.raises(ValueError, match=f"{name} with --ddpm_num_steps {steps} "):
            noise_schedule(name, steps)
    else:
        schedule = noise_schedule(name, steps)
        assert schedule.signal() <= MAX_SIGNAL * (1 + 1e-9)
        assert schedule.betas().min() > 0
        assert schedule.betas().max() < 1


def test_scaling_is_told():
    assert "scaled" in noise_schedule("linear", 200).remark
    assert "0.01" in noise_schedule("scaled_linear", 1000).remark


def test_given_betas_are_taken_or_refused_never_changed():
    assert noise_schedule("linear", 1000, 2e-4, 0.03).beta_end == 0.03
    with pytest.raises(ValueError, match="shows the image"):
        noise_schedule("linear", 1000, 1e-5, 1e-3)
    with pytest.raises(ValueError, match="beta reaches"):
        noise_schedule("linear", 1000, 1e-4, 1.5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sigma_is_right_at_every_t_for_every_dtype(name, dtype):
    process = noise_schedule(name, 1000).process().to(dtype)
    t = torch.arange(1, 1001)
    exact = (1 - process.abar[1:]).sqrt()
    x_t = process.diffuse(torch.zeros(1000, 1, dtype=dtype), t, torch.ones(1000, 1, dtype=dtype))
    assert x_t.dtype == torch.float32
    assert (x_t > 0).all()
    torch.testing.assert_close(x_t[:, 0].double(), exact, rtol=0.01, atol=0)


def test_diffuse_equals_diffusers():
    schedule = noise_schedule("linear", 1000)
    x0, noise, t = torch.randn(64, 3, 4, 4), torch.randn(64, 3, 4, 4), torch.randint(1, 1001, (64,))
    ours = schedule.process().diffuse(x0, t, noise)
    torch.testing.assert_close(ours, stock(schedule).add_noise(x0, noise, t - 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule(name):
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): two Gaussians
    multiplied.
    """
    process = noise_schedule(name, 100).process()
    t = torch.arange(2, 101)
    x0, x_t = torch.randn(99, 1), torch.randn(99, 1)
    now, before = process.abar[t], process.abar[t - 1]
    step = now / before
    precision = step / (1 - step) + 1 / (1 - before)
    mean = (step.sqrt() / (1 - step) * x_t[:, 0] + before.sqrt() / (1 - before) * x0[:, 0]) / precision
    ours_mean, ours_variance = process.posterior(x0, x_t, t)
    torch.testing.assert_close(ours_variance, 1 / precision)
    torch.testing.assert_close(ours_mean[:, 0].double(), mean, rtol=1e-5, atol=1e-5)


def test_posterior_step_equals_the_schedulers():
    schedule = noise_schedule("linear", 1000)
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False, variance_type="fixed_small")
    process = schedule.process()
    for t in (1, 2, 500, 1000):
        x0, x_t = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
        step = scheduler.step(x0, t - 1, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        mean, variance = process.posterior(x0, x_t, torch.full((2,), t))
        ours = mean + variance.sqrt().float().view(-1, 1, 1, 1) * noise
        # The scheduler's float32 products lose digits where 1 - abar is small.
        torch.testing.assert_close(ours, step, rtol=1e-4, atol=2e-5 if t > 2 else 3e-4)


def test_variance_is_zero_at_the_first_step_only():
    variance = noise_schedule("linear", 1000).process().posterior_variance(torch.arange(1, 1001))
    assert variance[0] == 0
    assert (variance[1:] > 0).all()


@pytest.mark.parametrize("name", TARGETS)
def test_targets_invert(name):
    process = noise_schedule("squaredcos_cap_v2", 1000).process()
    t = torch.arange(1, 990, 10)
    x0, noise = torch.randn(len(t), 2, 3), torch.randn(len(t), 2, 3)
    alpha, sigma = (v.double() for v in process.signal_and_noise(t, x0))
    x_t = alpha * x0 + sigma * noise
    encoded = TARGETS[name].encode(x0.double(), noise.double(), alpha, sigma)
    back = TARGETS[name].to_x0(encoded, x_t, alpha, sigma)
    torch.testing.assert_close(back, x0.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TARGETS)
def test_error_scale_relates_target_and_x0_errors(name):
    abar = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    x_t, output = torch.randn(2, 3, dtype=torch.float64)
    to_x0 = TARGETS[name].to_x0
    moved = to_x0(output + 1, x_t, alpha, sigma) - to_x0(output, x_t, alpha, sigma)
    torch.testing.assert_close(TARGETS[name].error_scale(abar / (1 - abar)), moved**-2)


def test_process_stays_float64_under_half():
    process = GaussianProcess(torch.tensor([1.0, 0.5, 0.1])).half().to("cpu")
    assert process.abar.dtype == torch.float64
    assert "abar" not in process.state_dict()


def test_v_prediction_is_a_rotation():
    angle = torch.tensor(0.3)
    x0, noise = torch.tensor(0.7), torch.tensor(-1.2)
    v = TARGETS["v_prediction"].encode(x0, noise, angle.cos(), angle.sin())
    x = angle.cos() * x0 + angle.sin() * noise
    assert math.isclose(float(x**2 + v**2), float(x0**2 + noise**2), rel_tol=1e-6)
