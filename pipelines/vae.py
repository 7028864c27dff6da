"""Sampling from a variational autoencoder, reconstruction and interpolation; shipped beside the weights.

Kingma & Welling 2014 (arXiv 1312.6114). The model is a `VAEModel`: `encode` gives the mean and log variance
of the code z of an image, `decode` the location and log scale of a logistic law for each value of each pixel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from trilemma.pipelines.shared import (
    ImagesOutput,
    OneSamplerPipeline,
    check_output_type,
    convert,
    image_shape,
    images_output,
    is_integer,
    read_generators,
)

Pictures = Image.Image | Sequence[Image.Image] | np.ndarray | Tensor
"""PIL images, or floats in [0, 1]: an array (B, H, W, C) or a tensor (B, C, H, W)."""


class VAEPipeline(OneSamplerPipeline):
    """Noise -> image in one call of the decoder; also reconstruction, and interpolation of images."""

    family = "vae"
    only_sampler = "decoder"
    default_guidance = None
    model_cpu_offload_seq = "vae"

    def __init__(self, vae: ModelMixin):
        super().__init__()
        self.register_modules(vae=vae)

    @property
    def network(self) -> ModelMixin:
        """The model: encoder and decoder."""
        return self.vae

    def steps(self, wanted: int | None) -> int:
        """1, one call of the decoder; ValueError if another number is `wanted`."""
        if wanted is not None and (not is_integer(wanted) or wanted != 1):
            raise ValueError(f"--num_inference_steps must be 1, one call of the decoder; got {wanted}")
        return 1

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        pixel_noise: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagesOutput | tuple:
        """Generate images: z ~ N(0, I), decoded.

        batch_size: the number of images; follows from `seeds` if they are given.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: 1, one call of the decoder; any other number is an error.
        pixel_noise: draw the pixels from p(x | z), the law whose bits per dimension are reported (exactly so
            once they are rounded to 8 bits). By default an image is the decoder's locations: in p(x | z)
            pixels are independent, and draws from it are grainy.
        output_type: pil, np or pt.
        """
        self.steps(num_inference_steps)
        check_output_type(output_type)
        generator, batch_size = read_generators(batch_size, seeds, generator)
        options = dict(generator=generator, device=self._execution_device, dtype=torch.float32)
        image, log_scale = self.vae.decode(randn_tensor((batch_size, self.vae.config.latent_dim), **options))
        if pixel_noise:
            normal = randn_tensor(tuple(image.shape), **options)
            # The quantile of the logistic law at a normal's own: log u - log(1 - u) for u = Phi(normal).
            logistic = torch.special.log_ndtr(normal) - torch.special.log_ndtr(-normal)
            image = image + log_scale.exp() * logistic
        self.maybe_free_model_hooks()
        return images_output(image, [], output_type, return_dict)

    @torch.no_grad()
    def reconstruct(
        self, images: Pictures, *, output_type: str = "pil"
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Each image's mean code, decoded: B images -> B images, in any of the pipeline's formats."""
        check_output_type(output_type)
        image, _ = self.vae.decode(self._mean_code(images))
        self.maybe_free_model_hooks()
        return convert(image, output_type)

    @torch.no_grad()
    def interpolate(
        self,
        images_a: Pictures,
        images_b: Pictures,
        steps: int = 8,
        *,
        output_type: str = "pil",
    ) -> list[list[Image.Image]] | np.ndarray | Tensor:
        """For each of B pairs of images, `steps` images from one reconstruction to the other.

        "pil": B lists. "np": (B, steps, H, W, C). "pt": (B, steps, C, H, W). Along the arc between the two
        mean codes, not the chord (White 2016, arXiv 1609.04468): nearly all of N(0, I) lies at a distance of
        sqrt(latent_dim) from 0, and the middle of a chord lies much nearer, where few codes were trained.
        """
        check_output_type(output_type)
        if steps < 2:
            raise ValueError(f"steps must be at least 2, the two ends; got {steps}")
        start, end = self._mean_code(images_a), self._mean_code(images_b)
        if len(start) != len(end):
            raise ValueError(f"images_a and images_b differ in number: {len(start)} and {len(end)}")
        codes = torch.stack([arc(start, end, i / (steps - 1)) for i in range(steps)], dim=1)
        image, _ = self.vae.decode(codes.flatten(0, 1))
        self.maybe_free_model_hooks()
        return convert(image.unflatten(0, codes.shape[:2]), output_type)

    def _mean_code(self, images: Pictures) -> Tensor:
        x, (_, *shape) = _to_tensor(images), image_shape(self.vae.config, 1)
        if list(x.shape[1:]) != shape:
            raise ValueError(
                f"the network takes images of (channels, height, width) {tuple(shape)}; "
                f"got {tuple(x.shape[1:])}"
            )
        mean, _ = self.vae.encode(x.to(self._execution_device))
        return mean


def arc(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """The point at `fraction` in [0, 1] of the way from `start` to `end`, each (B, D), turning evenly.

    (sin((1 - fraction) w) start + sin(fraction w) end) / sin(w) for the angle w between the two; a straight
    line where they point the same way, or opposite ways and there is no one arc.
    """
    angle = torch.cosine_similarity(start, end, dim=1)[:, None].clamp(-1, 1).acos()
    curved = angle.sin() > 1e-3
    sine = torch.where(curved, angle.sin(), 1.0)
    first = torch.where(curved, ((1 - fraction) * angle).sin() / sine, 1 - fraction)
    second = torch.where(curved, (fraction * angle).sin() / sine, fraction)
    return first * start + second * end


def _to_tensor(images: Pictures) -> Tensor:
    """float32 (B, C, H, W) in [-1, 1]."""
    if not isinstance(images, Image.Image) and len(images) == 0:
        raise ValueError("images is empty; pass at least one image")
    if isinstance(images, Tensor):
        x = images
    elif isinstance(images, np.ndarray):
        x = torch.from_numpy(images).movedim(-1, -3)
    else:
        pictures = [images] if isinstance(images, Image.Image) else images
        arrays = np.stack([np.atleast_3d(np.asarray(picture, dtype=np.float32)) for picture in pictures])
        x = torch.from_numpy(arrays).movedim(-1, -3) / 255
    if x.ndim != 4 or not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():  # so that NaN fails
        raise ValueError(
            "images must be PIL images or a batch of floats in [0, 1]: an array (B, H, W, C) or a tensor "
            f"(B, C, H, W); got {x.dtype} of shape {tuple(x.shape)} in {x.min():g}..{x.max():g}"
        )
    return x.float() * 2 - 1
