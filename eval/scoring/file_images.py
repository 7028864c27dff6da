"""Sets of images to score that are files: a folder of images, an .npy or an .npz of uint8 arrays.

Nothing is converted: what is not 8-bit, of one size and losslessly coded is refused, because every metric
would see the difference.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from trilemma.eval.scoring.yardsticks import BATCH, Batch
from trilemma.pipelines.files.arrays import open_npy, read_npz
from trilemma.pipelines.files.reading import FileError
from trilemma.training.images.folders import existing_folder, list_folder, suffix_of
from trilemma.training.images.pixels import SEVERAL, raw_mode

LOSSLESS = {"PNG", "BMP", "DIB", "PPM", "TIFF", "TGA", "QOI", "SGI", "SUN", "PCX"}
"""Formats that give back the pixels that were saved, as Pillow calls them."""
LOSSY_IN_TIFF = {"jpeg", "tiff_jpeg", "webp"}


class ImageFolder:
    """uint8 images of one size, read by index: a folder of images, an .npy or the first array of an .npz."""

    def __init__(self, path: str):
        self.path = existing_folder(path)
        self.files: list[Path] = []
        self.array: np.ndarray | None = None
        if self.path.is_dir():
            self.files = [self.path / name for name in list_folder(self.path).images]
            if not self.files:
                raise ValueError(f"--images {path!r} holds no PNG files or other images")
            formats = Image.registered_extensions()
            for file in self.files:  # by their names, before any is scored
                if formats.get(suffix_of(file.name)) not in LOSSLESS:
                    _refuse(file, formats.get(suffix_of(file.name), file.suffix))
        elif self.path.suffix in (".npy", ".npz"):
            self.array = self._load()
        else:
            raise ValueError(f"--images must be a folder of images, an .npy or an .npz; got {path!r}")
        self.size: tuple[int, int] | None = None
        self.shape = self._one(0).shape
        self.size = self.shape[1::-1]

    def _load(self) -> np.ndarray:
        try:
            is_npz = self.path.suffix == ".npz"
            array = next(iter(read_npz(self.path).values())) if is_npz else open_npy(self.path)
        except FileError as problem:
            raise ValueError(f"--images: {problem}; pickles are never read") from problem
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3) or not array.size:
            raise ValueError(
                f"--images {str(self.path)!r} must be uint8 (N, H, W, 1 or 3), rounded to nearest; "
                f"got {array.dtype} {array.shape}"
            )
        return array

    def __len__(self) -> int:
        return len(self.files) if self.array is None else len(self.array)

    def _one(self, i: int) -> np.ndarray:
        if self.array is not None:
            return np.asarray(self.array[i])
        return _pixels(self.files[i], self.size)

    def read(self, indices: range) -> torch.Tensor:
        """uint8 (B, C, H, W)."""
        pictures = [self._one(i) for i in indices]
        for i, picture in zip(indices, pictures, strict=True):
            if picture.shape != self.shape:
                raise ValueError(
                    f"--images: all must have one size; {self.files[i]} is {picture.shape}, "
                    f"the first is {self.shape}"
                )
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _pixels(file: Path, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (H, W, 1 or 3), as they were saved; ValueError for what is not.

    size: width and height, if they are known; a picture of another size is not decoded.
    """
    try:
        with Image.open(file) as image:
            if size is not None and image.size != size:
                raise ValueError(
                    f"--images: all must have one size; {file} is {image.width}x{image.height}, the first is "
                    f"{size[0]}x{size[1]}"
                )
            compression = image.info.get("compression")
            if image.format not in LOSSLESS or compression in LOSSY_IN_TIFF:
                _refuse(file, compression if image.format == "TIFF" else image.format)
            if image.mode not in ("L", "RGB") or ";16" in raw_mode(image) or "transparency" in image.info:
                kind = f"{image.mode} ({raw_mode(image)}, transparency {image.info.get('transparency')})"
                raise ValueError(f"{file} is {kind}; images must be opaque 8-bit grey or RGB")
            if image.format in SEVERAL and image.is_animated:
                raise ValueError(f"{file} holds several pictures; save each as a file")
            array = np.asarray(image)
    except Exception as problem:  # Pillow raises anything, and an error of its own for huge pictures
        if str(file) in str(problem):
            raise
        raise FileError(file, f"cannot be read: {problem}") from problem
    return array[..., None] if array.ndim == 2 else array


def _refuse(file: Path, coding: str) -> None:
    raise ValueError(
        f"--images: {file} is {coding}, whose coding may change pixels and so metrics: save samples as PNG"
    )


def open_images(path: str) -> ImageFolder:
    """The images of `--images`."""
    if not existing_folder(path).exists():
        raise ValueError(f"--images {path!r} does not exist")
    return ImageFolder(path)


def own_share(images: ImageFolder, accelerator: Accelerator) -> Iterator[Batch]:
    """This rank's share of the images, in batches."""
    for start in range(accelerator.process_index * BATCH, len(images), accelerator.num_processes * BATCH):
        rows = range(start, min(start + BATCH, len(images)))
        yield torch.tensor(rows), images.read(rows), None
