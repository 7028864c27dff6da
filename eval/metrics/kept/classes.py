"""Metrics within classes, which keep the features and labels of some samples; the distance of each class."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trilemma.eval.metrics.frechet import BLOCKS, block_of
from trilemma.eval.metrics.pairwise import NEGATIVE_DISTANCE, kernel_distance
from trilemma.eval.metrics.sample_metric import (
    FixedSubset,
    Measurement,
    SampleMetric,
    block_interval,
    check_width,
    has_blocks,
)
from trilemma.eval.metrics.table import PAIR_IMAGES
from trilemma.eval.scoring.reference import ReferenceStatistics

Measure = Callable[[Tensor, Tensor, Tensor, ReferenceStatistics], dict[str, Measurement]]
"""Features (N, D) float32, labels (N,) on the CPU, blocks (N,) and the reference -> numbers."""


class LabelledRows(SampleMetric):
    """Keeps features and labels of PAIR_IMAGES random samples and hands them to `measure`."""

    def __init__(self, measure: Measure, reference: ReferenceStatistics, num_samples: int) -> None:
        super().__init__(num_samples)
        self.measure, self.reference = measure, reference
        self.subset = FixedSubset(num_samples, PAIR_IMAGES)
        n = len(self.subset.members)
        self.add_sum("rows", n, len(reference.gaussian.mean), dtype=torch.float32)
        self.add_sum("classes", n, 1)

    def update(self, index: Tensor, features: Tensor, labels: Tensor) -> None:
        """features (B, D) of the samples `index` (B,) and the labels (B,) that they were drawn for."""
        check_width(features, self.reference.gaussian)
        index = self.mark(index)
        self.subset.store(self.rows, index, features)
        self.subset.store(self.classes, index, labels[:, None])

    def compute(self) -> dict[str, Measurement]:
        self.check_complete(self.rows)
        block = block_of(self.subset.members, self.num_samples)
        return self.measure(self.rows, self.classes.flatten().cpu(), block, self.reference)


def measure_class_energy(
    rows: Tensor, label: Tensor, block: Tensor, reference: ReferenceStatistics
) -> dict[str, Measurement]:
    """Energy distance between samples and reference images of the same class: for each class k, and the mean.

    Unbiased, as `energy`, for two images or more; a class with fewer is left out. The jackknife divides each
    class into blocks, so that each block leaves out a tenth of every class.
    """
    real, of_real = reference.features[:PAIR_IMAGES].to(rows.device), reference.labels[:PAIR_IMAGES]
    distances, sizes = {}, {}
    for k in label.unique().long().tolist():
        fake, same = rows[(label == k).to(rows.device)], real[(of_real == k).to(rows.device)]
        if min(len(fake), len(same)) < 2:
            continue
        member = torch.nn.functional.one_hot(torch.arange(len(fake)) % BLOCKS, BLOCKS).to(rows.device)
        distances[k] = kernel_distance(same, fake, member, NEGATIVE_DISTANCE)
        sizes[k] = member.sum(0).double()
    if not distances:
        raise ValueError(
            "--metrics class_energy needs two samples and two reference images of a class; draw more "
            "(--num_samples), and give a reference with the classes of the model"
        )

    def mean(kept: Tensor) -> float:
        return sum(distance(kept) for distance in distances.values()) / len(distances)

    every = torch.ones(BLOCKS, dtype=torch.float64, device=rows.device)
    total, value = sum(sizes.values()), mean(every)
    interval = block_interval(value, total, mean) if all(map(has_blocks, sizes.values())) else None
    results = {"class_energy": Measurement(value, int(total.sum()), interval, 0.0)}
    for k, distance in distances.items():
        value, n = distance(every), int(sizes[k].sum())
        results[f"{k}_class_energy"] = Measurement(value, n, block_interval(value, sizes[k], distance), 0.0)
    return results


ClassEnergy = partial(LabelledRows, measure_class_energy)
