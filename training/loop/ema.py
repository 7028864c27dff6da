"""The exponential moving average of the weights, which is what gets sampled, scored and published."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from trilemma.training.devices.profile import EMA as EMA_RANGE
from trilemma.training.options.groups import EMAConfig

RAMP_UP = 0.05
"""Longest half-life as a share of the images seen so far; Karras et al. 2022, `ema_rampup_ratio`."""


def ema_decay(config: EMAConfig, images_per_step: int) -> Callable[[int], float]:
    """Decay after optimizer step 1, 2, ...: diffusers' power warm-up, a half-life in images, or 0."""

    def power(step: int) -> float:
        return min(1 - (1 + (step - 1) / config.ema_inv_gamma) ** -config.ema_power, config.ema_max_decay)

    def half_life(step: int) -> float:
        return 0.5 ** (images_per_step / min(config.ema_halflife_images, RAMP_UP * step * images_per_step))

    if not config.use_ema:
        return lambda step: 0.0
    return half_life if config.ema_halflife_images else power


class EMA:
    """Averaged copy of a network's parameters, in their order."""

    def __init__(self, net: nn.Module, decay: Callable[[int], float]):
        self.parameters = list(net.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @record_function(EMA_RANGE)
    @torch.no_grad()
    def update(self, step: int, skipped: Tensor | None = None) -> None:
        """Move the average towards the weights that optimizer step `step` (1, 2, ...) produced.

        skipped: a bool () on the device, True for a step that changed no weights and so no average.
        """
        weights, share = [p.detach() for p in self.parameters], 1 - self.decay(step)
        if skipped is None or share == 1:
            torch._foreach_lerp_(self.average, weights, share)
            return
        change = torch._foreach_sub(weights, self.average)
        torch._foreach_mul_(change, torch.where(skipped, 0.0, share))
        torch._foreach_add_(self.average, change)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds the averaged weights inside the block, and exactly its own after it."""
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> list[torch.Tensor]:
        """The averaged tensors."""
        return self.average

    def load_state_dict(self, average: list[torch.Tensor]) -> None:
        """Averaged tensors of an earlier run of the same network."""
        torch._foreach_copy_(
            self.average, [a.to(p.device) for a, p in zip(average, self.average, strict=True)]
        )
