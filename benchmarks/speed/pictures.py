"""Pictures of any size that need no download: the embedded digits, enlarged, as a folder of PNGs."""

from pathlib import Path

from PIL import Image

from speed.diffusers_example import as_pil
from trilemma.training.images.image_set import load_images
from trilemma.training.options.groups import DataConfig


def enlarged(side: int, mode: str = "L") -> list[Image.Image]:
    """The 1,797 digits at this size, grey ("L") or RGB."""
    digits = as_pil(load_images(DataConfig(dataset_name="digits")))
    return [each.resize((side, side), Image.Resampling.BILINEAR).convert(mode) for each in digits]


def folder_of(pictures: list[Image.Image], folder: Path) -> Path:
    """Write them as PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:05d}.png")
    return folder
