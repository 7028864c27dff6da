"""Sampling from a consistency model in one or a few calls of its network.

Song et al. 2023 (arXiv 2303.01469), algorithm 1: a call maps noise to an image; each further call adds less
noise to that image and maps it again. diffusers' `LCMScheduler` does both, with the boundary condition of the
training. On disk a model without classes is a stock `DDPMPipeline`, which plain diffusers loads; one with
classes brings its code, since the stock pipeline takes no labels.
"""

import copy
from collections.abc import Iterable, Sequence

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, LCMScheduler, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from trilemma.pipelines.shared import (
    ImagesOutput,
    OneSamplerPipeline,
    check_output_type,
    ids_with_null,
    image_shape,
    images_output,
    is_integer,
    kept_steps,
    listed,
    names_by_id,
    read_generators,
)

STEPS = 2


class ConsistencyPipeline(OneSamplerPipeline):
    """A network, called once or a few times, and an `LCMScheduler`.

    `class_names` has one name for each class of a class-conditional model, and is None for others.
    `model_index.json` keeps it as `{"0": name, ...}`: diffusers takes a list there for a component.
    """

    family = "consistency"
    only_sampler = "lcm"
    default_guidance = None
    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: LCMScheduler,
        class_names: dict[str, str] | list[str] | tuple[str, ...] | None = None,
    ):
        super().__init__()
        if not isinstance(scheduler, LCMScheduler):
            raise ValueError(f"scheduler must be an LCMScheduler; got a {type(scheduler).__name__}")
        self.register_modules(unet=unet, scheduler=scheduler)
        if class_names is not None:  # a stock pipeline does not know the entry
            self.register_to_config(class_names=names_by_id(class_names))

    @property
    def saved_as(self) -> type[DiffusionPipeline] | None:
        """The stock pipeline that a model without classes is saved as."""
        return DDPMPipeline if self.class_names is None else None

    @property
    def network(self) -> ModelMixin:
        """The network that is called at each step."""
        return self.unet

    def steps(self, wanted: int | None) -> int:
        """2, or `wanted`; ValueError for a number that the scheduler does not have."""
        steps, most = STEPS if wanted is None else wanted, self.scheduler.config.original_inference_steps
        if not is_integer(steps) or not 1 <= steps <= most:
            raise ValueError(
                f"--num_inference_steps must be an integer from 1 to {most}, and few are enough; got {steps}"
            )
        return steps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        class_labels: str | int | Iterable[str | int | None] | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        trajectory: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagesOutput | tuple:
        """Generate images.

        batch_size: the number of images; follows from `seeds` or a list of labels if they are given.
        class_labels: names, ids in 0..K-1, or None for an image of any class; one for all images or one for
            each. Only for models with classes.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: calls of the network, 2 by default; one is faster, four are usually enough.
        trajectory: how many states to keep, evenly spaced from the noise to the image.
        output_type: pil, np or pt.
        """
        check_output_type(output_type)
        steps = self.steps(num_inference_steps)
        class_labels = listed(class_labels)
        generator, batch_size = read_generators(batch_size, seeds, generator, class_labels)
        kept = kept_steps(trajectory, steps)
        labels = ids_with_null(class_labels, batch_size, self.class_names, self._execution_device)
        options = dict(generator=generator, device=self._execution_device, dtype=torch.float32)
        image, states = randn_tensor(image_shape(self.unet.config, batch_size), **options), []
        scheduler = copy.deepcopy(self.scheduler)  # a scheduler keeps state while it samples
        scheduler.set_timesteps(steps)
        for i, timestep in enumerate(self.progress_bar(scheduler.timesteps)):
            if i in kept:
                states.append(image)
            output = self.unet(image.to(self.unet.dtype), timestep, labels).sample.float()
            image = scheduler.step(output, timestep, image, generator=generator).prev_sample
        self.maybe_free_model_hooks()
        return images_output(image, states, output_type, return_dict)


def is_stock(kind: type[DiffusionPipeline], scheduler: SchedulerMixin | None) -> bool:
    """Whether a stock pipeline of this class and with this scheduler is a model of this family."""
    return kind is DDPMPipeline and isinstance(scheduler, LCMScheduler)


def from_stock(pipeline: DDPMPipeline) -> ConsistencyPipeline:
    """The pipeline of a model that was saved: a stock one with the same components."""
    return ConsistencyPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
