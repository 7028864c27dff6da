"""Every noise schedule with every sampler, for few and many steps T: the schedule and the samples' law.

The data are pixels N(0.1, 0.2^2), whose best denoiser is known, so no network is trained.
"""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config

from trilemma.eval.bounds.gaussian import process_of
from trilemma.eval.plots import process
from trilemma.eval.plots.sheets import Subject
from trilemma.pipelines.samplers import SAMPLERS, scheduler_for
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.diffusion.process import SCHEDULES, noise_schedule
from trilemma.training.objectives.ddpm import ddpm_scheduler
from trilemma.training.options.ddpm import DDPMConfig

MEAN, DEVIATION = 0.1, 0.2
STEPS = (20, 50, 100, 1000, 4000)
SECOND_ORDER = ("dpmsolver++", "sde-dpmsolver++", "unipc", "heun")
OTHERS = (
    "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
"""Schedulers of diffusers that are no row of `SAMPLERS`, which users load our models with."""


class Denoiser(ModelMixin, ConfigMixin):
    """The best answer for this law, at any real t, between whose neighbours log sigma / alpha is linear."""

    @register_to_config
    def __init__(self, abar=(), target="epsilon", sample_size=64, in_channels=1, out_channels=1):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        abar = torch.tensor(abar, dtype=torch.float64)
        self.log_ratio = 0.5 * (torch.log1p(-abar) - torch.log(abar))

    def forward(self, x, t):
        below = int(t)
        above = min(below + 1, len(self.log_ratio) - 1)
        ratio = torch.lerp(self.log_ratio[below], self.log_ratio[above], float(t) - below).exp()
        alpha = (1 + ratio**2) ** -0.5
        sigma = ratio * alpha
        x0 = MEAN + _gain(alpha, sigma) * (x.double() - alpha * MEAN)
        epsilon = (x - alpha * x0) / sigma
        targets = {"epsilon": epsilon, "sample": x0, "v_prediction": alpha * epsilon - sigma * x0}
        return SimpleNamespace(sample=targets[self.config.target].float())


def _gain(alpha, sigma):
    return alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)


def pipeline_of(name, steps, target="epsilon"):
    schedule = noise_schedule(name, steps)
    denoiser = Denoiser(schedule.process().abar[1:].tolist(), target)
    scheduler = ddpm_scheduler(schedule, DDPMConfig(prediction_type=target))
    pipeline = UnconditionalPipeline(denoiser, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, schedule.process().abar


def law(name, abar, timesteps):
    """Mean and deviation of what a chain of first order ends in, in float64; timesteps: diffusers' 0..T-1."""
    mean, variance = 0.0, 1.0
    for i, t in enumerate(timesteps):
        now, last = abar[t + 1], i + 1 == len(timesteps)
        after = abar[timesteps[i + 1] + 1] if not last else torch.ones(()).double()
        alpha, sigma = now.sqrt(), (1 - now).sqrt()
        gain = _gain(alpha, sigma)  # x0_hat = gain * x + rest
        rest = MEAN - gain * alpha * MEAN
        noise = 0.0
        if name == "ddpm":
            beta = 1 - now / after
            from_x0, from_x = after.sqrt() * beta / (1 - now), (1 - beta).sqrt() * (1 - after) / (1 - now)
            noise = 0.0 if last else beta
        elif name == "euler_ancestral":
            high, low = sigma / alpha, (1 / after - 1).sqrt()
            up = low * (1 - (low / high) ** 2).sqrt()
            down = low**2 / high
            # in x / alpha: (down / high) x + (1 - down / high) x0
            from_x, from_x0 = after.sqrt() / alpha * down / high, after.sqrt() * (1 - down / high)
            noise = (after.sqrt() * up) ** 2
        else:
            from_x = (1 - after).sqrt() / sigma
            from_x0 = after.sqrt() - alpha * from_x
        mean = (from_x + from_x0 * gain) * mean + from_x0 * rest
        variance = (from_x + from_x0 * gain) ** 2 * variance + noise
    return float(mean), float(variance) ** 0.5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_combination_samples_the_right_law(name, schedule, steps):
    pipeline, abar = pipeline_of(schedule, steps)
    pipeline = pipeline.with_sampler(name)
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod.double(), abar[1:], rtol=5e-4, atol=1e-6)
    count = min(250, pipeline.steps(None))
    images = pipeline(seeds=range(4), num_inference_steps=count, output_type="pt").images.double() * 2 - 1
    mean, deviation, tolerance = MEAN, DEVIATION, 0.06 if steps > 50 else 0.15
    if name not in SECOND_ORDER:
        mean, deviation = law(name, abar, [steps * (count - k) // count - 1 for k in range(count)])
        tolerance = 0.025  # four standard errors of 16,384 pixels
    assert abs(images.std() / deviation - 1) < tolerance
    assert abs(images.mean() - mean) < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_picture_of_the_process_is_the_same_noising_for_every_sampler(name, schedule, monkeypatch):
    seen = []
    monkeypatch.setattr(process, "both_ways", lambda subject, forward, times: seen.append((forward, times)))
    x0 = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    pipeline, abar = pipeline_of(schedule, 20)
    for one in (pipeline, pipeline.with_sampler(name)):
        process.scheduled_process(Subject(one, x0, 10, None, False))
    (forward, times), (again, _) = seen
    torch.testing.assert_close(again, forward, rtol=0, atol=2e-4)
    assert (times[0], times[-1]) == (0, 1)
    assert torch.equal(forward[:, 0], x0)
    noise = (forward[:, -1] - abar[-1].sqrt() * x0) / (1 - abar[-1]).sqrt()
    assert 0.7 < noise.std() < 1.3


@pytest.mark.parametrize("target", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_other_targets_sample_the_same_law(name, target):
    if target not in SAMPLERS[name].targets:
        with pytest.raises(ValueError, match=f"--sampler {name} cannot .* {target}; these can: ddpm, "):
            pipeline_of("sigmoid", 100, target)[0].with_sampler(name)
        return
    pictures = [
        pipeline_of("sigmoid", 100, t)[0].with_sampler(name)(seeds=[1], output_type="pt").images
        for t in ("epsilon", target)
    ]
    torch.testing.assert_close(*pictures, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("schedule", "steps"), [*((name, steps) for name in SCHEDULES for steps in (20, 1000)), ("sigmoid", 4000)]
)
def test_the_saved_schedule_is_read_by_stock_schedulers(tmp_path, schedule, steps):
    pipeline, abar = pipeline_of(schedule, steps)
    pipeline.scheduler.save_pretrained(tmp_path)
    torch.testing.assert_close(process_of(DDPMScheduler.from_pretrained(tmp_path)).abar, abar)
    config = DDPMScheduler.load_config(tmp_path)
    for name in {*(row.scheduler for row in SAMPLERS.values()), *OTHERS}:
        kind = getattr(diffusers, name)
        for scheduler in (kind.from_pretrained(tmp_path), kind.from_config(config)):
            found = scheduler.alphas_cumprod.double()
            torch.testing.assert_close(found, abar[1:], rtol=5e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scheduler_saved_with_the_name_alone_is_read_too(tmp_path, name):
    schedule = noise_schedule("sigmoid", 100)
    older = DDPMScheduler(100, schedule.beta_start, schedule.beta_end, "sigmoid", timestep_spacing="trailing")
    older.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text(encoding="utf-8"))
    assert saved["trained_betas"] is None
    scheduler = scheduler_for(DDPMScheduler.from_pretrained(tmp_path), name)
    assert torch.equal(scheduler.alphas_cumprod, older.alphas_cumprod)


def test_options_of_a_long_first_step_go_with_their_sampler():
    pipeline, _ = pipeline_of("squaredcos_cap_v2", 1000)
    heun = pipeline.with_sampler("heun")
    assert heun.scheduler.config.use_exponential_sigmas
    assert not heun.with_sampler("dpmsolver++").scheduler.config.use_exponential_sigmas
    assert not pipeline_of("linear", 1000)[0].with_sampler("heun").scheduler.config.use_exponential_sigmas
