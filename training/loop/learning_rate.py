"""The learning rate as a function of the optimizer step; no torch here, since the options list the names.

A shape gives the factor of the peak at step 0, 1, ...; all but `multistep` are diffusers', to the bit.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trilemma.training.options.groups import OptimConfig

POLYNOMIAL_END = 1e-7
"""Learning rate at the end of `polynomial`."""

Factor = Callable[[int, "OptimConfig", int], float]
"""(step, options, number of all steps) -> factor of the peak."""


def _constant(step: int, config: "OptimConfig", total: int) -> float:
    return 1.0


def _linear(step: int, config: "OptimConfig", total: int) -> float:
    return max(0.0, (total - step) / max(1, total - config.lr_warmup_steps))


def _progress(step: int, config: "OptimConfig", total: int) -> float:
    """Share of the steps after the warm-up that are done."""
    return (step - config.lr_warmup_steps) / max(1, total - config.lr_warmup_steps)


def _cosine(step: int, config: "OptimConfig", total: int) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * _progress(step, config, total))))


def _cosine_with_restarts(step: int, config: "OptimConfig", total: int) -> float:
    """diffusers' shape with its one cycle, which is a cosine that stays at zero after the end."""
    progress = _progress(step, config, total)
    return 0.0 if progress >= 1 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * (progress % 1.0))))


def _polynomial(step: int, config: "OptimConfig", total: int) -> float:
    """diffusers' shape with its power of 1: a line to `POLYNOMIAL_END`."""
    if step > total:
        return POLYNOMIAL_END / config.learning_rate
    left = 1 - (step - config.lr_warmup_steps) / (total - config.lr_warmup_steps)
    return ((config.learning_rate - POLYNOMIAL_END) * left + POLYNOMIAL_END) / config.learning_rate


def _multistep(step: int, config: "OptimConfig", total: int) -> float:
    """A milestone counts from its step on, also during the warm-up."""
    warm = min(1.0, step / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
    return warm * config.lr_gamma ** sum(step >= milestone for milestone in config.lr_milestones)


def _warmed_up(shape: Factor) -> Factor:
    """The shape after a warm-up, which is a line from 0 to the peak."""

    def factor(step: int, config: "OptimConfig", total: int) -> float:
        if step < config.lr_warmup_steps:
            return step / max(1, config.lr_warmup_steps)
        return shape(step, config, total)

    return factor


class Shape(NamedTuple):
    """A row of --lr_scheduler.

    warmup: whether it begins with a warm-up. ends: whether it depends on the number of all steps, so that a
    finished run cannot be continued.
    """

    factor: Factor
    warmup: bool = True
    ends: bool = True


SHAPES: dict[str, Shape] = {
    "constant": Shape(_constant, warmup=False, ends=False),
    "constant_with_warmup": Shape(_warmed_up(_constant), ends=False),
    "linear": Shape(_warmed_up(_linear)),
    "cosine": Shape(_warmed_up(_cosine)),
    "cosine_with_restarts": Shape(_warmed_up(_cosine_with_restarts)),
    "polynomial": Shape(_warmed_up(_polynomial)),
    "multistep": Shape(_multistep, ends=False),
}

WITH_WARMUP = tuple(name for name, shape in SHAPES.items() if shape.warmup)
"""The shapes that --lr_warmup_steps has an effect on."""


def rate(config: "OptimConfig", total_steps: int) -> Callable[[int], float]:
    """Factor of the peak learning rate at optimizer step 0, 1, ..."""
    shape = SHAPES[config.lr_scheduler]
    return lambda step: shape.factor(step, config, total_steps)
