"""Vendi score within classes: how many different images the samples of a class amount to."""

from functools import partial

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
    """Mean over the classes of the Vendi score (Friedman & Dieng 2023, arXiv 2210.02410) of their samples.

    The score of m samples is exp(-sum l log l), with l the eigenvalues of K / m and K the cosines of the
    angles between their features: 1 if all are equal, m if all are at right angles. It grows with m: the
    interval is for other sets of n samples. PAIR_IMAGES samples are compared. Those whose features are
    all 0 are left out, and so are classes without samples.
    """
    useful, unit = (rows != 0).any(1).cpu(), F.normalize(rows.double(), dim=1)

    def mean_score(kept: Tensor) -> float:
        chosen = useful & (kept.cpu()[block] > 0)
        places = [(chosen & (label == one)).nonzero().flatten() for one in label[chosen].unique()]
        scores = [vendi(unit[place.to(unit.device)]) for place in places]
        return sum(scores) / max(1, len(scores))

    sizes = torch.bincount(block, minlength=BLOCKS).double()
    return {"class_vendi": at_this_n(mean_score, sizes, lowest=1.0)}


def vendi(unit: Tensor) -> float:
    """Vendi score of unit vectors (m, D), m >= 1, with their scalar products as similarities."""
    gram = unit @ unit.T if len(unit) < unit.shape[1] else unit.T @ unit  # the same eigenvalues but for zeros
    share = torch.linalg.eigvalsh(gram).clamp_min(0) / len(unit)
    return float((-torch.xlogy(share, share).sum()).exp())


ClassVendi = partial(LabelledRows, measure_class_vendi)
