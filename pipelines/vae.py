"""Sampling from a variational autoencoder, reconstruction and interpolation; shipped beside the weights.

Kingma & Welling 2014 (arXiv 1312.6114). The model is a `VAEModel`: `encode` gives the mean and log variance
of the code z of an image, `decode` the location and log scale of a logistic law for each value of each pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt")
Pictures = Image.Image | Sequence[Image.Image] | np.ndarray | Tensor
"""PIL images, or floats in [0, 1]: an array (B, H, W, C) or a tensor (B, C, H, W)."""


@dataclass
class VAEPipelineOutput(BaseOutput):
    """B images. "pil": a list. "np": (B, H, W, C). "pt": (B, C, H, W). Arrays and tensors are float32 in
    [0, 1].
    """

    images: list[Image.Image] | np.ndarray | Tensor


class VAEPipeline(DiffusionPipeline):
    """Noise -> image in one call of the decoder; also image -> reconstruction, and what lies between two."""

    model_cpu_offload_seq = "vae"

    def __init__(self, vae: ModelMixin):
        super().__init__()
        self.register_modules(vae=vae)

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
    ) -> VAEPipelineOutput | tuple:
        """Generate images: z ~ N(0, I), decoded.

        batch_size: the number of images; follows from `seeds` if they are given.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: there is no choice; a number other than 1 is an error.
        pixel_noise: draw the pixels from p(x | z), the law whose bits per dimension are reported (exactly so
            once they are rounded to 8 bits). By default an image is the decoder's locations: p(x | z) knows
            no dependence between pixels, and draws from it are grainy.
        output_type: pil, np or pt.
        """
        if num_inference_steps not in (None, 1):
            raise ValueError(
                f"num_inference_steps must be 1, a call of the decoder; got {num_inference_steps}"
            )
        _check_output_type(output_type)
        generator, batch_size = _generators(batch_size, seeds, generator)
        options = dict(generator=generator, device=self._execution_device, dtype=torch.float32)
        image, log_scale = self.vae.decode(randn_tensor((batch_size, self.vae.config.latent_dim), **options))
        if pixel_noise:
            normal = randn_tensor(tuple(image.shape), **options)
            # The quantile of the logistic law at a normal's own: log u - log(1 - u) for u = Phi(normal).
            logistic = torch.special.log_ndtr(normal) - torch.special.log_ndtr(-normal)
            image = image + log_scale.exp() * logistic
        self.maybe_free_model_hooks()
        result = VAEPipelineOutput(images=_convert(image, output_type))
        return result if return_dict else result.to_tuple()

    @torch.no_grad()
    def reconstruct(
        self, images: Pictures, *, output_type: str = "pil"
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Each image's mean code, decoded: B images, given and returned in any of the pipeline's formats."""
        _check_output_type(output_type)
        image, _ = self.vae.decode(self._mean_code(images))
        self.maybe_free_model_hooks()
        return _convert(image, output_type)

    @torch.no_grad()
    def interpolate(
        self,
        images_a: Pictures,
        images_b: Pictures,
        steps: int = 8,
        *,
        output_type: str = "pil",
    ) -> list[list[Image.Image]] | np.ndarray | Tensor:
        """From reconstructions of B images to those of B others in `steps` images: for each pair, its row.

        "pil": B lists. "np": (B, steps, H, W, C). "pt": (B, steps, C, H, W). Along the arc between the two
        mean codes, not the chord (White 2016, arXiv 1609.04468): nearly all of N(0, I) lies at a distance of
        sqrt(latent_dim) from 0, and the middle of a chord lies much nearer, where few codes were trained.
        """
        _check_output_type(output_type)
        if steps < 2:
            raise ValueError(f"steps must be at least 2, the two ends; got {steps}")
        start, end = self._mean_code(images_a), self._mean_code(images_b)
        if len(start) != len(end):
            raise ValueError(f"images_a and images_b must be as many; got {len(start)} and {len(end)}")
        codes = torch.stack([arc(start, end, i / (steps - 1)) for i in range(steps)], dim=1)
        image, _ = self.vae.decode(codes.flatten(0, 1))
        self.maybe_free_model_hooks()
        return _convert(image.unflatten(0, codes.shape[:2]), output_type)

    def _mean_code(self, images: Pictures) -> Tensor:
        x, config = _to_tensor(images), self.vae.config
        wanted = (config.in_channels, config.sample_size, config.sample_size)
        if x.shape[1:] != wanted:
            raise ValueError(
                f"the network takes images of (channels, height, width) {wanted}; got {tuple(x.shape[1:])}"
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


def _check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")


def _to_tensor(images: Pictures) -> Tensor:
    """float32 (B, C, H, W) in [-1, 1]."""
    if not isinstance(images, Image.Image) and len(images) == 0:
        raise ValueError("images must be at least one; got none")
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
