"""Sampling from a variational autoencoder, reconstruction and interpolation; shipped beside the weights.

Kingma & Welling 2014 (arXiv 1312.6114). The model is a `VAEModel`: `encode` gives the mean and log variance
of the code z of an image, `decode` the location and log scale of a logistic law for each value of each pixel.
"""

import ast
import copy
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
from diffusers import DiffusionPipeline, ModelMixin
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
