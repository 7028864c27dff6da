"""Sets of images to score that are files: a folder of PNGs, an .npy or an .npz of uint8 arrays.

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


class ImageFolder:
    """uint8 images of one size, read by index: a folder of PNGs, an .npy or the first array of an .npz."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.files: list[Path] = []
        self.array: np.ndarray | None = None
        if self.path.is_dir():
            self.files = sorted(p for p in self.path.iterdir() if p.suffix.lower() == ".png")
            others = sum(p.suffix.lower() in (".jpg", ".jpeg", ".webp") for p in self.path.iterdir())
            if others:
                raise ValueError(
                    f"--images {path!r} holds {others} JPEG or WebP images, whose coding changes metrics: "
                    "save samples as PNG"
                )
            if not self.files:
                raise ValueError(f"--images {path!r} holds no PNG files")
        elif self.path.suffix in (".npy", ".npz"):
            self.array = self._load()
        else:
            raise ValueError(f"--images must be a folder of PNGs, an .npy or an .npz; got {path!r}")
        self.shape = self._one(0).shape

    def _load(self) -> np.ndarray:
        try:
            opened = np.load(self.path, mmap_mode="r", allow_pickle=False)
            array = opened[opened.files[0]] if self.path.suffix == ".npz" else opened
        except (ValueError, OSError, EOFError, IndexError) as problem:
            raise ValueError(
                f"--images {str(self.path)!r} is not an array of images; pickles are never read: {problem}"
            ) from None
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3):
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
        try:
            with Image.open(self.files[i]) as image:
                if image.mode not in ("L", "RGB"):
                    raise ValueError(f"{self.files[i]} is {image.mode}; images must be 8-bit grey or RGB")
                array = np.asarray(image)
        except (OSError, SyntaxError) as problem:
            raise ValueError(f"{self.files[i]} cannot be read: {problem}") from problem
        return array[..., None] if array.ndim == 2 else array

    def read(self, indices: range) -> torch.Tensor:
        """uint8 (B, C, H, W)."""
        pictures = [self._one(i) for i in indices]
        for i, picture in zip(indices, pictures, strict=True):
            if picture.shape != self.shape:
                raise ValueError(
                    f"--images: all must have one size; {self.files[i].name} is {picture.shape}, "
                    f"the first is {self.shape}"
                )
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def open_images(path: str) -> ImageFolder:
    """The images of `--images`."""
    if not Path(path).exists():
        raise ValueError(f"--images {path!r} does not exist")
    return ImageFolder(path)


def own_share(images: ImageFolder, accelerator: Accelerator) -> Iterator[Batch]:
    """This rank's share of the images, in batches."""
    for start in range(accelerator.process_index * BATCH, len(images), accelerator.num_processes * BATCH):
        rows = range(start, min(start + BATCH, len(images)))
        yield torch.tensor(rows), images.read(rows), None
