"""Sampling from a class-conditional model with classifier-free guidance; shipped beside the weights.

The network is a stock `UNet2DModel(num_class_embeds=K + 1)`: labels 0..K-1 are the classes and K is the null
label, which training put in place of a dropped label. Guidance (Ho & Salimans 2022, eq. 6) mixes two outputs,

    output = null + guidance_scale * (conditional - null),

where `guidance_scale` is diffusers' scale: 1 is the conditional model, 0 the unconditional one; the paper's
w is guidance_scale - 1. What is mixed is the output of the network, whatever it predicts (noise, image or
velocity: at a given x_t these are affine in one another and the two weights sum to one, so it makes no
difference). The scheduler turns the mixture into x_0 and clips that, so clipping comes after the mixing.
"""

import math
import numbers
from collections.abc import Iterable, Sequence

import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from trilemma.pipelines.scheduled import SchedulerPipeline, noise_levels, started, used_channels
from trilemma.pipelines.shared import (
    ImagesOutput,
    check_output_type,
    image_shape,
    images_output,
    kept_steps,
    listed,
    names_by_id,
    read_generators,
    read_labels,
)


class ClassConditionalPipeline(SchedulerPipeline):
    """Class labels -> images.

    `class_names` has one name for each class, or is None. `model_index.json` keeps it as `{"0": name, ...}`:
    diffusers takes a list there for a component, and would refuse to load the model from the Hub.
    """

    family = "class_conditional"
    default_guidance = 1.0

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        class_names: dict[str, str] | list[str] | tuple[str, ...] | None = None,
    ):
        super().__init__()
        if unet.config.num_class_embeds is None:
            raise ValueError("unet has no classes; make it with UNet2DModel(num_class_embeds=classes + 1)")
        class_names = names_by_id(class_names)
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=class_names)
        if class_names is not None and len(set(class_names.values())) != self.null_label:
            names = list(class_names.values())
            raise ValueError(f"class_names must be {self.null_label} different names; got {names}")

    @property
    def null_label(self) -> int:
        """The label of an unconditional image; also the number of classes."""
        return self.unet.config.num_class_embeds - 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: str | int | Iterable[str | int | None] | None = None,
        *,
        batch_size: int = 1,
        guidance_scale: float | Sequence[float] = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        batched_guidance: bool = True,
        num_inference_steps: int | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        trajectory: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagesOutput | tuple:
        """Generate images.

        class_labels: names, ids in 0..K-1 or None (an unconditional image); one for all images or one each.
        batch_size: the number of images; follows from `seeds` or a list of labels if they are given.
        guidance_scale: diffusers' scale, 1 + w of Ho & Salimans; one for all images or one each. At 1 the
            network is not called with the null label at all.
        guidance_interval: (low, high) in noise levels sigma = sqrt((1 - abar) / abar), as Kynkaanniemi et al.
            2024: guidance is on while low < sigma <= high, outside runs the plain conditional model.
        batched_guidance: one forward of both branches; False runs two, in half the memory.
        num_inference_steps: by default, all T of training for a `DDPMScheduler`; for others 50, or the
            largest divisor of T below.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a label and a seed stand for
            the same image on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list of one for each, as in diffusers.
        eta: how much noise DDIM adds, from 0 (none) to 1 (as much as DDPM); for schedulers that have it.
        trajectory: how many states to keep, evenly spaced from noise to image, as the network sees them.
        output_type: pil, np or pt.
        """
        check_output_type(output_type)
        class_labels = listed(class_labels)
        generator, batch_size = read_generators(batch_size, seeds, generator, class_labels)
        ids = read_labels(class_labels, batch_size, self.null_label, self.class_names)
        labels, scales, guided = self._guidance(ids, guidance_scale)
        scheduler, options = started(self.scheduler, num_inference_steps, generator, eta)
        active = _guided_steps(scheduler, guidance_interval)
        kept = kept_steps(trajectory, len(scheduler.timesteps))
        shape, channels = image_shape(self.unet.config, batch_size), self.unet.config.in_channels
        outputs = used_channels(channels, self.unet.config.out_channels, scheduler)
        noise = randn_tensor(shape, generator=generator, device=labels.device, dtype=torch.float32)
        image, states = noise * scheduler.init_noise_sigma, []
        for i, timestep in enumerate(self.progress_bar(scheduler.timesteps)):
            model_input = scheduler.scale_model_input(image, timestep)
            if i in kept:
                states.append(model_input)
            rows = guided if active[i] else guided[:0]
            output, null = self._forward(model_input, timestep, labels, rows, batched_guidance)
            # The mean is guided; a learned variance stays that of the conditional model.
            output[rows, :channels] = _guide(output[rows, :channels], null[:, :channels], scales[rows])
            step = scheduler.step(output[:, :outputs], timestep, image, **options)
            image = step.prev_sample
        if isinstance(scheduler, DDPMScheduler):
            image = step.pred_original_sample  # the last mean: DDPMScheduler adds noise to it if t > 0
        self.maybe_free_model_hooks()
        return images_output(image, states, output_type, return_dict)

    def _guidance(
        self, ids: list[int | None], guidance_scale: float | Sequence[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For B images: labels (B,), scales (B,), and which images guidance changes (R,)."""
        scales = _scales(guidance_scale, len(ids))
        labels = [self.null_label if label is None else label for label in ids]
        guided = [i for i, label in enumerate(ids) if scales[i] != 1 and label is not None]
        device = self._execution_device
        return (
            torch.tensor(labels, device=device),
            torch.tensor(scales, device=device),
            torch.tensor(guided, dtype=torch.long, device=device),
        )

    def _forward(
        self, x: Tensor, timestep: Tensor, labels: Tensor, rows: Tensor, batched: bool
    ) -> tuple[Tensor, Tensor]:
        """The network's outputs for x (B, C, H, W) with its labels, and for x[rows] with the null label."""
        x, null = x.to(self.unet.dtype), torch.full_like(rows, self.null_label)
        if batched and len(rows):
            both = self.unet(torch.cat([x, x[rows]]), timestep, torch.cat([labels, null])).sample.float()
            return both[: len(x)], both[len(x) :]
        output = self.unet(x, timestep, labels).sample.float()
        return output, self.unet(x[rows], timestep, null).sample.float() if len(rows) else output[:0]


def _guide(conditional: Tensor, null: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance of outputs (R, C, H, W) with scales (R,)."""
    return null + scales.view(-1, 1, 1, 1) * (conditional - null)


def _guided_steps(scheduler: SchedulerMixin, interval: tuple[float, float] | None) -> list[bool]:
    """For each step of the scheduler: is its noise level inside the interval?"""
    if interval is None:
        return [True] * len(scheduler.timesteps)
    if not (isinstance(interval, Sequence) and len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(f"guidance_interval must be (low, high) with 0 <= low < high; got {interval}")
    low, high = interval
    return [bool(low < level <= high) for level in noise_levels(scheduler)]


def _scales(guidance_scale: float | Sequence[float], count: int) -> list[float]:
    one = isinstance(guidance_scale, numbers.Real)
    scales = [guidance_scale] * count if one else list(guidance_scale)
    if len(scales) != count:
        raise ValueError(f"got {len(scales)} guidance scales for {count} labels: pass one, or one per image")
    if any(isinstance(scale, bool) or not math.isfinite(scale) for scale in scales):
        raise ValueError(f"guidance_scale must be finite numbers; got {guidance_scale}")
    return [float(scale) for scale in scales]
