"""Averages of any length from a few that were kept: Karras et al. 2023 (arXiv 2312.02696), section 3.

With theta(tau) the weights after optimizer step tau, the average of power g at step t is

    integral over tau in 0..t of p(tau) theta(tau),   p(tau) = (g + 1) tau^g / t^(g + 1),

and its length is the standard deviation of p as a share of t. A weighted sum of snapshots has the weighted
sum of their profiles p. The factors of the sum are those whose profile is nearest to the wanted one in least
squares. Unlike in the paper they also add up to 1: otherwise the whole network is scaled by their sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TRACKS = (0.05, 0.10)
"""Lengths of the two averages that are kept, those of the paper."""
UNIFORM = 12**-0.5
"""Length of the average with equal weights, power 0; a longer one would prefer the first steps."""
WORST_FIT = 0.1
"""Relative error of a profile above which an average is refused."""


@dataclass(frozen=True)
class Profile:
    """The average of this power (0 or more) at this step."""

    power: float
    step: int


def check_length(std: float | None, halflife: float | None) -> None:
    """ValueError for --ema_std that is too large, or given beside --ema_halflife_images."""
    if std and halflife:
        raise ValueError("--ema_std and --ema_halflife_images are two lengths of one average; give one")
    if std and std > UNIFORM:
        raise ValueError(f"--ema_std must be at most {UNIFORM:.6f} (all steps count the same); got {std:g}")


def std_of(power: float) -> float:
    """Length of the average of a power."""
    return (power + 1) ** 0.5 / ((power + 2) * (power + 3) ** 0.5)


def power_of(std: float) -> float:
    """Power of the average of a length, 0 < std <= UNIFORM."""
    low, high = 0.0, 1 / std  # std_of(x) < 1 / x
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if std_of(middle) > std else (low, middle)
    return high


def power_of_halflife(share: float) -> float:
    """Power of the average with half of its weight on the last `share` (0..1/2) of the steps."""
    return math.log(0.5) / math.log1p(-share) - 1


def halflife_of(power: float) -> float:
    """The last share of the steps that has half of the weight of an average."""
    return -math.expm1(math.log(0.5) / (power + 1))


def decay_of(power: float, step: int) -> float:
    """Decay after optimizer step 1, 2, ...: the average is then the integral of p, step by step, exactly."""
    return (1 - 1 / step) ** (power + 1)


def product(a: Profile, b: Profile) -> float:
    """Integral of the product of two profiles, over 0 .. the earlier of their steps."""
    both, last = a.power + b.power + 1, min(a.step, b.step)
    logarithm = both * math.log(last) - (a.power + 1) * math.log(a.step) - (b.power + 1) * math.log(b.step)
    return (a.power + 1) * (b.power + 1) / both * math.exp(logarithm)


def combine(kept: Sequence[Profile], wanted: Profile) -> tuple["np.ndarray", float]:
    """Weights (len(kept),) float64 of the kept averages, and the relative error of the sum's profile."""
    import numpy as np  # not with the options, which import this file

    count = len(kept)
    products = np.array([[product(a, b) for b in kept] for a in kept])
    targets, norm = np.array([product(a, wanted) for a in kept]), product(wanted, wanted)
    # Lagrange's conditions of least squares whose weights add up to 1, in units of the wanted profile.
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = products / norm, 0.0
    weights = np.linalg.lstsq(system, np.append(targets / norm, 1.0), rcond=None)[0][:count]
    square = 1 - 2 * weights @ targets / norm + weights @ products @ weights / norm
    return weights, float(max(0.0, square) ** 0.5)
