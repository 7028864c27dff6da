"""How the times t of a batch are drawn: evenly spread, or by how much each contributes to the bound."""

import torch
from accelerate.utils import gather
from torch import Tensor, nn

from trilemma.pipelines.shared import exact_device


def spread_times(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Times in [0, 1), float64 (count,): each uniform, and one in each of `count` equal parts.

    They are where the generator is, by default on `device` or, if that has no float64, on the CPU.
    """
    where = exact_device(device) if generator is None else generator.device
    part = torch.rand(count, generator=generator, device=where, dtype=torch.float64)
    place = torch.arange(count, device=where)
    if generator is not None:  # held-out images may come in the order of their classes
        place = torch.randperm(count, generator=generator, device=where)
    return (place + part) / count


class UniformTimes(nn.Module):
    """t uniform in 1..T, one from each of B equal parts: the same expectation with less variance.

    Kingma et al. 2021 (arXiv 2107.00630), appendix I.1, draw times of a batch so that they cover the
    interval.
    """

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def sample(
        self, count: int, device: torch.device, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | float]:
        """t (count,) int64 and the importance weight of each."""
        time = spread_times(count, device, generator)
        return (time * self.steps).long().clamp(max=self.steps - 1).to(device) + 1, 1.0

    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Nothing to learn."""


class ImportanceTimes(nn.Module):
    """t drawn in proportion to sqrt(E[L_t^2]), Nichol & Dhariwal 2021, equation 18; uniform until each t was
    seen often.

    The last losses of every t are buffers, equal on all ranks and part of the checkpoint.
    """

    HISTORY = 10
    UNIFORM_SHARE = 0.001

    def __init__(self, steps: int):
        super().__init__()
        self.register_buffer("history", torch.zeros(steps, self.HISTORY))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """p(t), float32 (T,)."""
        steps = len(self.seen)
        weights = self.history.square().mean(1).sqrt()
        learned = (
            weights / weights.sum().clamp(min=1e-20) * (1 - self.UNIFORM_SHARE) + self.UNIFORM_SHARE / steps
        )
        return torch.where((self.seen >= self.HISTORY).all(), learned, torch.full_like(learned, 1 / steps))

    def sample(
        self, count: int, device: torch.device, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | float]:
        """t (count,) int64 and 1 / (T p(t)); with a generator, t is uniform: a fixed set must not follow the
        history.
        """
        if generator is not None:
            return _integers(len(self.seen), count, device, generator) + 1, 1.0
        p = self.probabilities()
        index = torch.multinomial(p, count, replacement=True)
        return index + 1, 1 / (len(p) * p[index])

    @torch.no_grad()
    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Put the losses of all ranks into the history, oldest out first.

        All at once on the device, which the host does not wait for: every row moves left by the number of its
        new losses, which fill its end. Of more than HISTORY for one t, the first never show.
        """
        if not self.training:
            return
        rows, order = gather(t - 1).sort(stable=True)
        losses = gather(losses).to(self.history)[order]
        count = torch.zeros_like(self.seen).index_add_(0, rows, torch.ones_like(rows))
        back = count.cumsum(0)[rows] - torch.arange(len(rows), device=rows.device)  # 1 for a row's last one
        columns = torch.arange(self.HISTORY, device=rows.device) + count[:, None]
        moved = self.history.gather(1, columns.clamp(max=self.HISTORY - 1))
        moved = nn.functional.pad(moved, (1, 0))  # the column 0 takes what never shows
        moved[rows, (self.HISTORY + 1 - back).clamp(min=0)] = losses
        self.history.copy_(moved[:, 1:])
        self.seen.add_(count)


def _integers(high: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    where = device if generator is None else generator.device
    return torch.randint(high, (count,), generator=generator, device=where).to(device)
