"""Sampling from a denoising-diffusion GAN in T network calls an image; shipped beside the weights.

Xiao, Kreis & Vahdat 2022 (arXiv 2112.07804), algorithm 2. The generator is a stock `UNet2DModel` whose class
embedding takes a vector (`class_embed_type="identity"`), here a fresh latent z at every step. The hyperbolic
tangent of its output is x0_hat, and a stock `DDPMScheduler` draws x_{t-1} from q(x_{t-1} | x_t, x0_hat), with
no noise at the last step.
"""

import copy
from collections.abc import Iterable, Sequence

import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from trilemma.pipelines.shared import (
    Generators,
    ImagesOutput,
    OneSamplerPipeline,
    check_output_type,
    image_shape,
    images_output,
    is_integer,
    kept_steps,
    listed,
    names_by_id,
    read_generators,
    read_ids,
)


class DDGANPipeline(OneSamplerPipeline):
    """Noise -> image in the number of steps that the model was trained for.

    `class_names` has one name for each class of a class-conditional model, and is None for others.
    `model_index.json` keeps it as `{"0": name, ...}`: diffusers takes a list there for a component.
    """

    family = "ddgan"
    only_sampler = "ddpm"
    default_guidance = None
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
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=names_by_id(class_names))

    @property
    def network(self) -> UNet2DModel:
        """The generator, which is called at each step."""
        return self.unet

    def steps(self, wanted: int | None) -> int:
        """The number of steps that the model was trained with; ValueError if another is `wanted`."""
        steps = self.scheduler.config.num_train_timesteps
        if wanted is not None and (not is_integer(wanted) or wanted != steps):
            raise ValueError(f"--num_inference_steps must be {steps}, as in training; got {wanted}")
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
        class_labels: names, ids in 0..K-1, or None for a class drawn at random; one for all images or one for
            each. Only for models with classes.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: the number that the model was trained with; any other number is an error.
        trajectory: how many states to keep, evenly spaced from the noise to the image.
        output_type: pil, np or pt.
        """
        check_output_type(output_type)
        _check_posterior(self.scheduler)  # it may have been replaced
        steps = self.steps(num_inference_steps)
        class_labels = listed(class_labels)
        generator, batch_size = read_generators(batch_size, seeds, generator, class_labels)
        kept = kept_steps(trajectory, steps)

        config, device = self.unet.config, self._execution_device
        classes = len(self.class_names or ())
        labels = self._labels(class_labels, batch_size, generator)
        options = dict(generator=generator, device=device, dtype=torch.float32)
        image = randn_tensor(image_shape(config, batch_size), **options)
        states = []
        scheduler = copy.deepcopy(self.scheduler)  # a scheduler keeps state while it samples
        scheduler.set_timesteps(steps)
        for i, timestep in enumerate(self.progress_bar(scheduler.timesteps)):
            if i in kept:
                states.append(image)
            z = randn_tensor((batch_size, latent_width(self.unet) - classes), **options)
            vector = condition(z, labels, classes).to(self.unet.dtype)
            x0_hat = self.unet(image.to(self.unet.dtype), timestep, vector).sample.float().tanh()
            image = scheduler.step(x0_hat, timestep, image, generator=generator).prev_sample
        self.maybe_free_model_hooks()
        return images_output(image, states, output_type, return_dict)

    def _labels(
        self, class_labels: str | int | list | None, count: int, generator: Generators
    ) -> Tensor | None:
        """Ids (count,), or None for a model without classes."""
        names, device = self.class_names, self._execution_device
        ids = read_ids(class_labels, count, names)
        if ids is None:
            return None
        drawn = [i for i, label in enumerate(ids) if label is None]
        labels = torch.tensor([label or 0 for label in ids], device=device)
        if drawn:
            own = [generator[i] for i in drawn] if isinstance(generator, list) else generator
            # The largest of K equal normals is each of them equally often.
            labels[drawn] = randn_tensor((len(drawn), len(names)), generator=own, device=device).argmax(1)
        return labels


def latent_width(unet: UNet2DModel) -> int:
    """D, the length of the vector that the network takes beside x_t and adds to its embedding of t."""
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
