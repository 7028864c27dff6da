"""Real images in the roles of an exam: training images, held-out ones, and the samples of a perfect model.

All come from one split, at random, so that the samples of the perfect model have exactly the distribution of
the training images.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trilemma.eval.features.judge_files import has_classes
from trilemma.eval.metrics.kept.copies import cell_centres
from trilemma.eval.metrics.pairwise import squared_distances
from trilemma.eval.scoring.yardsticks import Reference
from trilemma.training.images.image_set import Images

REPEATS = 5
"""Sets of samples: their spread is the noise of a measure."""
TRAINING = 4
"""Training images for each sample of a set. The held-out images are one for each sample of a set."""
LEAST = 40
"""The smallest number of samples in a set: a quarter of it must still have 6 samples or more."""
CELLS = 10
"""Kinds of images if the data have no labels, or only one: cells of k-means over the pixels."""


class Samples(NamedTuple):
    """Images that a model might have drawn: uint8 (N, C, H, W), and labels (N,) int64 or None."""

    pixels: Tensor
    labels: Tensor | None

    def take(self, rows: Tensor) -> "Samples":
        """These rows (M,), in this order."""
        return Samples(self.pixels[rows], None if self.labels is None else self.labels[rows])


class Draw(NamedTuple):
    """A set of samples of the perfect model, and the images and labels that harms use.

    pool: the set's n samples, then those of all other sets in random order. rank (len(pool),): the kind of
    each of them, 0 for the most frequent. kinds: their number. training: the training images. seed: for the
    random parts of a harm; each level has the same random numbers.
    """

    pool: Samples
    n: int
    rank: Tensor
    kinds: int
    training: Samples
    seed: int

    @property
    def own(self) -> Samples:
        """The n samples of the perfect model."""
        return self.pool.take(torch.arange(self.n))

    def generator(self) -> torch.Generator:
        """Random numbers of this set, always the same."""
        return torch.Generator().manual_seed(self.seed)

    def some(self, share: float) -> Tensor:
        """This share of the numbers 0..n-1, at random; a smaller share is the beginning of a larger one."""
        return torch.randperm(self.n, generator=self.generator())[: round(share * self.n)]


def split(images: Images, n: int, seed: int) -> tuple[Reference, list[Draw]]:
    """Training and held-out images, and REPEATS sets of n samples; fewer samples if there are few images.

    ValueError for too few images. The roles depend only on the seed.
    """
    if not has_classes(images):  # labels of one class tell nothing apart
        images = replace(images, labels=None, class_names=None)
    parts = TRAINING + 1 + REPEATS
    n = min(n, len(images) // parts)
    if n < LEAST:
        raise ValueError(
            f"--reference: the exam needs {parts * LEAST} images or more, in {parts} parts of --num_samples, "
            f"at least {LEAST}; got {len(images)} images and --num_samples {n}"
        )
    order = np.random.default_rng(seed).permutation(len(images))
    training, held_out, perfect = np.split(order[: parts * n], [TRAINING * n, (TRAINING + 1) * n])
    reference = Reference(images.subset(np.sort(training)), images.subset(np.sort(held_out)))
    learned, samples = _samples(reference.images), _samples(images.subset(perfect))
    rank = _ranks(samples, learned)
    draws = []
    for repeat in range(REPEATS):
        mine = torch.arange(repeat * n, (repeat + 1) * n)
        others = torch.cat([torch.arange(repeat * n), torch.arange((repeat + 1) * n, REPEATS * n)])
        shuffled = torch.randperm(len(others), generator=torch.Generator().manual_seed(repeat))
        rows = torch.cat([mine, others[shuffled]])
        draws.append(Draw(samples.take(rows), n, rank[rows], int(rank.max()) + 1, learned, repeat))
    return reference, draws


def _samples(images: Images) -> Samples:
    return Samples(*images.__getitems__(range(len(images))))


def _ranks(samples: Samples, training: Samples) -> Tensor:
    """The kind of each sample, 0 for the most frequent: from its label, or its cell (see CELLS)."""
    kind = samples.labels
    if kind is None or len(kind.unique()) < 2:
        centres = cell_centres(training.pixels.flatten(1).float(), CELLS)
        rows = samples.pixels.flatten(1).float()
        kind = torch.cat([squared.argmin(1) for _, squared in squared_distances(rows, centres)])
    _, kind, count = kind.unique(return_inverse=True, return_counts=True)
    return count.argsort(descending=True, stable=True).argsort()[kind]
