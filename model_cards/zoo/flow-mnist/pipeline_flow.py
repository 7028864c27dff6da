"""Sampling from a flow: the ordinary differential equation from noise at s = 1 to images at s = 0.

Its network predicts the velocity noise - x_0 at x_s = (1 - s) x_0 + s noise and the time step 1000 s, as
diffusers' `FlowMatchEulerDiscreteScheduler` defines them. Apart from its samplers, such a model is sampled
as one that denoises. Without classes and with a network of diffusers it is on disk a stock `DDPMPipeline`;
with classes, it brings its code.
"""

import ast
import copy
import difflib
import importlib
import inspect
import json
import math
import numbers
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor


ALL_TARGETS = ("epsilon", "sample", "v_prediction")


class Sampler(NamedTuple):
    """A scheduler by its name in diffusers, the options that make it this sampler, the predictions
    (`prediction_type`) that it can sample, and the options that it also gets where `first_step_is_long`.
    """

    scheduler: str
    options: Mapping[str, Any] = {}
    targets: tuple[str, ...] = ALL_TARGETS
    for_a_long_first_step: Mapping[str, Any] = {}


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("DDPMScheduler"),
    "ddim": Sampler("DDIMScheduler"),
    "dpmsolver++": Sampler(
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}
    ),
    "sde-dpmsolver++": Sampler(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    ),
    "unipc": Sampler("UniPCMultistepScheduler", {"solver_order": 2}),
    "heun": Sampler("HeunDiscreteScheduler", for_a_long_first_step={"use_exponential_sigmas": True}),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler_ancestral": Sampler("EulerAncestralDiscreteScheduler", targets=("epsilon", "v_prediction")),
}


FLOW = ("flow_prediction",)


_FLOW_DPM = {"algorithm_type": "dpmsolver++", "prediction_type": "flow_prediction", "use_flow_sigmas": True}


_SHIFTED = {"solver_order": 3, "flow_shift": 2.5}


FLOW_SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler("FlowMatchEulerDiscreteScheduler", targets=FLOW),
    "heun": Sampler("FlowMatchHeunDiscreteScheduler", targets=FLOW),
    "dpmsolver++": Sampler("DPMSolverMultistepScheduler", {**_FLOW_DPM, "solver_order": 2}, FLOW),
    "shifted-dpmsolver++": Sampler("DPMSolverMultistepScheduler", {**_FLOW_DPM, **_SHIFTED}, FLOW),
}
"""The samplers of models that predict the velocity of a flow.

The shifted one, of third order, maps even steps s to 2.5 s / (1 + 1.5 s): smaller ones where there is more
noise (Esser et al. 2024, arXiv 2403.03206, equation 23).
"""


KNOWN_TO_ALL = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""The names of noise schedules that every scheduler in this file knows; `trained_betas` stand for others."""


LONGEST_FIRST_STEP = 0.05
"""The largest error that `first_step_is_long` accepts."""


def is_flow(scheduler: "SchedulerMixin") -> bool:
    """Whether what this scheduler samples is a flow: x_s = (1 - s) x_0 + s noise, at the time step 1000 s."""
    known = {row.scheduler for row in FLOW_SAMPLERS.values() if not row.options}
    return type(scheduler).__name__ in known or scheduler.config.get("prediction_type") in FLOW


def _rows(scheduler: "SchedulerMixin") -> dict[str, Sampler]:
    return FLOW_SAMPLERS if is_flow(scheduler) else SAMPLERS


def sampler_of(scheduler: "SchedulerMixin") -> str:
    """The name of the sampler that a scheduler is; a scheduler of no row is called by its class."""
    kind, config = type(scheduler).__name__, scheduler.config
    for name, row in _rows(scheduler).items():
        if row.scheduler == kind and row.options.items() <= config.items():
            return name
    return kind


def samplers_for(scheduler: "SchedulerMixin") -> tuple[str, ...]:
    """The samplers of models that predict what this scheduler takes."""
    target = FLOW[0] if is_flow(scheduler) else scheduler.config.get("prediction_type")
    return tuple(name for name, row in _rows(scheduler).items() if target in row.targets)


def scheduler_for(scheduler: "SchedulerMixin", name: str) -> "SchedulerMixin":
    """Another sampler with the noise schedule of `scheduler`; ValueError lists the choices."""
    if name == sampler_of(scheduler):
        return scheduler
    if name not in _rows(scheduler):
        raise ValueError(f"--sampler must be one of {', '.join(samplers_for(scheduler))}; got {name!r}")
    if name not in samplers_for(scheduler):
        target, choices = scheduler.config.get("prediction_type"), ", ".join(samplers_for(scheduler))
        raise ValueError(
            f"--sampler {name} cannot sample models with --prediction_type {target}; these can: {choices}"
        )
    import diffusers  # not above: it brings torch with it

    # from_config would replace each value that is its class's default by the default of the new class, and
    # some classes have the betas of another noise schedule.
    left_out = {"_use_default_values", *_row_of(scheduler).for_a_long_first_step}
    values = {key: value for key, value in scheduler.config.items() if key not in left_out}
    if values.get("beta_schedule", "linear") not in KNOWN_TO_ALL and values.get("trained_betas") is None:
        values["trained_betas"] = scheduler.betas.tolist()
    row = _rows(scheduler)[name]
    more = row.for_a_long_first_step
    more = more if more and first_step_is_long(scheduler) else {}
    return getattr(diffusers, row.scheduler).from_config(values, **row.options, **more)


def _row_of(scheduler: "SchedulerMixin") -> Sampler:
    return _rows(scheduler).get(sampler_of(scheduler), Sampler(type(scheduler).__name__))


def first_step_is_long(scheduler: "SchedulerMixin") -> bool:
    """Whether 50 steps, evenly spaced in t, begin with one that Heun's rule cannot take.

    With sigma = sqrt((1 - abar) / abar), data of standard deviation 1 and a first step from sigma_1 far down
    to sigma_2, Heun's rule is wrong by a share of sigma_1 / (2 sigma_2^3). Each later step keeps that share:
    0.34 for the cosine schedule at T = 1000, and less than 0.001 for a linear one.
    """
    abar = scheduler.alphas_cumprod.double().tolist()
    levels = [((1 - abar[i]) / max(abar[i], 1e-24)) ** 0.5 for i in (-1, -1 - max(1, len(abar) // 50))]
    return levels[0] / (2 * levels[1] ** 3) > LONGEST_FIRST_STEP


OUTPUT_TYPES = ("pil", "np", "pt")


Generators = torch.Generator | list[torch.Generator] | None


Labels = str | int | Iterable[str | int | None] | None


class ShippedPipeline(DiffusionPipeline):
    """A pipeline that is saved with its code, and so loads where only diffusers is installed.

    saved_as: the stock pipeline of diffusers that it is saved as, without code, if its components are stock
        too; None for pipelines that always bring their code. A property where it depends on the model.
    """

    saved_as: ClassVar[type[DiffusionPipeline] | None] = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name for each class; None for a model without classes or without names."""
        names = self.config.get("class_names")
        return None if names is None else tuple(names[str(k)] for k in range(len(names)))

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json and the code; `save_pretrained` calls this before it uploads anything."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        ship_code(self, Path(save_directory))


def ship_code(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Copy the files of the pipeline's class and of its components' into `folder`; name them in its index."""
    path, kind = folder / DiffusionPipeline.config_name, type(pipeline)
    index = json.loads(path.read_text(encoding="utf-8"))
    coded = [
        name
        for name, entry in index.items()
        if name in pipeline.components and entry[0] in sys.modules and entry[0] not in STOCK_LIBRARIES
    ]
    for name in coded:
        index[name] = [_copy_code(index[name][0], "modeling_", folder / name), index[name][1]]
    stock = pipeline.saved_as if isinstance(pipeline, ShippedPipeline) else None
    if stock is not None and not coded:  # a stock pipeline, saved again, would lose a component's code
        index["_class_name"] = stock.__name__
    elif kind.__module__.split(".")[0] not in STOCK_LIBRARIES:
        index["_class_name"] = [_copy_code(kind.__module__, "pipeline_", folder), kind.__name__]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


STOCK_LIBRARIES = ("diffusers", "transformers")


def _copy_code(module: str, prefix: str, folder: Path) -> str:
    """Write a module's file into `folder`; returns the name under which it is to be imported."""
    try:
        source = Path(inspect.getsourcefile(sys.modules[module]))
    except TypeError:
        raise ValueError(f"{module} has no file to ship; define its classes in a .py file") from None
    text = source.read_text(encoding="utf-8")
    if _imports_ours(text):  # only in the toolkit: a file that came with a model has no such import
        text = importlib.import_module("trilemma.pipelines.single_file").single_file(source)
    name = prefix + re.sub(r"\W", "_", source.stem.removeprefix(prefix))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def _imports_ours(text: str) -> bool:
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return any((node.module or "").startswith("trilemma.") for node in imports)


def is_integer(value: Any) -> bool:
    """Whether this is an integer of any library; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def read_generators(
    batch_size: int,
    seeds: Sequence[int] | None,
    generator: Generators | tuple[torch.Generator, ...],
    class_labels: str | int | list | None = None,
) -> tuple[Generators, int]:
    """What the noise is drawn from, and the number of images: `batch_size`, or one for each seed or label.

    class_labels: as `listed` returns them.
    """
    generator = list(generator) if isinstance(generator, tuple) else generator  # diffusers takes only lists
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1; got {batch_size!r}")
    if batch_size == 1 and isinstance(class_labels, list):
        batch_size = len(class_labels)
    if seeds is None:
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"generator must be a single generator or a list of {batch_size}, one per image; "
                f"got a list of {len(generator)}"
            )
        return generator, batch_size
    if generator is not None:
        raise ValueError("pass seeds or generator, not both")
    values = _read_seeds(seeds)
    if batch_size not in (1, len(values)):
        raise ValueError(f"seeds must be {batch_size} ints, one per image; got {len(values)}")
    return [torch.Generator().manual_seed(seed) for seed in values], len(values)


def _read_seeds(seeds: Iterable[int]) -> list[int]:
    """Seeds as Python ints; ValueError for anything else."""
    values = None if isinstance(seeds, Mapping) else listed(seeds)
    values = [_plain(seed) for seed in values] if isinstance(values, list) else []
    if not values or not all(map(is_integer, values)):
        raise ValueError(f"seeds must be a sequence of ints, one per image; got {seeds!r}")
    return [int(seed) for seed in values]


def listed(class_labels: Labels) -> str | int | list | None:
    """Labels as Python values: one label for all images as it is, or a list with one for each image."""
    if isinstance(class_labels, Mapping):
        raise ValueError(f"class_labels must be one label or a sequence of labels; got {class_labels!r}")
    if isinstance(class_labels, Tensor | np.ndarray | np.generic):
        return class_labels.tolist()
    one = isinstance(class_labels, str) or not isinstance(class_labels, Iterable)
    return class_labels if one else list(class_labels)


def _plain(value: Any) -> Any:
    """The Python value of an array or tensor without dimensions; other values as they are."""
    is_array = isinstance(value, Tensor | np.ndarray | np.generic)
    return value.item() if is_array and value.ndim == 0 else value


def read_labels(
    class_labels: str | int | list | None, count: int, classes: int, names: tuple[str, ...] | None
) -> list[int | None]:
    """The ids in 0..classes-1 of `listed` labels, one for each of `count` images; None stays None."""
    each = isinstance(class_labels, list)
    labels = class_labels if each else [class_labels] * count
    if len(labels) != count or not labels:
        raise ValueError(
            f"class_labels must be one for all images, or one for each of {count} images; got {len(labels)}"
        )
    return [_label_id(label, f"class_labels{[i] if each else ''}", classes, names or ())
            for i, label in enumerate(labels)]  # fmt: skip


def _label_id(label: Any, option: str, classes: int, names: tuple[str, ...]) -> int | None:
    label = _plain(label)
    if label is None:
        return None
    if isinstance(label, str) and label in names:
        return names.index(label)
    if is_integer(label) and 0 <= label < classes:
        return int(label)
    choices = ", ".join(f"{k} {name!r}" for k, name in enumerate(names[:100]))
    choices = choices or f"0 to {classes - 1} (this model has no class names)"
    close = difflib.get_close_matches(label, names, n=1) if isinstance(label, str) else ()
    hint = f". Did you mean {close[0]!r}?" if close else ""
    more = ", ... (see pipeline.class_names)" if len(names) > 100 else ""
    raise ValueError(f"{option} must be one of {choices}{more}, or None; got {label!r}{hint}")


def names_by_id(class_names: dict[str, str] | Sequence[str] | None) -> dict[str, str] | None:
    """`{"0": name, ...}` for model_index.json, where diffusers would take a list for a component."""
    if class_names is None or isinstance(class_names, dict):
        return class_names
    return {str(k): name for k, name in enumerate(class_names)}


def kept_steps(trajectory: int, steps: int) -> set[int]:
    """The steps before which a state is kept: `trajectory` of them, less one for the image at the end."""
    if trajectory and not 2 <= trajectory <= steps + 1:
        raise ValueError(f"trajectory must be 0 or from 2 to {steps + 1} for these steps; got {trajectory}")
    return set(np.linspace(0, steps, trajectory).round().astype(int)[:-1].tolist())


@dataclass
class ImagesOutput(BaseOutput):
    """B images, and with `trajectory=k` also k states on the way to them.

    "pil": a list of B images, k lists of B images. "np": (B, H, W, C), (k, B, H, W, C). "pt": (B, C, H, W),
    (k, B, C, H, W). Arrays and tensors are float32 in [0, 1].
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: list[list[Image.Image]] | np.ndarray | Tensor | None = None


def check_output_type(output_type: str) -> None:
    """ValueError unless it is pil, np or pt."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")


def images_output(
    image: Tensor, states: list[Tensor], output_type: str, return_dict: bool
) -> ImagesOutput | tuple:
    """Images (B, C, H, W) in [-1, 1] and the states that were kept before them, as a call returns them."""
    trajectory = convert(torch.stack([*states, image]), output_type) if states else None
    result = ImagesOutput(convert(image, output_type), trajectory)
    return result if return_dict else result.to_tuple()


def convert(images: Tensor, output_type: str) -> list | np.ndarray | Tensor:
    """(..., C, H, W), clipped to [-1, 1], as `output_type`; PIL images by rounding to the nearest value."""
    images = (images / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    arrays = images.movedim(-3, -1).cpu().numpy()
    if output_type == "np":
        return arrays
    if arrays.ndim == 5:
        return [DiffusionPipeline.numpy_to_pil(state) for state in arrays]
    return DiffusionPipeline.numpy_to_pil(arrays)


def image_shape(config: Any, count: int) -> tuple[int, int, int, int]:
    """(count, C, H, W) of the images that a network of this configuration takes."""
    size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    return (count, config.in_channels, *size)


OF_FLOWS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


class SchedulerPipeline(ShippedPipeline):
    """A network `unet`, called at each step, and a `scheduler`, for which a row of SAMPLERS can stand in."""

    model_cpu_offload_seq = "unet"

    @property
    def network(self) -> ModelMixin:
        """The network that is called at each step."""
        return self.unet

    @property
    def sampler(self) -> str:
        """The name of the sampler in use, as --sampler takes it."""
        return sampler_of(self.scheduler)

    def samplers(self) -> tuple[str, ...]:
        """The names of the samplers that this model can be sampled with."""
        return samplers_for(self.scheduler)

    def with_sampler(self, name: str) -> Self:
        """A copy with another sampler of the same noise schedule; this pipeline stays as it is."""
        other = copy.copy(self)
        other.register_modules(scheduler=scheduler_for(self.scheduler, name))
        return other

    def steps(self, wanted: int | None) -> int:
        """The usual number of steps, or `wanted`; ValueError if the sampler cannot take that many."""
        return scheduler_steps(self.scheduler, wanted)

    def calls(self, steps: int, guided: bool) -> int:
        """Network evaluations that an image costs."""
        return scheduler_calls(self.scheduler, steps, guided)


def scheduler_steps(scheduler: SchedulerMixin, steps: int | None) -> int:
    """`steps`, or the usual number of them: all T of DDPM; for others 50, or the largest divisor of T below.

    ValueError for a number from which the scheduler makes a wrong chain. DDIM and PNDM go from t to
    t - T // steps: unless `steps` divides T or spacing is leading, that is not the next timestep, and a step
    removes the noise of a shorter one. Where T / steps is inexact, trailing timesteps can end in an extra -1,
    which stands for the noisiest level.
    """
    total = scheduler.config.num_train_timesteps
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    if steps is None:
        return total if isinstance(scheduler, DDPMScheduler) else max(n for n in divisors if n <= 50)
    kind, scheduler = f"{type(scheduler).__name__} of {total} steps", copy.deepcopy(scheduler)
    if not is_integer(steps) or not 1 <= steps <= total:
        raise ValueError(f"--num_inference_steps must be 1 to {total} for a {kind}, an integer; got {steps}")
    scheduler.set_timesteps(steps)
    spacing = scheduler.config.get("timestep_spacing")
    fixed_stride = isinstance(scheduler, DDIMScheduler | PNDMScheduler) and spacing != "leading"
    if (fixed_stride and total % steps) or (spacing == "trailing" and min(scheduler.timesteps) < 0):
        near = f"{max(n for n in divisors if n < steps)} or {min(n for n in divisors if n > steps)}"
        raise ValueError(f"--num_inference_steps must divide {total} for a {kind}, as {near}; got {steps}")
    return steps


def scheduler_calls(scheduler: SchedulerMixin, steps: int, guided: bool) -> int:
    """Network evaluations for one image: one a time step, two with guidance. Heun has 2N - 1 steps."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps) * (1 + guided)


def started(
    scheduler: SchedulerMixin, steps: int | None, generator: Generators, eta: float
) -> tuple[SchedulerMixin, dict[str, Any]]:
    """A copy of a scheduler, which keeps state while it samples, set to `steps`; and its `step_options`."""
    scheduler, steps = copy.deepcopy(scheduler), scheduler_steps(scheduler, steps)
    scheduler.set_timesteps(steps)
    if isinstance(scheduler, OF_FLOWS):  # these take the state as it is, from N(0, I), and do not say so
        scheduler.init_noise_sigma, scheduler.scale_model_input = 1.0, lambda sample, timestep: sample
    return scheduler, step_options(scheduler, generator, eta)


def noise_levels(scheduler: SchedulerMixin) -> np.ndarray:
    """sigma, noise over signal, at each of the scheduler's time steps; ValueError where it does not say."""
    timesteps = scheduler.timesteps.double().numpy()
    if is_flow(scheduler):
        noise = timesteps / scheduler.config.num_train_timesteps
        return noise / np.maximum(1 - noise, 1e-20)
    try:
        abar = scheduler.alphas_cumprod.double().numpy().clip(1e-20, 1)
    except AttributeError:
        name = type(scheduler).__name__
        raise ValueError(f"guidance_interval needs alphas_cumprod, which {name} does not have") from None
    log_sigma = 0.5 * (np.log1p(-abar) - np.log(abar))
    # Some schedulers step between two timesteps of training, as with Karras' noise levels.
    return np.exp(np.interp(timesteps, np.arange(len(abar)), log_sigma))


def step_options(scheduler: SchedulerMixin, generator: Generators, eta: float) -> dict[str, Any]:
    """The arguments of `scheduler.step` that only some schedulers have."""
    # Schedulers of diffusers and of its users have no common interface for this; only the signature says it.
    accepted = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in accepted:
        raise ValueError(f"eta must be 0 for {type(scheduler).__name__}, got {eta}; DDIMScheduler has an eta")
    # Without use_clipped_model_output, DDIM clips x_0 but keeps the noise of the unclipped one, and the two
    # drift apart: a little in every model, badly under guidance. Dhariwal & Nichol's code also clips both.
    options = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
    return {name: value for name, value in options.items() if name in accepted}


def used_channels(in_channels: int, out_channels: int, scheduler: SchedulerMixin) -> int:
    """How many of the network's output channels the scheduler takes."""
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"a network of {in_channels} input channels must have {in_channels} output channels, or "
            f"{2 * in_channels} if it predicts a variance; got {out_channels}"
        )
    learned = ("learned", "learned_range")
    takes_variance = isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in learned
    return out_channels if takes_variance else in_channels


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


class FlowPipeline(UnconditionalPipeline):
    """Noise -> image: a network that predicts velocities, and a scheduler of flows."""

    family = "flow"


class ClassConditionalFlowPipeline(ClassConditionalPipeline):
    """Class labels -> images, with classifier-free guidance of the velocity."""

    family = "flow"


def is_stock(kind: type[DiffusionPipeline], scheduler: SchedulerMixin | None) -> bool:
    """Whether a stock pipeline of this class and with this scheduler is a model of this family."""
    return kind is FlowPipeline.saved_as and scheduler is not None and is_flow(scheduler)


def from_stock(pipeline: DDPMPipeline) -> FlowPipeline:
    """The pipeline of a model that was saved: a stock one with the same components."""
    return FlowPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
