"""Images in rows: sample sheets, reconstructions, interpolations.

Every plot returns a `Figure` (a sheet of samples an image); the caller saves it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from trilemma.training.images.image_set import to_uint8
from trilemma.training.images.points import picture

SHEET_PIXELS = 48
"""Small images are enlarged, pixel by pixel, to about this side."""


class Subject(NamedTuple):
    """What the pictures of a finished model show.

    x0: real images (B, C, H, W) in [-1, 1]. steps: of the pipeline's sampler. labels: B classes, or None.
    points: the images are points of the plane.
    """

    pipeline: DiffusionPipeline
    x0: Tensor
    steps: int
    labels: list[int] | None
    points: bool


Pictures = Mapping[str, Callable[[Subject], Figure]]
"""Name of the file -> picture: what `eval/pictures/<family>.py` has under the name PICTURES."""


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (C, H, W) with one or three channels -> PIL."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def sheet(images: Tensor, columns: int | None = None, points: bool = False) -> Image.Image:
    """uint8 (N, C, H, W) as one picture, row by row, the last row filled with black; points as dots."""
    if points:
        return to_pil(picture(images))
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    scale = max(1, SHEET_PIXELS // images.shape[-1])
    padded = torch.cat([images, images.new_zeros(rows * columns - len(images), *images.shape[1:])])
    large = padded.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    large = torch.nn.functional.pad(large, (1, 1, 1, 1), value=255)
    return make_image_grid([to_pil(image) for image in large], rows, columns)


def image_rows(images: Tensor, labels: Sequence[str] = ()) -> Figure:
    """images (rows, columns, C, H, W) in [0, 1], with a label for each row or none."""
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(columns + (0.4 if labels else 0), rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, image in zip(axes.flat, to_uint8(images.flatten(0, 1)), strict=True):
        axis.imshow(to_pil(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(label, fontsize=7)
    return figure
