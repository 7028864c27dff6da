"""What an exam does to the samples of a perfect model, a row each.

A new row is a function of a set and a level. The rows of METRICS say what each measure is meant to show
(`Measure.promised`); `verdicts.py` has the rules that follow from both.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from trilemma.eval.exams.sets import Draw, Samples
from trilemma.eval.metrics.table import Harmed
from trilemma.eval.scoring.calibration import blurred, uniform


class Harm(NamedTuple):
    """One thing that is done to samples.

    make: a set and a level -> samples. levels: the mildest first. shown: how a level is written, a format.
    hurts: what is then wrong with them; None for a harmless change, to which a measure must not react. what:
    in words. of_n: it changes only the number of samples; measures that depend on n may react.
    """

    make: Callable[[Draw, float], Samples]
    levels: tuple[float, ...]
    shown: str
    hurts: Harmed | None
    what: str
    of_n: bool = False

    def level(self, level: float) -> str:
        """A level as people read it."""
        return self.shown.format(level)


def _looks(change: Callable[[Tensor, float, torch.Generator], Tensor]) -> Callable[[Draw, float], Samples]:
    """A harm to all images: change(uint8 (N, C, H, W), level, random numbers) -> numbers in 0..255."""

    def make(draw: Draw, level: float) -> Samples:
        changed = change(draw.own.pixels, level, draw.generator())
        return draw.own._replace(pixels=changed.clamp(0, 255).round().to(torch.uint8))

    return make


def _blurred(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    return torch.lerp(pixels.float(), blurred(pixels, generator).float(), share)


def _noisy(pixels: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return pixels + deviation * torch.randn(pixels.shape, generator=generator)


def _rounded(pixels: Tensor, levels: float, generator: torch.Generator) -> Tensor:
    return pixels + levels * torch.randint(-1, 2, pixels.shape, generator=generator)


def _shifted(pixels: Tensor, places: float, generator: torch.Generator) -> Tensor:
    width = pixels.shape[3]
    return F.pad(pixels.float(), (int(places), 0, 0, 0), mode="replicate")[..., :width]


def _jpeg(pixels: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    return torch.stack([torch.from_numpy(_coded(one.numpy(), int(quality))) for one in pixels])


def _coded(image: np.ndarray, quality: int) -> np.ndarray:
    """An image (C, H, W) as a JPEG file gives it back."""
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
        file, "JPEG", quality=quality
    )
    pixels = np.array(Image.open(file))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _invented(draw: Draw, share: float) -> Samples:
    rows, pixels = draw.some(share), draw.own.pixels.clone()
    pixels[rows] = 255 - pixels[rows]
    return draw.own._replace(pixels=pixels)


def _outliers(draw: Draw, count: float) -> Samples:
    rows, pixels = draw.some(1.0)[: int(count)], draw.own.pixels.clone()
    pixels[rows] = uniform(pixels[rows], draw.generator())
    return draw.own._replace(pixels=pixels)


def _dropped(draw: Draw, share: float) -> Samples:
    """The most frequent kind stays, and the second one is dropped first. So for any frequencies, the kinds
    that stay have at least half of the images.
    """
    gone = max(1, round(share * draw.kinds))
    kept = (draw.rank % 2 == 0) | (draw.rank > 2 * gone)
    return draw.pool.take(kept.nonzero().flatten()[: draw.n])


def _reweighted(draw: Draw, share: float) -> Samples:
    often = draw.rank % 2 == 0
    rare = int((~often[: draw.n]).sum() * (1 - share))
    rows = torch.cat([often.nonzero().flatten()[: draw.n - rare], (~often).nonzero().flatten()[:rare]])
    return draw.pool.take(rows[draw.some(1.0)])


def _repeated(draw: Draw, share: float) -> Samples:
    return draw.own.take(torch.arange(draw.n) % max(1, round((1 - share) * draw.n)))


def _copied(draw: Draw, share: float) -> Samples:
    rows, own = draw.some(share), draw.own
    chosen = torch.randperm(len(draw.training.pixels), generator=draw.generator())[: len(rows)]
    copies, pixels = draw.training.take(chosen), own.pixels.clone()
    pixels[rows] = copies.pixels
    labels = own.labels
    if labels is not None:
        labels = labels.index_copy(0, rows, copies.labels)
    return Samples(pixels, labels)


def _mislabelled(draw: Draw, share: float) -> Samples:
    own, rows = draw.own, draw.some(share)
    if own.labels is None:
        return own
    classes = int(draw.pool.labels.max()) + 1
    return own._replace(labels=own.labels.index_copy(0, rows, (own.labels[rows] + 1) % classes))


def _fewer(draw: Draw, share: float) -> Samples:
    return draw.own.take(torch.arange(round(share * draw.n)))


SHARES = (0.05, 0.2, 0.5)

HARMS: dict[str, Harm] = {
    "blurred": Harm(
        _looks(_blurred), (0.25, 0.5, 1.0), "{:.0%}", "look", "drawn towards their 3x3 mean by this share"
    ),
    "noisy": Harm(
        _looks(_noisy), (4, 16, 64), "{:g}", "look", "Gaussian noise of this deviation in grey levels"
    ),
    "jpeg": Harm(_looks(_jpeg), (90, 75, 50, 25), "q{:g}", "look", "saved as JPEG of this quality"),
    "shifted": Harm(_looks(_shifted), (1, 2), "{:g} px", "look", "moved to the right by this many pixels"),
    "invented": Harm(_invented, SHARES, "{:.0%}", "look", "this share are negatives (255 - x)"),
    "dropped": Harm(
        _dropped, (0.1, 0.3, 0.5), "{:.0%}", "kinds", "this share of the kinds, at least one, is missing"
    ),
    "reweighted": Harm(
        _reweighted,
        (0.3, 0.6, 0.9),
        "{:.0%}",
        "kinds",
        "this share of every other kind is replaced by the rest",
    ),
    "repeated": Harm(
        _repeated, (0.5, 0.8, 0.95), "{:.0%}", "kinds", "this share are copies of the other samples"
    ),
    "copied": Harm(_copied, (0.01, *SHARES), "{:.0%}", "copies", "this share are training images"),
    "mislabelled": Harm(_mislabelled, SHARES, "{:.0%}", "classes", "this share have a wrong label"),
    "rounding": Harm(_looks(_rounded), (1,), "{:g}", None, "each grey level moves by at most this much"),
    "outlier": Harm(_outliers, (1,), "{:g}", None, "this many samples are uniform noise"),
    "fewer": Harm(_fewer, (0.5, 0.25), "{:.0%}", None, "this share of the samples", of_n=True),
}
"""The harms by name."""
