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
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trilemma.training.images.image_set import to_uint8
from trilemma.training.images.points import picture

SHEET_PIXELS = 48
"""Small images are enlarged, pixel by pixel, to about this side."""


LABEL = 16
"""Characters of a class's name on a sheet; longer names are cut."""

FONT, FONT_PIXELS = "DejaVu Sans", 14


class Subject(NamedTuple):
    """What the pictures of a finished model show.

    x0: real images (B, C, H, W) in [-1, 1]. steps: of the pipeline's sampler. labels: B classes, or None.
    points: the images are points of the plane. guidable: it has classes, and also learned images without
    their labels. at_once: images in one forward pass.
    """

    pipeline: DiffusionPipeline
    x0: Tensor
    steps: int
    labels: list[int] | None
    points: bool
    guidable: bool = False
    at_once: int = 1


Pictures = Mapping[str, Callable[[Subject], Figure | None]]
"""Name of the file -> picture, or None where there is nothing to show: what `eval/pictures/<family>.py` has
under the name PICTURES."""


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (C, H, W) with one or three channels -> PIL."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def sheet(
    images: Tensor, points: bool = False, class_names: Sequence[str] | None = None
) -> Image.Image:
    """uint8 (N, C, H, W) as one picture, row by row, the last row filled with black; points as dots.

    With names of K classes, image i is of class i modulo K, and each class has a row with its name; images
    that would make some rows longer are left out.
    """
    if points:
        return to_pil(picture(images))
    if class_names:
        return _class_rows(images, class_names)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    images = torch.cat([images, images.new_zeros(rows * columns - len(images), *images.shape[1:])])
    return make_image_grid([to_pil(image) for image in _enlarged(images)], rows, columns)


def _enlarged(images: Tensor) -> Tensor:
    """Small images pixel by pixel, each with a white edge."""
    scale = max(1, SHEET_PIXELS // images.shape[-1])
    large = images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    return torch.nn.functional.pad(large, (1, 1, 1, 1), value=255)


def _class_rows(images: Tensor, names: Sequence[str]) -> Image.Image:
    """A row for each class that has an image, all of one length; many short rows stand side by side."""
    classes, each = min(len(names), len(images)), max(1, len(images) // len(names))
    large = [to_pil(image) for image in _enlarged(images)]
    labels = [short_name(name) for name in names[:classes]]
    font = ImageFont.truetype(findfont(FONT), FONT_PIXELS)
    margin = math.ceil(max(font.getlength(label) for label in labels)) + 20
    width, height = large[0].size
    block = margin + each * width
    blocks = max(1, round(math.sqrt(classes * height / block)))
    rows = math.ceil(classes / blocks)
    whole = Image.new(large[0].mode, (math.ceil(classes / rows) * block, rows * height), "white")
    draw = ImageDraw.Draw(whole)
    for index, label in enumerate(labels):
        left, top = index // rows * block, index % rows * height
        draw.text((left + margin - 6, top + height // 2), label, "black", font, anchor="rm")
        for column, image in enumerate(large[index :: len(names)][:each]):
            whole.paste(image, (left + margin + column * width, top))
    return whole


def short_name(name: str) -> str:
    """A class's name on one short line, of characters that can be drawn."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(name.split()))
    return line if len(line) <= LABEL else line[: LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


def image_rows(images: Tensor, labels: Sequence[str] = ()) -> Figure:
    """images (rows, columns, C, H, W) in [0, 1], with a label for each row or none."""
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(columns + (0.4 if labels else 0), rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, image in zip(axes.flat, to_uint8(images.flatten(0, 1)), strict=True):
        axis.imshow(to_pil(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(label, fontsize=7, parse_math=False)
    return figure
