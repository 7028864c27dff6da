"""Sampling from the toy family."""

import copy
from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor

from trilemma.pipelines.shared import (
    ImagesOutput,
    ShippedPipeline,
    check_output_type,
    check_sampler,
    image_shape,
    images_output,
    read_generators,
)


class ToyPipeline(ShippedPipeline):
    """Noise -> image: each pixel from a logistic distribution of its own."""

    family = "toy"
    sampler = "pixels"
    default_guidance = None
    model_cpu_offload_seq = "net"

    def __init__(self, net: ModelMixin):
        super().__init__()
        self.register_modules(net=net)

    @property
    def network(self) -> ModelMixin:
        """The only part."""
        return self.net

    def samplers(self) -> tuple[str, ...]:
        """There is one."""
        return ("pixels",)

    def with_sampler(self, name: str) -> "ToyPipeline":
        """A copy; ValueError for another name."""
        check_sampler(self, name)
        return copy.copy(self)

    def steps(self, wanted: int | None) -> int:
        """One; ValueError for another number."""
        if wanted not in (None, 1):
            raise ValueError(f"--num_inference_steps must be 1; got {wanted}")
        return 1

    def calls(self, steps: int, guided: bool) -> int:
        """One."""
        return steps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagesOutput | tuple:
        """Generate images."""
        check_output_type(output_type)
        self.steps(num_inference_steps)
        generator, batch_size = read_generators(batch_size, seeds, generator)
        shape = image_shape(self.net.config, batch_size)
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        location, log_scale = self.net(noise)
        logistic = torch.special.log_ndtr(noise) - torch.special.log_ndtr(-noise)
        return images_output(location + log_scale.exp() * logistic, [], output_type, return_dict)
