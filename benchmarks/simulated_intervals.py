"""Intervals of measures and of trainings on laws that are known: what `interval_coverage.py` counts.

Samples have FEATURES Gaussian features. The true number is known for `fd`, `mind`, bits per dimension and
trainings. For the other measures it is the mean over all sets: either the measure is unbiased, or its
interval is meant for other sets of the same size.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import torch
from torch.distributions import Normal

from trilemma.eval.bounds.bits_per_dim import BitsPerDim
from trilemma.eval.metrics.build import build_metrics
from trilemma.eval.metrics.frechet import Gaussian, frechet_distance
from trilemma.eval.metrics.kept.mind import DIRECTIONS
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.metrics.table import ALL_IMAGES, METRICS
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.reference import ReferenceCollector, ReferenceStatistics
from trilemma.eval.studies.repeats import mean_interval, welch

SAMPLES, IMAGES, HELDOUT, FEATURES, CLASSES = 200, 300, 200, 4, 4
LAWS = {"perfect model": (1.0, 0.0), "worse model": (1.2, 0.3)}
"""Scale and shift of the samples; the reference and the held-out images have scale 1 and shift 0."""
FEWER = {"mind": 200, "fld": 300}
"""Most repetitions of metrics that take a tenth of a second or so."""
SEEDS = (2, 3, 5)
"""Trainings behind a mean, and behind each side of a difference."""
TRIES = 20
"""Sets without any interval after which a metric is taken to have none."""


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Independent standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(features: torch.Tensor) -> torch.Tensor:
    """What the simulated classifier says of features (B, FEATURES)."""
    return features @ normal(FEATURES, CLASSES, seed=7)


@cache
def reference() -> ReferenceStatistics:
    """Statistics of the simulated data, with held-out images and labels."""
    features, index = normal(IMAGES, FEATURES, seed=1), torch.arange(IMAGES)
    collector = ReferenceCollector(IMAGES, FEATURES, CLASSES, keep=ALL_IMAGES)
    collector.update(index, features, logits(features))
    protocol = ReferenceProtocol("pixels", None, "none", "uint8", "simulated", "train", "0", False, IMAGES)
    return dataclasses.replace(
        collector.statistics(protocol),
        heldout=normal(HELDOUT, FEATURES, seed=2),
        labels=(index % CLASSES)[collector.subset.members],
    )


def score(name: str, law: tuple[float, float], seed: int) -> dict[str, Measurement]:
    """The numbers of one metric for one set of samples."""
    (metric,) = build_metrics([name], reference(), SAMPLES).values()
    features, index = normal(SAMPLES, FEATURES, seed=1000 + seed) * law[0] + law[1], torch.arange(SAMPLES)
    inputs = {"features": features, "logits": logits(features), "labels": index % CLASSES}
    metric.update(index, *(inputs[need] for need in METRICS[name].needs))
    return metric.compute()


def frechet_truth(scale: float, shift: float) -> float:
    """The Frechet distance of the law of the samples."""
    mean = torch.full((FEATURES,), shift, dtype=torch.float64)
    law = Gaussian(mean, scale**2 * torch.eye(FEATURES, dtype=torch.float64))
    return frechet_distance(law, reference().gaussian)


def mind_truth(scale: float, shift: float) -> float:
    """MIND of the law of the samples, along the directions that the metric takes.

    Along v, samples are normal with the mean a = shift sum(v) and the deviation `scale`, and the reference is
    m points y_i in order. The squared distance is the integral of (a + scale z(u) - y(u))^2 over u in [0, 1],
    z being the normal quantile: on each step of y, the integral of z is a difference of normal densities.
    """
    directions = torch.randn(FEATURES, DIRECTIONS, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(directions.double(), dim=0)
    y = (reference().features.double() @ directions).sort(dim=0).values - shift * directions.sum(0)
    edges = torch.arange(1, IMAGES, dtype=torch.float64) / IMAGES
    density = Normal(0, 1).log_prob(Normal(0, 1).icdf(edges)).exp()
    zero = torch.zeros(1, dtype=torch.float64)
    steps = -torch.cat([zero, density, zero]).diff()
    squared = scale**2 + y.square().mean(0) - 2 * scale * (steps[:, None] * y).sum(0)
    return 3 * FEATURES * float(squared.mean())


TRUTH = {"fd": frechet_truth, "mind": mind_truth}


def counted(measured: Sequence[Measurement], truth: float) -> dict[str, int]:
    """Repetitions, those with an interval, and those whose interval contains the truth."""
    intervals = [one.interval for one in measured if one.interval]
    covered = sum(low <= truth <= high for low, high in intervals)
    return {"repetitions": len(measured), "intervals": len(intervals), "covered": covered}


def of_samples(name: str, law: tuple[float, float], repetitions: int) -> dict[str, dict[str, int]]:
    """The measures of a metric that have an interval; of its terms the first."""
    sets: list[dict[str, Measurement]] = []
    for seed in range(min(repetitions, FEWER.get(name, repetitions))):
        sets.append(score(name, law, seed))
        if seed + 1 == TRIES and not any(one.interval for found in sets for one in found.values()):
            return {}
    terms = [measure for measure in sets[0] if measure not in METRICS[name].measures]
    found = {}
    for measure in (*METRICS[name].measures, *terms[:1]):
        measured = [one[measure] for one in sets]
        mean = math.fsum(one.value for one in measured) / len(measured)
        counts = counted(measured, TRUTH[measure](*law) if measure in TRUTH else mean)
        if counts["intervals"]:
            found[measure] = counts
    return found


def of_bits(skewed: bool, repetitions: int) -> dict[str, dict[str, int]]:
    """The bound of SAMPLES images, a sum of two terms of normal or exponential bits, each with mean 1."""
    found = []
    for seed in range(repetitions):
        random, metric = np.random.default_rng(seed), BitsPerDim(("prior", "rest"), SAMPLES)
        draw = random.exponential if skewed else partial(random.normal, 1)
        terms = {term: torch.from_numpy(draw(size=SAMPLES)) for term in metric.names}
        metric.update(torch.arange(SAMPLES), terms)
        found.append(metric.compute()["bpd"])
    return {"bpd": counted(found, 2.0)}


def estimates(random: np.random.Generator, seeds: int, spread: float) -> list[float]:
    """One for each training: the model's own number, and an error of sampling with half its spread."""
    return (random.normal(0, spread, seeds) + random.normal(0, spread / 2, seeds)).tolist()


def of_seeds(spread: float | None, repetitions: int) -> dict[str, dict[str, int]]:
    """Means of SEEDS trainings, or differences from trainings whose spread is `spread` times as large."""
    found: dict[str, list[Measurement]] = {}
    for seed in range(repetitions):
        random = np.random.default_rng(seed)
        for seeds in SEEDS:
            one = estimates(random, seeds, 1)
            if spread is None:
                name, (middle, _, half) = f"mean of {seeds} seeds", mean_interval(one)
            else:
                other = estimates(random, seeds, spread)
                name, (middle, half) = f"difference of {seeds} and {seeds} seeds", welch(one, other)
            found.setdefault(name, []).append(Measurement(middle, seeds, (middle - half, middle + half)))
    return {name: counted(measured, 0.0) for name, measured in found.items()}
