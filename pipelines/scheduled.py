"""What pipelines need that are sampled by a scheduler of diffusers: their sampler, steps and calls."""

import copy
import inspect
from typing import Any, Self

import numpy as np
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
)

from trilemma.pipelines.samplers import is_flow, sampler_of, samplers_for, scheduler_for
from trilemma.pipelines.shared import Generators, ShippedPipeline, is_integer

OF_FLOWS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


class SchedulerPipeline(ShippedPipeline):
    """A network `unet`, called at each step, and a `scheduler`, for which a row of SAMPLERS can stand in."""

    model_cpu_offload_seq = "unet"

    @property
    def network(self) -> ModelMixin:
        """The network that is called at each step."""
        return self.unet

    @property
    def sampler(self) -> str:
        """The name of the sampler in use, as --sampler takes it."""
        return sampler_of(self.scheduler)

    def samplers(self) -> tuple[str, ...]:
        """The names of the samplers that this model can be sampled with."""
        return samplers_for(self.scheduler)

    def with_sampler(self, name: str) -> Self:
        """A copy with another sampler of the same noise schedule; this pipeline stays as it is."""
        other = copy.copy(self)
        other.register_modules(scheduler=scheduler_for(self.scheduler, name))
        return other

    def steps(self, wanted: int | None) -> int:
        """The usual number of steps, or `wanted`; ValueError if the sampler cannot take that many."""
        return scheduler_steps(self.scheduler, wanted)

    def calls(self, steps: int, guided: bool) -> int:
        """Network evaluations that an image costs."""
        return scheduler_calls(self.scheduler, steps, guided)


def scheduler_steps(scheduler: SchedulerMixin, steps: int | None) -> int:
    """`steps`, or the usual number of them: all T of DDPM; for others 50, or the largest divisor of T below.

    ValueError for a number from which the scheduler makes a wrong chain. DDIM and PNDM go from t to
    t - T // steps: unless `steps` divides T or spacing is leading, that is not the next timestep, and a step
    removes the noise of a shorter one. Where T / steps is inexact, trailing timesteps can end in an extra -1,
    which stands for the noisiest level.
    """
    total = scheduler.config.num_train_timesteps
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    if steps is None:
        return total if isinstance(scheduler, DDPMScheduler) else max(n for n in divisors if n <= 50)
    kind, scheduler = f"{type(scheduler).__name__} of {total} steps", copy.deepcopy(scheduler)
    if not is_integer(steps) or not 1 <= steps <= total:
        raise ValueError(f"--num_inference_steps must be 1 to {total} for a {kind}, an integer; got {steps}")
    scheduler.set_timesteps(steps)
    spacing = scheduler.config.get("timestep_spacing")
    fixed_stride = isinstance(scheduler, DDIMScheduler | PNDMScheduler) and spacing != "leading"
    if (fixed_stride and total % steps) or (spacing == "trailing" and min(scheduler.timesteps) < 0):
        near = f"{max(n for n in divisors if n < steps)} or {min(n for n in divisors if n > steps)}"
        raise ValueError(f"--num_inference_steps must divide {total} for a {kind}, as {near}; got {steps}")
    return steps


def scheduler_calls(scheduler: SchedulerMixin, steps: int, guided: bool) -> int:
    """Network evaluations for one image: one a time step, two with guidance. Heun has 2N - 1 steps."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps) * (1 + guided)


def started(
    scheduler: SchedulerMixin, steps: int | None, generator: Generators, eta: float
) -> tuple[SchedulerMixin, dict[str, Any]]:
    """A copy of a scheduler, which keeps state while it samples, set to `steps`; and its `step_options`."""
    scheduler, steps = copy.deepcopy(scheduler), scheduler_steps(scheduler, steps)
    scheduler.set_timesteps(steps)
    if isinstance(scheduler, OF_FLOWS):  # these take the state as it is, from N(0, I), and do not say so
        scheduler.init_noise_sigma, scheduler.scale_model_input = 1.0, lambda sample, timestep: sample
    return scheduler, step_options(scheduler, generator, eta)


def noise_levels(scheduler: SchedulerMixin) -> np.ndarray:
    """sigma, noise over signal, at each of the scheduler's time steps; ValueError where it does not say."""
    timesteps = scheduler.timesteps.double().numpy()
    if is_flow(scheduler):
        noise = timesteps / scheduler.config.num_train_timesteps
        return noise / np.maximum(1 - noise, 1e-20)
    try:
        abar = scheduler.alphas_cumprod.double().numpy().clip(1e-20, 1)
    except AttributeError:
        name = type(scheduler).__name__
        raise ValueError(f"guidance_interval needs alphas_cumprod, which {name} does not have") from None
    log_sigma = 0.5 * (np.log1p(-abar) - np.log(abar))
    # Some schedulers step between two timesteps of training, as with Karras' noise levels.
    return np.exp(np.interp(timesteps, np.arange(len(abar)), log_sigma))


def step_options(scheduler: SchedulerMixin, generator: Generators, eta: float) -> dict[str, Any]:
    """The arguments of `scheduler.step` that only some schedulers have."""
    # Schedulers of diffusers and of its users have no common interface for this; only the signature says it.
    accepted = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in accepted:
        raise ValueError(f"eta must be 0 for {type(scheduler).__name__}, got {eta}; DDIMScheduler has an eta")
    # Without use_clipped_model_output, DDIM clips x_0 but keeps the noise of the unclipped one, and the two
    # drift apart: a little in every model, badly under guidance. Dhariwal & Nichol's code also clips both.
    options = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
    return {name: value for name, value in options.items() if name in accepted}


def used_channels(in_channels: int, out_channels: int, scheduler: SchedulerMixin) -> int:
    """How many of the network's output channels the scheduler takes."""
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"a network of {in_channels} input channels must have {in_channels} output channels, or "
            f"{2 * in_channels} if it predicts a variance; got {out_channels}"
        )
    learned = ("learned", "learned_range")
    takes_variance = isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in learned
    return out_channels if takes_variance else in_channels
