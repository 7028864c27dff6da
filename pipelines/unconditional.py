"""Sampling from an unconditional model: a seed for each image, any scheduler of diffusers.

The state of the sampler is float32 whatever the dtype of the network. On disk the pipeline is a stock
`DDPMPipeline`, which plain diffusers loads.
"""

import copy
import inspect
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
)
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class UnconditionalPipelineOutput(BaseOutput):
    """B images, and k states on the way to them where `trajectory=k` asked for them.

    "pil": a list of B images, k lists of B images. "np": (B, H, W, C), (k, B, H, W, C). "pt": (B, C, H, W),
    (k, B, C, H, W). Arrays and tensors are float32 in [0, 1].
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: list[list[Image.Image]] | np.ndarray | Tensor | None = None


class UnconditionalPipeline(DiffusionPipeline):
    """A network that denoises, and a scheduler of diffusers.

    unet: called as `unet(x_t (B, C, H, W), t).sample`, such as a `UNet2DModel`. Its output has C channels, or
    2C if it also predicts a variance (Nichol & Dhariwal 2021). A `DDPMScheduler` with a learned variance
    takes both halves; other schedulers take the first.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        trajectory: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> UnconditionalPipelineOutput | tuple:
        """Generate images.

        batch_size: the number of images; follows from `seeds` if they are given.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: by default, all steps of training for a `DDPMScheduler` and 50 for others.
        eta: how much noise DDIM adds, from 0 (none) to 1 (as much as DDPM); for schedulers that have it.
        trajectory: how many states to keep, evenly spaced from the noise to the image, as the network sees
            them.
        output_type: pil, np or pt.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        generator, batch_size = _generators(batch_size, seeds, generator)
        scheduler = copy.deepcopy(self.scheduler)  # a scheduler keeps state while it samples
        _set_timesteps(scheduler, num_inference_steps)
        options = _step_options(scheduler, generator, eta)
        kept = _evenly_spaced(trajectory, len(scheduler.timesteps))

        config = self.unet.config
        outputs = _used_channels(config.in_channels, config.out_channels, scheduler)
        size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        shape = (batch_size, config.in_channels, *size)
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

        image = noise * scheduler.init_noise_sigma
        states = []
        for i, timestep in enumerate(self.progress_bar(scheduler.timesteps)):
            model_input = scheduler.scale_model_input(image, timestep)
            if i in kept:
                states.append(model_input)
            output = self.unet(model_input.to(self.unet.dtype), timestep).sample[:, :outputs].float()
            step = scheduler.step(output, timestep, image, **options)
            image = step.prev_sample
        if isinstance(scheduler, DDPMScheduler):
            image = step.pred_original_sample  # the last mean: DDPMScheduler adds noise to it if t > 0
        self.maybe_free_model_hooks()

        result = UnconditionalPipelineOutput(images=_convert(image, output_type))
        if trajectory:
            result["trajectory"] = _convert(torch.stack([*states, image]), output_type)
        return result if return_dict else result.to_tuple()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> None:
        """Save as a stock `DDPMPipeline`, for anyone who has diffusers. The arguments are diffusers' own."""
        hub = {"commit_message": commit_message, "private": private, "token": token, "create_pr": create_pr}
        if repo_id is not None:
            hub["repo_id"] = repo_id
        DDPMPipeline(unet=self.unet, scheduler=self.scheduler).save_pretrained(
            os.fspath(save_directory),
            safe_serialization=safe_serialization,
            variant=variant,
            max_shard_size=max_shard_size,
            push_to_hub=push_to_hub,
            **(hub if push_to_hub else {}),
        )


def _generators(
    batch_size: int, seeds: Sequence[int] | None, generator: torch.Generator | list[torch.Generator] | None
) -> tuple[torch.Generator | list[torch.Generator] | None, int]:
    """What the noise is drawn from, and the number of images."""
    generator = list(generator) if isinstance(generator, tuple) else generator  # diffusers knows lists only
    if seeds is None:
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"batch_size={batch_size} needs as many generators; got {len(generator)}")
        return generator, batch_size
    if generator is not None:
        raise ValueError("pass seeds or generator, not both")
    if isinstance(seeds, int) or len(seeds) == 0:
        raise ValueError(f"seeds must be a sequence of ints, one per image; got {seeds!r}")
    if batch_size not in (1, len(seeds)):
        raise ValueError(f"batch_size={batch_size} needs as many seeds; got {len(seeds)}")
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds], len(seeds)


def _set_timesteps(scheduler: SchedulerMixin, steps: int | None) -> None:
    """Set the steps of sampling; refuse a number of them from which the scheduler makes a wrong chain.

    DDIM and PNDM go from t to t - T // steps. Unless `steps` divides T or spacing is leading, this is not the
    next timestep: with 501 of 1000 steps, each removes the noise of one. Where T / steps is inexact, trailing
    timesteps can end in a -1 too many, which stands for the noisiest level.
    """
    total = scheduler.config.num_train_timesteps
    if steps is None:
        steps = total if isinstance(scheduler, DDPMScheduler) else min(50, total)
    name = f"{type(scheduler).__name__} of {total} steps"
    if not isinstance(steps, numbers.Integral) or not 1 <= steps <= total:
        raise ValueError(f"num_inference_steps must be 1 to {total} for a {name}, an integer; got {steps}")
    scheduler.set_timesteps(steps)
    spacing = scheduler.config.get("timestep_spacing")
    fixed_stride = isinstance(scheduler, DDIMScheduler | PNDMScheduler) and spacing != "leading"
    if (fixed_stride and total % steps) or (spacing == "trailing" and min(scheduler.timesteps) < 0):
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        near = f"{max(n for n in divisors if n < steps)} or {min(n for n in divisors if n > steps)}"
        raise ValueError(f"num_inference_steps must divide {total} for a {name}, as {near}; got {steps}")


def _step_options(
    scheduler: SchedulerMixin, generator: torch.Generator | list[torch.Generator] | None, eta: float
) -> dict:
    """Those arguments of `scheduler.step` that only some schedulers have."""
    accepted = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in accepted:
        raise ValueError(f"eta must be 0 for {type(scheduler).__name__}, got {eta}; DDIMScheduler has an eta")
    # Without the last, DDIM clips x_0 but keeps the noise of the unclipped one, and the two drift apart: a
    # little in every model, and to ruins under guidance. Dhariwal & Nichol's code does as here.
    options = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
    return {name: value for name, value in options.items() if name in accepted}


def _used_channels(in_channels: int, out_channels: int, scheduler: SchedulerMixin) -> int:
    """How many of the network's output channels the scheduler takes."""
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"a network of {in_channels} input channels must have {in_channels} output channels, or "
            f"{2 * in_channels} if it predicts a variance; got {out_channels}"
        )
    learned = ("learned", "learned_range")
    takes_variance = isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in learned
    return out_channels if takes_variance else in_channels


def _evenly_spaced(count: int, steps: int) -> set[int]:
    """The steps before which a state is kept; the image, after the last step, makes them `count`."""
    if count and not 2 <= count <= steps + 1:
        raise ValueError(f"trajectory must be 0 or from 2 to {steps + 1} for these steps; got {count}")
    return set(np.linspace(0, steps, count).round().astype(int)[:-1].tolist())


def _convert(images: Tensor, output_type: str) -> list | np.ndarray | Tensor:
    """(..., C, H, W) in [-1, 1], clipped to it, as `output_type`; PIL images by rounding to the nearest."""
    images = (images / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    arrays = images.movedim(-3, -1).cpu().numpy()
    if output_type == "np":
        return arrays
    if arrays.ndim == 5:
        return [DiffusionPipeline.numpy_to_pil(state) for state in arrays]
    return DiffusionPipeline.numpy_to_pil(arrays)
