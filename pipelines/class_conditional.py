"""Sampling from a class-conditional model with classifier-free guidance; shipped beside the weights.

The network is a stock `UNet2DModel(num_class_embeds=K + 1)`: labels 0..K-1 are the classes and K is the null
label, which training put in place of a dropped label. Guidance (Ho & Salimans 2022, eq. 6) mixes two outputs,

    output = null + guidance_scale * (conditional - null),

where `guidance_scale` is diffusers' scale: 1 is the conditional model, 0 the unconditional one; the paper's
w is guidance_scale - 1. What is mixed is the output of the network, whatever it predicts (noise, image or
velocity: at a given x_t these are affine in one another and the two weights sum to one, so it makes no
difference). The scheduler turns the mixture into x_0 and clips that, so clipping comes after the mixing.
"""

import copy
import difflib
import inspect
import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    PNDMScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class ClassConditionalPipelineOutput(BaseOutput):
    """B images, and k states on the way to them where `trajectory=k` asked for them.

    "pil": a list of B images, k lists of B images. "np": (B, H, W, C), (k, B, H, W, C). "pt": (B, C, H, W),
    (k, B, C, H, W). Arrays and tensors are float32 in [0, 1].
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: list[list[Image.Image]] | np.ndarray | Tensor | None = None


class ClassConditionalPipeline(DiffusionPipeline):
    """Class labels -> images.

    `class_names` has one name for each class, or is None. `model_index.json` keeps it as `{"0": name, ...}`:
    diffusers takes a list there for a component, and would refuse to load the model from the Hub.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        class_names: dict[str, str] | list[str] | tuple[str, ...] | None = None,
    ):
        super().__init__()
        if unet.config.num_class_embeds is None:
            raise ValueError("unet has no classes; make it with UNet2DModel(num_class_embeds=classes + 1)")
        if class_names is not None and not isinstance(class_names, dict):
            class_names = {str(k): name for k, name in enumerate(class_names)}
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=class_names)
        if class_names is not None and len(set(class_names.values())) != self.null_label:
            names = list(class_names.values())
            raise ValueError(f"class_names must be {self.null_label} different names; got {names}")

    @property
    def null_label(self) -> int:
        """The label of an unconditional image; also the number of classes."""
        return self.unet.config.num_class_embeds - 1

    @property
    def class_names(self) -> tuple[str, ...] | None:
        names = self.config.class_names
        return None if names is None else tuple(names[str(k)] for k in range(self.null_label))

    @torch.no_grad()
    def __call__(
        self,
        class_labels: str | int | Iterable[str | int | None] | None,
        *,
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
    ) -> ClassConditionalPipelineOutput | tuple:
        """Generate one image for each label.

        class_labels: names, ids in 0..K-1, or None for the null label (an unconditional image).
        guidance_scale: diffusers' scale, 1 + w of Ho & Salimans; one for all images or one each. At 1 the
            network is not asked for the null label at all.
        guidance_interval: (low, high) in noise levels sigma = sqrt((1 - abar) / abar), as Kynkaanniemi et al.
            2024: guidance is on while low < sigma <= high, outside runs the plain conditional model.
        batched_guidance: one forward of both branches; False runs two, in half the memory.
        num_inference_steps: by default, all steps of training for a `DDPMScheduler` and 50 for others.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a label and a seed stand for
            the same image on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list of one for each, as in diffusers.
        eta: how much noise DDIM adds, from 0 (none) to 1 (as much as DDPM); for schedulers that have it.
        trajectory: how many states to keep, evenly spaced from pure noise to the image, as the network sees
            them.
        output_type: pil, np or pt.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        ids = self.label_ids(class_labels)
        scales = _scales(guidance_scale, len(ids))
        guided = [i for i, label in enumerate(ids) if scales[i] != 1 and label != self.null_label]
        generator = _generators(len(ids), seeds, generator)
        scheduler = copy.deepcopy(self.scheduler)  # a scheduler keeps state while it samples
        _set_timesteps(scheduler, num_inference_steps)
        options = _step_options(scheduler, generator, eta)
        active = _guided_steps(scheduler, guidance_interval)
        kept = _evenly_spaced(trajectory, len(scheduler.timesteps))

        config, device = self.unet.config, self._execution_device
        channels = config.in_channels
        outputs = _used_channels(channels, config.out_channels, scheduler)
        size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        shape = (len(ids), channels, *size)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        labels, scales = torch.tensor(ids, device=device), torch.tensor(scales, device=device)
        guided = torch.tensor(guided, dtype=torch.long, device=device)

        image = noise * scheduler.init_noise_sigma
        states = []
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

        result = ClassConditionalPipelineOutput(images=_convert(image, output_type))
        if trajectory:
            result["trajectory"] = _convert(torch.stack([*states, image]), output_type)
        return result if return_dict else result.to_tuple()

    def label_ids(self, class_labels: str | int | Iterable[str | int | None] | None) -> list[int]:
        """Names, ids and None -> ids in 0..K, K being the null label; anything else is an error."""
        if isinstance(class_labels, (torch.Tensor, np.ndarray)):
            class_labels = class_labels.tolist()
        one = class_labels is None or isinstance(class_labels, (str, numbers.Number))
        labels = [class_labels] if one else list(class_labels)
        if not labels:
            raise ValueError("class_labels is empty; give one label for each image")
        return [self._label_id(label, f"class_labels[{i}]") for i, label in enumerate(labels)]

    def _label_id(self, label: str | int | None, option: str) -> int:
        if label is None:
            return self.null_label
        if isinstance(label, str):
            names = self.class_names or ()
            if label in names:
                return names.index(label)
            close = difflib.get_close_matches(label, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{option}: no class is called {label!r}.{hint} {self._known_classes()}")
        try:
            index = operator.index(None if isinstance(label, bool) else label)  # a bool would pass for 0 or 1
        except TypeError:
            raise ValueError(f"{option} must be a class name, an integer or None; got {label!r}") from None
        if not 0 <= index < self.null_label:
            raise ValueError(f"{option}: {index} is out of range. {self._known_classes()}")
        return index

    def _known_classes(self) -> str:
        ids = f"The classes are 0 to {self.null_label - 1}, and None is the null label"
        if self.class_names is None:
            return f"{ids}; this model has no class names."
        shown = ", ".join(f"{k} {name!r}" for k, name in enumerate(self.class_names[:100]))
        return f"{ids}: {shown}{'' if self.null_label <= 100 else ', ... (see pipeline.class_names)'}."

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
    timesteps = scheduler.timesteps.double().numpy()
    if interval is None:
        return [True] * len(timesteps)
    if not (isinstance(interval, Sequence) and len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(f"guidance_interval must be (low, high) with 0 <= low < high; got {interval}")
    low, high = interval
    try:
        abar = scheduler.alphas_cumprod.double().numpy().clip(1e-20, 1)
    except AttributeError:
        name = type(scheduler).__name__
        raise ValueError(f"guidance_interval needs alphas_cumprod, which {name} has not") from None
    log_sigma = 0.5 * (np.log1p(-abar) - np.log(abar))
    # Some schedulers step between two timesteps of training, as with Karras' noise levels.
    sigma = np.exp(np.interp(timesteps, np.arange(len(abar)), log_sigma))
    return [bool(low < level <= high) for level in sigma]


def _scales(guidance_scale: float | Sequence[float], count: int) -> list[float]:
    one = isinstance(guidance_scale, numbers.Real)
    scales = [guidance_scale] * count if one else list(guidance_scale)
    if len(scales) != count:
        raise ValueError(f"got {len(scales)} guidance scales for {count} labels: pass one, or one per image")
    if any(isinstance(scale, bool) or not math.isfinite(scale) for scale in scales):
        raise ValueError(f"guidance_scale must be finite numbers; got {guidance_scale}")
    return [float(scale) for scale in scales]


def _generators(
    count: int, seeds: Sequence[int] | None, generator: torch.Generator | list[torch.Generator] | None
) -> torch.Generator | list[torch.Generator] | None:
    """What the noise is drawn from."""
    generator = list(generator) if isinstance(generator, tuple) else generator  # diffusers knows lists only
    if seeds is not None:
        if generator is not None:
            raise ValueError("pass seeds or generator, not both")
        if isinstance(seeds, int):
            raise ValueError(f"seeds must be a sequence of ints, one per image; got {seeds!r}")
        generator = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(f"got {len(generator)} seeds or generators for {count} labels: pass one per image")
    return generator


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
