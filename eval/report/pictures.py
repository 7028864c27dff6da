"""Pictures of the page, from the files of the models' folders or drawn for it, small enough to be part of it.

The states of a process are cut out of `process.png`, whose frames are dark squares on white in equal columns
(`eval/plots/process.py`). A picture with another layout gives no slider.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.saved import parts, read_configuration
from trilemma.training.output_folder import OutputFolder

LARGEST = 25_000_000
"""Most pixels of a picture that is opened; a folder may come from anyone."""
MOST_SIDE = 64
"""Images are shown with this many pixels a side at most."""
WHITE = 245
FRAME = 2
"""Pixels of the frame around each image in process.png, with its blurred edge."""
LEVELS = ((64, 1.0), (16, 1.0), (16, 0.6), (8, 0.35))
"""Colours and scale of pictures, from the best to the smallest."""


@dataclass(frozen=True)
class Frames:
    """States or sheets of equal size side by side in one picture, one of which a slider shows.

    labels: one for each; empty for a single picture without a slider. values: network calls of each sheet;
    empty for states.
    """

    image: Image.Image
    labels: tuple[str, ...]
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """Images of the same seeds that a model drew for the page; or why it drew none."""

    frames: Frames | None
    said: str


def opened(path: Path) -> Image.Image | None:
    """A picture in grey or RGB; None if there is no readable one."""
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > LARGEST:
                return None
            array = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for damage
        return None
    grey = (array == array[..., :1]).all()
    return Image.fromarray(array[..., 0] if grey else array)


def process(folder: OutputFolder) -> Frames | None:
    """The states from noise to images of `process.png`, a frame each with its images side by side in rows."""
    image = opened(folder.path / "process.png")
    if image is None:
        return None
    ink = np.asarray(image.convert("L")) < WHITE
    columns = _panels(ink.any(axis=0))
    if len(columns) < 2:
        return None
    rows = _panels(ink[:, slice(*columns[0])].any(axis=1))
    if len(rows) % 2 or not rows:
        return None
    made = rows[len(rows) // 2 :]  # below the noising of real images
    side = _side(folder)
    states = [[_cell(image, column, row, side) for row in made] for column in columns]
    labels = tuple(f"state {k} of {len(states)}" for k in range(1, len(states) + 1))
    return Frames(side_by_side([_grid(cells, min(2, len(cells))) for cells in states]), labels)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in one row."""
    return _grid(pictures, len(pictures), 0)


def sheet(images: np.ndarray) -> Image.Image:
    """uint8 (N, H, W) or (N, H, W, 3) as one picture, row by row."""
    pictures = [Image.fromarray(image) for image in images]
    if (largest := max(pictures[0].size)) > MOST_SIDE:
        size = tuple(max(1, side * MOST_SIDE // largest) for side in pictures[0].size)
        pictures = [picture.resize(size, Image.Resampling.BOX) for picture in pictures]
    return _grid(pictures, int(np.ceil(np.sqrt(len(pictures)))))


def urls(pictures: Sequence[Image.Image], room: int) -> list[str | None]:
    """Each picture as a data URL, all together at most `room` bytes; None for those that do not fit."""
    for colours, scale in LEVELS:
        made = [_url(picture, colours, scale) for picture in pictures]
        if sum(map(len, made)) <= room:
            return made
    kept: list[str | None] = []
    for url in made:
        fits = len(url) <= room
        room -= len(url) if fits else 0
        kept.append(url if fits else None)
    return kept


def _url(picture: Image.Image, colours: int, scale: float) -> str:
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.BOX)
    file = io.BytesIO()
    picture.quantize(colours, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _panels(ink: np.ndarray) -> list[tuple[int, int]]:
    """First and last place of the long runs of ink, all nearly as long as the longest; text is shorter."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.astype(np.int8), [0]])))
    runs = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    longest = max((b - a for a, b in runs), default=0)
    runs = [(a, b) for a, b in runs if b - a > 0.6 * longest]
    alike = all(abs((b - a) - longest) <= 3 for a, b in runs)
    gaps = [after[0] - before[0] for before, after in pairwise(runs)]
    return runs if alike and (not gaps or min(gaps) > longest) else []


def _cell(image: Image.Image, column: tuple[int, int], row: tuple[int, int], side: int) -> Image.Image:
    box = (column[0] + FRAME, row[0] + FRAME, column[1] - FRAME, row[1] - FRAME)
    return image.crop(box).resize((side, side), Image.Resampling.NEAREST)


def _side(folder: OutputFolder) -> int:
    """Pixels on a side of the model's images, from the configuration of a part."""
    for name in parts(folder.read_index()):
        try:
            size = read_configuration(folder.path / name / "config.json").get("sample_size")
        except (OSError, FileError):
            continue
        if type(size) is int and size > 1:
            return min(size, MOST_SIDE)
    return MOST_SIDE


def _grid(pictures: Sequence[Image.Image], columns: int, gap: int = 1) -> Image.Image:
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    white = 255 if pictures[0].mode == "L" else (255, 255, 255)
    size = columns * (width + gap) - gap, rows * (height + gap) - gap
    whole = Image.new(pictures[0].mode, size, white)
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place % columns * (width + gap), place // columns * (height + gap)))
    return whole
