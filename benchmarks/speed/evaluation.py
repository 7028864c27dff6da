"""Scoring given features: ours against torchmetrics, and the distance alone against scipy's square root.

Features of the reference are measured beforehand for both, as in any evaluation after the first: ours are
statistics, torchmetrics' FID holds the real moments, and KID the real features.
"""

from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import metrics
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from speed.harness import Case, Skipped
from trilemma.eval.metrics.build import build_metrics
from trilemma.eval.metrics.frechet import Gaussian, frechet_distance
from trilemma.eval.scoring.reference import ReferenceStatistics

GROUP = "evaluation"
BATCH = 250


def cases(full: bool, _folder: Path) -> Iterator[Case | Skipped]:
    """Distance, kernel distance and all metrics of 5,000 samples; in full also wider, and of 50,000."""
    for dimension, n in ((768, 5000), (2048, 5000), (768, 50_000)) if full else ((768, 5000),):
        yield from scoring(dimension, n, 3 if n > 5000 or dimension > 768 else 5)
    yield square_root(2048 if full else 768)
    if find_spec("pytorch_fid") is None or find_spec("torchvision") is None:
        yield Skipped(
            GROUP, "pytorch-fid", "the package is not installed; its distance is scipy's sqrtm above"
        )


def scoring(dimension: int, n: int, rounds: int) -> Iterator[Case]:
    """Update by batches and compute: the distance alone, then with KID, then with all metrics of features."""
    real, drawn = metrics.features(n, 1, dimension), metrics.features(n, 2, dimension)
    reference = ReferenceStatistics(Gaussian.of(real), None, features=real[:10_000])
    held = FrechetInceptionDistance(feature=metrics.Identity(dimension))
    held.used_custom_model = True
    held.update(real, real=True)
    kernel = KernelInceptionDistance(feature=metrics.Identity(dimension), subset_size=1000)
    kernel.used_custom_model = True
    kernel.update(real, real=True)

    def theirs(*begun: torch.nn.Module) -> None:
        for metric in map(deepcopy, begun):
            for part in drawn.split(BATCH):
                metric.update(part, real=False)
            metric.compute()

    def ours(*names: str) -> None:
        built = build_metrics(names, reference, n)
        for index in torch.arange(n).split(BATCH):
            for metric in built.values():
                metric.update(index, drawn[index])
        for metric in built.values():
            metric.compute()

    title = f"{n:,} samples of {dimension:,} features"

    def value_alone() -> None:
        metric = build_metrics(("fd",), reference, n)["fd"]
        for index in torch.arange(n).split(BATCH):
            metric.update(index, drawn[index])
        every = torch.ones_like(metric.count)
        sums = (metric.count, metric.total, metric.moment, every, reference.gaussian.mean)
        frechet_distance(Gaussian.of_sums(*sums), reference.gaussian)

    distance = {
        "torchmetrics FID": lambda: theirs(held),
        "ours, the value alone": value_alone,
        "ours, fd with interval and floor": lambda: ours("fd"),
    }
    yield Case(GROUP, f"distance, {title}", distance, rounds, warm=1)
    both = {
        "torchmetrics FID and KID": lambda: theirs(held, kernel),
        "ours, fd kid": lambda: ours("fd", "kid"),
        "ours, fd kid energy prdc diversity": lambda: ours("fd", "kid", "energy", "prdc", "diversity"),
    }
    yield Case(GROUP, f"all metrics, {title}", both, 3, warm=0 if n > 5000 else 1)


def square_root(dimension: int) -> Case:
    """The distance of two Gaussians, without update: `scipy.linalg.sqrtm` is pytorch-fid's method."""
    a, b = (Gaussian.of(metrics.features(5000, seed, dimension)) for seed in (1, 2))
    rows = {
        "scipy.linalg.sqrtm": lambda: metrics.scipy_distance(a, b),
        "ours": lambda: frechet_distance(*(Gaussian(x.mean, x.covariance, x.n) for x in (a, b))),
    }
    if find_spec("pytorch_fid") and find_spec("torchvision"):
        theirs = import_module("pytorch_fid.fid_score").calculate_frechet_distance
        arrays = [tensor.numpy() for x in (a, b) for tensor in (x.mean, x.covariance)]
        rows["pytorch-fid"] = lambda: theirs(*arrays)
    return Case(GROUP, f"distance of two Gaussians, {dimension:,} features", rows, 3, warm=1)
