"""How metrics count samples: exactly once each, whichever process scores them.

A sample has an index, 0..num_samples-1. Every state is a sum: over samples, or into rows of zeros of
which each sample fills its own. Adding up the ranks therefore gives what one process has, for any sharding,
and an index that was scored twice or never is an error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from trilemma.eval.metrics.frechet import BLOCKS, Gaussian, jackknife

NORMAL_QUANTILE = 1.959964  # 97.5%

ENOUGH = 2 * BLOCKS
"""Samples from which on a number has an interval."""


class Measurement(NamedTuple):
    """One measured number of n samples, its 95% interval and its floor, where there are any.

    The interval is for what infinitely many samples of the model would score against these same reference
    statistics: the reference counts as exact. `value` is the plain one of these n samples, which published
    tables have. Where it is biased (the Frechet distance) the interval is about `debiased`, and need not
    contain it. The floor is the value that a perfect model would be expected to have.
    """

    value: float
    n: int
    interval: tuple[float, float] | None = None
    floor: float | None = None
    debiased: float | None = None

    @property
    def estimate(self) -> float:
        """What the interval is about: the debiased value, where the plain one is biased."""
        return self.value if self.debiased is None else self.debiased


class SampleMetric(Metric):
    """What all metrics share: sums for state, and the book of which samples were scored.

    Call `update` with the samples' indices first, then `compute` on every rank; one that scored nothing takes
    part too. (torchmetrics' `forward` would count a batch twice.)
    """

    full_state_update = False

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"--num_samples must be at least 2; got {num_samples}")
        self.num_samples = num_samples
        self.add_sum("seen", num_samples)

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """A state of zeros, summed over ranks: float64, or float32 where each entry is written only once."""
        # torchmetrics keeps a copy of each state to reset to; one zero that is expanded spares the memory.
        self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self._defaults[name] = self._defaults[name].expand(shape)
        setattr(self, name, torch.zeros(shape, dtype=dtype))

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        # torchmetrics would gather every rank's states and then add them up: all are sums, so add in place.
        for state in self.metric_state.values():
            dist.all_reduce(state, group=process_group or self.process_group)

    def mark(self, index: Tensor) -> Tensor:
        """Note that the samples `index` (B,) int64 are scored now; returns it on the CPU."""
        index = index.to("cpu", torch.int64)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_samples:
            raise ValueError(f"sample indices must lie in 0..{self.num_samples - 1}; got {index.tolist()}")
        ones = torch.ones(len(index), dtype=torch.float64, device=self.device)
        self.seen.index_add_(0, index.to(self.device), ones)
        return index

    def check_complete(self, sums: Tensor) -> None:
        """Raise unless every sample was scored exactly once and `sums` over their outputs are finite."""
        wrong = (self.seen != 1).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"{len(wrong)} of {self.num_samples} samples were not scored exactly once; the first is "
                f"sample {first}, scored {int(self.seen[first])} times. Shard by index, without padding"
            )
        if not sums.isfinite().all():
            raise ValueError("the extractor's output is not finite for some samples")


class FixedSubset:
    """The same random `size` of `total` samples for every sharding, and the row of a buffer that each fills.

    A smaller subset of the same total is the beginning of a larger one.
    """

    def __init__(self, total: int, size: int) -> None:
        self.members = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:size]
        self._row = torch.full((total,), -1)
        self._row[self.members] = torch.arange(len(self.members))

    def store(self, buffer: Tensor, index: Tensor, values: Tensor) -> None:
        """Write those of values (B, D), of the samples `index` (B,), that are in the subset to `buffer`."""
        row = self._row[index]
        chosen = (row >= 0).nonzero().flatten()
        buffer.index_add_(0, row[chosen].to(buffer.device), values[chosen.to(values.device)].to(buffer))


def has_blocks(sizes: Tensor) -> bool:
    """Whether blocks of these sizes (BLOCKS,) are enough for an interval."""
    return bool(sizes.min() > 0 and sizes.sum() >= ENOUGH)


def block_interval(
    value: float, sizes: Tensor, value_of: Callable[[Tensor], float], *, second_order: bool = False
) -> tuple[float, float] | None:
    """Jackknife interval of `value`, None for too few samples.

    sizes (BLOCKS,) are the blocks' numbers of samples; `value_of` computes the value from the blocks that are
    kept, (BLOCKS,) of ones and zeros.
    """
    if not has_blocks(sizes):
        return None
    without = [value_of(kept) for kept in 1 - torch.eye(BLOCKS).to(sizes)]
    odd = torch.arange(BLOCKS).to(sizes) % 2
    halves = (value_of(1 - odd), value_of(odd)) if second_order else None
    return jackknife(value, sizes.tolist(), without, halves)


def share_interval(share: float, n: int) -> tuple[float, float]:
    """95% interval of a share of n independent samples (Wilson 1927)."""
    z2 = NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_QUANTILE * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5 / (1 + z2 / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return min(low, share), max(high, share)  # rounding may set an end beside a share of 0 or 1


def check_width(features: Tensor, reference: Gaussian) -> None:
    """ValueError unless features (B, D) are as wide as the reference."""
    if features.ndim != 2 or features.shape[1] != len(reference.mean):
        raise ValueError(
            f"features must be (B, {len(reference.mean)}), as the reference's; got {tuple(features.shape)}. "
            "Was the reference made with another --feature_extractor?"
        )


def not_negative(
    value: float, n: int, interval: tuple[float, float] | None, floor: float | None
) -> Measurement:
    """A biased value of what cannot be negative, with the middle of its debiased interval.

    Only the part of the interval counts that the quantity can lie in.
    """
    if interval is None:
        return Measurement(value, n, floor=floor)
    low, high, middle = (max(0.0, number) for number in (*interval, sum(interval) / 2))
    return Measurement(value, n, (low, high), floor, middle)
