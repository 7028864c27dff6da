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
        """Put the losses of all ranks into the history, oldest out first."""
        if not self.training:
            return
        history, seen = self.history.cpu(), self.seen.cpu()
        for index, loss in zip(gather(t - 1).tolist(), gather(losses).tolist(), strict=True):
            history[index] = history[index].roll(-1)
            history[index, -1] = loss
            seen[index] += 1
        self.history.copy_(history)
        self.seen.copy_(seen)


def _integers(high: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    where = device if generator is None else generator.device
    return torch.randint(high, (count,), generator=generator, device=where).to(device)
