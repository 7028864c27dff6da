"""Sampling from an unconditional model: a seed for each image, any scheduler of diffusers.

The state of the sampler is float32 whatever the dtype of the network. With a network of diffusers, the
pipeline is on disk a stock `DDPMPipeline`, which plain diffusers loads; with another, it brings its code.
"""

from collections.abc import Sequence

import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.utils.torch_utils import randn_tensor

from trilemma.pipelines.samplers import ALL_TARGETS
from trilemma.pipelines.scheduled import SchedulerPipeline, started, used_channels
from trilemma.pipelines.shared import (
    ImagesOutput,
    check_output_type,
    image_shape,
    images_output,
    kept_steps,
    read_generators,
)


class UnconditionalPipeline(SchedulerPipeline):
    """A network that denoises, and a scheduler of diffusers.

    unet: called as `unet(x_t (B, C, H, W), t).sample`, such as a `UNet2DModel`. Its output has C channels, or
    2C if it also predicts a variance (Nichol & Dhariwal 2021). A `DDPMScheduler` with a learned variance
    takes both halves; other schedulers take the first.
    """

    family = "unconditional"
    saved_as = DDPMPipeline
    default_guidance = None

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
    ) -> ImagesOutput | tuple:
        """Generate images.

        batch_size: the number of images; follows from `seeds` if they are given.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: by default, all T of training for a `DDPMScheduler`; for others 50, or the
            largest divisor of T below.
        eta: how much noise DDIM adds, from 0 (none) to 1 (as much as DDPM); for schedulers that have it.
        trajectory: how many states to keep, evenly spaced from noise to image, as the network sees them.
        output_type: pil, np or pt.
        """
        check_output_type(output_type)
        generator, batch_size = read_generators(batch_size, seeds, generator)
        scheduler, options = started(self.scheduler, num_inference_steps, generator, eta)
        kept = kept_steps(trajectory, len(scheduler.timesteps))

        config = self.unet.config
        outputs = used_channels(config.in_channels, config.out_channels, scheduler)
        shape = image_shape(config, batch_size)
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
        return images_output(image, states, output_type, return_dict)


def is_stock(kind: type[DiffusionPipeline], scheduler: SchedulerMixin | None) -> bool:
    """Whether a stock pipeline of this class and with this scheduler is a model of this family."""
    target = None if scheduler is None else scheduler.config.get("prediction_type")
    denoises = target in ALL_TARGETS and not isinstance(scheduler, LCMScheduler)  # that of consistency models
    return kind is UnconditionalPipeline.saved_as and denoises


def from_stock(pipeline: DDPMPipeline) -> UnconditionalPipeline:
    """The pipeline of a model that was saved: a stock one with the same components."""
    return UnconditionalPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
