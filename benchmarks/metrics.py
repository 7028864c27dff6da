"""The Frechet distance: time compared with scipy and torchmetrics, and memory.

Measures in one process: rounds are interleaved, each in reversed order of the last, and medians are printed.
The values are printed before the times. Run: `python benchmarks/metrics.py` (about ten minutes on two cores:
`sqrtm` of 2048 x 2048 is slow).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import psutil
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from trilemma.eval.metrics.distances import FrechetDistance
from trilemma.eval.metrics.frechet import Gaussian, frechet_distance
from trilemma.eval.scoring.reference import ReferenceStatistics

DIMENSION = 2048


def features(n: int, seed: int, dimension: int = DIMENSION) -> torch.Tensor:
    """(n, dimension) float32, non-negative with a falling spectrum, like pooled activations."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, dimension)
    mixing = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(0)) / dimension**0.5
    return ((torch.randn(n, dimension, generator=generator) * scale) @ mixing * (1 + 0.02 * seed)).relu()


def scipy_distance(a: Gaussian, b: Gaussian) -> float:
    """The method of pytorch-fid, with its correction for singular products."""
    m1, c1, m2, c2 = (tensor.numpy() for tensor in (a.mean, a.covariance, b.mean, b.covariance))
    root = scipy.linalg.sqrtm(c1 @ c2)
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(c1))
        root = scipy.linalg.sqrtm((c1 + offset) @ (c2 + offset))
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real)


class Seconds(NamedTuple):
    """Time of one call."""

    wall: float
    process: float  # summed over all threads; more reliable on a machine with other load


def seconds(rows: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """Times of each function, by name; every round calls all of them."""
    times: dict[str, list[Seconds]] = {name: [] for name in rows}
    for number in range(rounds):
        for name in list(rows)[:: 1 if number % 2 == 0 else -1]:
            wall, process = time.perf_counter(), time.process_time()
            rows[name]()
            times[name].append(Seconds(time.perf_counter() - wall, time.process_time() - process))
    return times


def report(title: str, times: dict[str, list[Seconds]], ours: str, other: str) -> None:
    """Print the medians of two functions and their ratios."""
    medians = {}
    for name in (ours, other):
        medians[name] = Seconds(*(statistics.median(column) for column in zip(*times[name], strict=True)))
        walls = [each.wall for each in times[name]]
        print(
            f"{title:34s} {name:20s} wall {medians[name].wall:8.3f} s [{min(walls):.3f}, {max(walls):.3f}], "
            f"process {medians[name].process:8.3f} s"
        )
    wall, process = (a / b for a, b in zip(medians[other], medians[ours], strict=True))
    print(f"{title:34s} {'ratio':20s} wall {wall:8.1f} x, process {process:8.1f} x")


def distances(rounds: int) -> None:
    """Ours, from new moments and with the reference's factor cached as in every evaluation, against scipy."""
    for n in (5000, 500):
        a, b = Gaussian.of(features(n, 1)), Gaussian.of(features(n, 2))
        values = {}

        def ours(a: Gaussian = a, b: Gaussian = b, values: dict = values) -> None:
            fresh = (Gaussian(x.mean, x.covariance, x.n) for x in (a, b))
            values["ours"] = frechet_distance(*fresh)

        def cached(a: Gaussian = a, b: Gaussian = b, values: dict = values) -> None:
            values["ours, cached"] = frechet_distance(Gaussian(a.mean, a.covariance, a.n), b)

        def others(a: Gaussian = a, b: Gaussian = b, values: dict = values) -> None:
            values["scipy"] = scipy_distance(a, b)

        cached()
        times = seconds({"ours": ours, "ours, cached": cached, "scipy.linalg.sqrtm": others}, rounds)
        title = f"distance, D={DIMENSION}, N={n}"
        print(f"{title:34s} ours {values['ours']:.9f}, scipy {values['scipy']:.9f}")
        for name in ("ours", "ours, cached"):
            report(title, times, name, "scipy.linalg.sqrtm")


class Identity(torch.nn.Module):
    """An extractor for torchmetrics that returns its input."""

    def __init__(self, num_features: int = DIMENSION):
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def updates(rounds: int) -> None:
    """Streaming update of the moments by batches of features; ours also keeps blocks for its interval."""
    reference = ReferenceStatistics(
        Gaussian(torch.zeros(DIMENSION).double(), torch.eye(DIMENSION).double()), None
    )
    total, parts = 512, (64, 256)
    data = features(total, 1)
    for size in parts:
        ours, theirs = FrechetDistance(reference, 50_000), FrechetInceptionDistance(feature=Identity())
        theirs.used_custom_model = True

        def update_ours(ours: FrechetDistance = ours, size: int = size) -> None:
            for index in torch.arange(total).split(size):
                ours.update(index, data[index])

        def update_theirs(theirs: FrechetInceptionDistance = theirs, size: int = size) -> None:
            for part in data.split(size):
                theirs.update(part, real=False)

        rows = {"ours": update_ours, "torchmetrics": update_theirs}
        seconds(rows, 2)
        report(f"update of {total}, batches of {size}", seconds(rows, rounds), "ours", "torchmetrics")


def memory() -> None:
    """Print the peak memory of scoring 50,000 features, minus the memory after imports; for a new process."""
    torch.manual_seed(0)
    baseline = psutil.Process().memory_info().rss
    reference = Gaussian(torch.zeros(DIMENSION).double(), torch.eye(DIMENSION).double(), 50_000)
    metric = FrechetDistance(ReferenceStatistics(reference, None), 50_000)
    for index in torch.arange(50_000).split(100):
        metric.update(index, torch.randn(len(index), DIMENSION))
    result = metric.compute()
    with open("/proc/self/status", encoding="utf-8") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    print(json.dumps({"above": (peak - baseline) / 1e6, "fd": result["fd"]}))


def memory_of_a_fresh_process() -> None:
    """Run `memory` in a new process and print its result."""
    output = subprocess.run(
        [sys.executable, __file__, "--memory_only"], check=True, capture_output=True, encoding="utf-8"
    ).stdout
    above = json.loads(output.splitlines()[-1])["above"]
    print(f"scoring 50,000 x {DIMENSION}: at most {above:.0f} MB more than after the imports")


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the distances")
    parser.add_argument("--update_rounds", type=int, default=9, help="rounds of the streaming updates")
    parser.add_argument("--distances_only", action="store_true", help="skip updates and memory")
    parser.add_argument("--memory_only", action="store_true", help="measure only the memory of this process")
    arguments = parser.parse_args()
    if arguments.memory_only:
        memory()
        return
    print(f"torch {torch.__version__}, scipy {scipy.__version__}, {torch.get_num_threads()} threads")
    if not arguments.distances_only:
        updates(arguments.update_rounds)
        memory_of_a_fresh_process()
    distances(arguments.rounds)


if __name__ == "__main__":
    main()
