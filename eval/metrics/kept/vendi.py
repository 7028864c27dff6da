"""Vendi score within classes: how many different images the samples of a class amount to."""

from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.eval.metrics.frechet import BLOCKS
from trilemma.eval.metrics.kept.classes import LabelledRows
from trilemma.eval.metrics.pairs import at_this_n
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.scoring.reference import ReferenceStatistics


def measure_class_vendi(
    rows: Tensor, label: Tensor, block: Tensor, reference: ReferenceStatistics
) -> dict[str, Measurement]:
    """The Vendi score (Friedman & Dieng 2023, arXiv 2210.02410) of each class k, and the mean over classes.

    The score of m samples is exp(-sum l log l), with l the eigenvalues of K / m and K the cosines of the
    angles between their features: 1 if all are equal, m if all are at right angles. It grows with m, so the
    intervals are for other sets with the same number of samples. At most PAIR_IMAGES samples are compared.
    Samples whose features are all 0 are left out, and so is a class that has only such samples.
    """
    useful, unit = (rows != 0).any(1).cpu(), F.normalize(rows.double(), dim=1)
    places = {k: (label == k).nonzero().flatten() for k in label[useful].unique().long().tolist()}
    blocks = {k: torch.arange(len(place)) % BLOCKS for k, place in places.items()}  # a tenth of every class

    @cache  # the mean and each class need the same scores
    def score(k: int, kept: tuple[float, ...]) -> float:
        """Of class k, from the blocks that are kept; 0, which is no score, if they have no useful samples."""
        chosen = useful[places[k]] & (torch.tensor(kept)[blocks[k]] > 0)
        return vendi(unit[places[k][chosen].to(unit.device)]) if chosen.any() else 0.0

    def mean(kept: Tensor) -> float:
        scores = [score(k, tuple(kept.tolist())) for k in places]
        return sum(scores) / max(1, sum(one > 0 for one in scores))

    sizes = {k: torch.bincount(block, minlength=BLOCKS).double() for k, block in blocks.items()}
    total = sum(sizes.values(), torch.zeros(BLOCKS, dtype=torch.float64))
    results = {"class_vendi": at_this_n(mean, total, lowest=1.0)}
    for k, size in sizes.items():
        of_class = at_this_n(lambda kept, k=k: score(k, tuple(kept.tolist())), size, lowest=1.0)
        results[f"{k}_class_vendi"] = of_class
    return results


def vendi(unit: Tensor) -> float:
    """Vendi score of unit vectors (m, D), m >= 1, with their scalar products as similarities."""
    gram = unit @ unit.T if len(unit) < unit.shape[1] else unit.T @ unit  # the same eigenvalues but for zeros
    share = torch.linalg.eigvalsh(gram).clamp_min(0) / len(unit)
    return float((-torch.xlogy(share, share).sum()).exp())


ClassVendi = partial(LabelledRows, measure_class_vendi)
