"""Sampling from a denoising-diffusion GAN in T network calls an image; shipped beside the weights.

Xiao, Kreis & Vahdat 2022 (arXiv 2112.07804), algorithm 2. The generator is a stock `UNet2DModel` whose class
embedding takes a vector (`class_embed_type="identity"`), here a fresh latent z at every step. The hyperbolic
tangent of its output is x0_hat, and a stock `DDPMScheduler` draws x_{t-1} from q(x_{t-1} | x_t, x0_hat), with
no noise at the last step.
"""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class DDGANPipelineOutput(BaseOutput):
    """B images, and k states on the way to them where `trajectory=k` asked for them.

    "pil": a list of B images, k lists of B images. "np": (B, H, W, C), (k, B, H, W, C). "pt": (B, C, H, W),
    (k, B, C, H, W). Arrays and tensors are float32 in [0, 1].
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: list[list[Image.Image]] | np.ndarray | Tensor | None = None


class DDGANPipeline(DiffusionPipeline):
    """Noise -> image in as many steps as the model was trained for.

    `class_names` has one name for each class of a class-conditional model, and is None for others.
    `model_index.json` keeps it as `{"0": name, ...}`: diffusers takes a list there for a component.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        class_names: dict[str, str] | list[str] | tuple[str, ...] | None = None,
    ):
        super().__init__()
        if unet.config.class_embed_type != "identity":
            raise ValueError(
                f"unet must take a vector: class_embed_type 'identity', got {unet.config.class_embed_type!r}"
            )
        _check_posterior(scheduler)
        if class_names is not None and not isinstance(class_names, dict):
            class_names = {str(k): name for k, name in enumerate(class_names)}
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=class_names)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        names = self.config.class_names
        return None if names is None else tuple(names[str(k)] for k in range(len(names)))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        class_labels: str | int | Sequence[str | int] | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        trajectory: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> DDGANPipelineOutput | tuple:
        """Generate images.

        batch_size: the number of images; follows from `seeds` if they are given.
        class_labels: names or ids, one for all images or one for each; if None, a class-conditional model
            draws each image's class at random.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: there is no choice; a number other than the model's own is an error.
        trajectory: how many states to keep, evenly spaced from the noise to the image.
        output_type: pil, np or pt.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        _check_posterior(self.scheduler)  # it may have been replaced
        steps = self.scheduler.config.num_train_timesteps
        if num_inference_steps not in (None, steps):
            raise ValueError(
                f"num_inference_steps must be {steps}, as in training; got {num_inference_steps}"
            )
        generator, batch_size = _generators(batch_size, seeds, generator)
        kept = _evenly_spaced(trajectory, steps)

        config, device = self.unet.config, self._execution_device
        classes = len(self.class_names or ())
        labels = self._labels(class_labels, batch_size, generator)
        size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        options = dict(generator=generator, device=device, dtype=torch.float32)
        image = randn_tensor((batch_size, config.in_channels, *size), **options)
        states = []
        self.scheduler.set_timesteps(steps)
        for i, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if i in kept:
                states.append(image)
            z = randn_tensor((batch_size, latent_width(self.unet) - classes), **options)
            vector = condition(z, labels, classes).to(self.unet.dtype)
            x0_hat = self.unet(image.to(self.unet.dtype), timestep, vector).sample.float().tanh()
            image = self.scheduler.step(x0_hat, timestep, image, generator=generator).prev_sample
        self.maybe_free_model_hooks()

        result = DDGANPipelineOutput(images=_convert(image, output_type))
        if trajectory:
            result["trajectory"] = _convert(torch.stack([*states, image]), output_type)
        return result if return_dict else result.to_tuple()

    def _labels(
        self,
        class_labels: str | int | Sequence[str | int] | None,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor | None:
        """Ids (count,), or None for a model without classes."""
        names = self.class_names
        if names is None:
            if class_labels is not None:
                raise ValueError("class_labels were given, but this model has no classes")
            return None
        if class_labels is None:
            noise = randn_tensor((count, len(names)), generator=generator, device=self._execution_device)
            return noise.argmax(1)  # the largest of K equal normals is each of them equally often
        one = isinstance(class_labels, str | numbers.Integral)
        wanted = [class_labels] * count if one else list(class_labels)
        if len(wanted) != count:
            raise ValueError(
                f"class_labels must be one for all or one for each of {count} images; got {len(wanted)}"
            )
        known = dict(enumerate(names)) | {name: k for k, name in enumerate(names)}
        ids = []
        for label in wanted:
            if label not in known:
                choices = ", ".join(f"{k} {name!r}" for k, name in enumerate(names))
                raise ValueError(f"class_labels must be of {choices}; got {label!r}")
            ids.append(known[label] if isinstance(label, str) else int(label))
        return torch.tensor(ids, device=self._execution_device)


def latent_width(unet: UNet2DModel) -> int:
    """D, the numbers that the network takes beside x_t: added to its embedding of t, they are as many."""
    return unet.config.time_embedding_dim or 4 * unet.config.block_out_channels[0]


def condition(z: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """The vector that the network takes: the class as K numbers of the same power as those of z, and then z.

    z (B, D - K) standard normal, labels (B,) in 0..K-1 -> (B, D); z itself where there are no classes.
    """
    if not classes:
        return z
    return torch.cat([F.one_hot(labels, classes).to(z) * classes**0.5, z], dim=1)


def _check_posterior(scheduler: SchedulerMixin) -> None:
    if not isinstance(scheduler, DDPMScheduler) or scheduler.config.prediction_type != "sample":
        raise ValueError(
            "scheduler must be a DDPMScheduler(prediction_type='sample'), which draws from the posterior; "
            f"got a {type(scheduler).__name__}"
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
