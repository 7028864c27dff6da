"""Sampling from a consistency model in one or a few calls of its network.

Song et al. 2023 (arXiv 2303.01469), algorithm 1: a call maps noise to an image; each further call adds less
noise to that image and maps it again. diffusers' `LCMScheduler` does both, with the boundary condition of the
training. On disk a model without classes is a stock `DDPMPipeline`, which plain diffusers loads; one with
classes brings its code, since the stock pipeline takes no labels.
"""

import ast
import copy
import difflib
import importlib
import inspect
import json
import numbers
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, LCMScheduler, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor


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


def read_ids(labels: Labels, count: int, names: tuple[str, ...] | None) -> list[int | None] | None:
    """`read_labels` of a model with these class names; None for a model without classes."""
    if names is not None:
        return read_labels(labels, count, len(names), names)
    if labels is not None:
        raise ValueError("class_labels must be None: this model has no classes")
    return None


def ids_with_null(labels: Labels, count: int, names: tuple | None, device: torch.device) -> Tensor | None:
    """Ids (count,) int64 in 0..K, K for an image of no class; None for a model without classes."""
    ids = read_ids(labels, count, names)
    return ids and torch.tensor([len(names) if one is None else one for one in ids], device=device)


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


class OneSamplerPipeline(ShippedPipeline):
    """A pipeline that is sampled in one way only; a subclass says its name."""

    only_sampler: str

    @property
    def sampler(self) -> str:
        """The name of the sampler, as --sampler takes it."""
        return self.only_sampler

    def samplers(self) -> tuple[str, ...]:
        """The names of the samplers of this model: only the one that it was trained for."""
        return (self.only_sampler,)

    def with_sampler(self, name: str) -> Self:
        """A copy; ValueError for any sampler but the only one."""
        check_sampler(self, name)
        return copy.copy(self)

    def calls(self, steps: int, guided: bool) -> int:
        """Network evaluations that an image costs."""
        return steps * (1 + guided)


def check_sampler(pipeline: DiffusionPipeline, name: str) -> None:
    """ValueError unless the pipeline has a sampler of this name."""
    if name not in pipeline.samplers():
        choices = ", ".join(pipeline.samplers())
        raise ValueError(f"--sampler must be one of {choices} for a {type(pipeline).__name__}; got {name!r}")


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
