"""What a number means on these very data: the same metrics for real images, blurred ones and noise.

Printed under the results of `eval/evaluate.py`. They describe the data and the yardsticks, not a model, so
they are not added to `results.jsonl`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.metrics.table import METRICS
from trilemma.eval.scoring.naming import metric_name, number
from trilemma.eval.scoring.results import aligned
from trilemma.eval.scoring.yardsticks import BATCH, Batch, Reference, Yardstick, score
from trilemma.training.images.image_set import Images

CHOICE = 7
"""Seed of the choice of images."""

Spoil = Callable[[Tensor, torch.Generator], Tensor]
"""Images uint8 (B, C, H, W) and random numbers -> images of the same shape and type."""


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images after a 3x3 box blur."""
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1).round().to(torch.uint8)


def uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise with the shape of the images."""
    return torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)


SPOILED: Mapping[str, Spoil] = {
    "real": lambda images, generator: images,
    "blurred": blurred,
    "noise": uniform,
}
"""Sets of images, the best first, and how they are made of real ones."""


def calibrate(sticks: list[Yardstick], reference: Reference, n: int, accelerator: Accelerator) -> str:
    """A table of what n real images, the same ones blurred, and noise score; '' for none; collective.

    The real images are held-out ones, or else come from the reference itself and then score too well; the
    line above the table says which.
    Metrics that need what these images lack (labels) are left out, and so are those that need more images.
    """
    real = reference.held_out or reference.images
    if real is None or real.points or min(n, len(real)) < 2:
        return ""
    n = min(n, len(real))
    order = np.random.default_rng(CHOICE).permutation(len(real))[:n]
    real = real.subset(np.sort(order))
    sticks = [replace(stick, names=able(stick, n, real.labels is not None)) for stick in sticks]
    sticks = [stick for stick in sticks if stick.names]
    if not sticks:
        return ""
    scores = {
        name: score(sticks, _batches(real, spoil, accelerator), n, accelerator)
        for name, spoil in SPOILED.items()
    }
    which = "held-out images" if reference.held_out else "images of the reference itself"
    return f"On these data {n:,} {which}, the same blurred, and noise score:\n{_table(scores)}"


def able(stick: Yardstick, n: int, labelled: bool) -> tuple[str, ...]:
    """The metrics of a yardstick that n images, with labels or without, suffice for."""
    lacking = set() if labelled else {"labels"}
    return tuple(
        name
        for name in stick.names
        if not lacking & set(METRICS[name].needs)
        and not (METRICS[name].full_rank and n < stick.extractor.dim)
    )


def _batches(images: Images, spoil: Spoil, accelerator: Accelerator) -> Iterator[Batch]:
    """This rank's share of the images, spoiled; the noise of a batch depends on its first index alone."""
    share = torch.arange(len(images))[accelerator.process_index :: accelerator.num_processes]
    for index in share.split(BATCH):
        pixels, labels = images.__getitems__(index)
        yield index, spoil(pixels, torch.Generator().manual_seed(int(index[0]))), labels


def _table(scores: Mapping[str, Mapping[Yardstick, Mapping[str, Measurement]]]) -> str:
    rows = [("metric", *scores)]
    for stick, measurements in next(iter(scores.values())).items():
        made = stick.protocol
        for measure, one in measurements.items():
            name = metric_name(measure, made.extractor, one.n, made.split, made.whole)
            rows.append((name, *(number(of[stick][measure].estimate) for of in scores.values())))
    return aligned(rows)
