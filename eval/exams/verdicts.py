"""Whether a measure does what it is meant to do: from its values on harmed samples to a verdict.

Two values differ if one evaluation of each would show it: if the means over the sets differ by more than
T sqrt(s^2 + s'^2), with s and s' the standard deviations over the sets and T the 97.5% quantile of Student's
t with REPEATS - 1 degrees of freedom. (Welch's test at its fewest degrees of freedom, for a difference of
single sets.) A difference of up to the larger value / n does not count: one sample of n can move a mean by
that much. The rules:

1. A harm that a measure is meant to see must move it to its worse end (if neither end is worse: to one
   end), no level may move it back, and the last level must differ from the perfect model.
2. A harm that it is not meant to see must not move it to its better end: no harm is rewarded.
3. A harmless change must not move it. (Fewer samples may, if the measure says that it depends on n.)

The rules follow the checks of Raisa et al. 2025 (arXiv 2505.22450) for precision and recall.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, variance
from typing import NamedTuple

from trilemma.eval.exams.harms import Harm
from trilemma.eval.metrics.table import Measure

T = 2.776445
"""97.5% of Student's t with 4 degrees of freedom, those of 5 sets."""
ROUNDING = 1e-9
"""A share of the noise that is rounding."""


class Verdict(NamedTuple):
    """What a measure does under a harm, and whether it passes; None if there is no rule for it."""

    said: str
    passed: bool | None


def move(before: Sequence[float], after: Sequence[float], n: int) -> float:
    """How far a measure of n samples moved between two groups of sets.

    The unit is the smallest difference that one set of each would show: beyond -1 or 1 the values differ.
    """
    difference, largest = fmean(after) - fmean(before), max(map(abs, (*before, *after)))
    noise = max(T * math.sqrt(variance(before) + variance(after)), largest / n)
    return difference / (noise * (1 + ROUNDING)) if noise else 0.0


def worse(measure: Measure) -> int:
    """1 if larger values are worse, -1 if smaller ones are, 0 if neither."""
    return {"lower": 1, "higher": -1, None: 0}[measure.better]


def judge(measure: Measure, harm: Harm, values: Sequence[Sequence[float]], n: int) -> Verdict:
    """The verdict on a measure's values: of the perfect sets of n samples, and at each level of the harm."""
    moves = [move(values[0], level, n) for level in values[1:]]
    if harm.hurts is None:
        return _unmoved(moves, asked=not (harm.of_n and measure.depends_on_n))
    if harm.hurts not in measure.promised:
        return _not_rewarded([worse(measure) * one for one in moves], harm, asked=measure.better is not None)
    sign = worse(measure) or math.copysign(1, moves[-1])
    steps = [sign * move(*pair, n) for pair in pairwise(values)]
    return _seen([sign * one for one in moves], steps, harm)


def _unmoved(moves: Sequence[float], asked: bool) -> Verdict:
    still = all(abs(one) <= 1 for one in moves)
    return Verdict("still" if still else "moves", still if asked else None)


def _not_rewarded(moves: Sequence[float], harm: Harm, asked: bool) -> Verdict:
    if not asked:
        return Verdict("", None)
    better = [level for level, one in zip(harm.levels, moves, strict=True) if one < -1]
    return Verdict(f"rewarded from {harm.level(better[0])}" if better else "not rewarded", not better)


def _seen(moves: Sequence[float], steps: Sequence[float], harm: Harm) -> Verdict:
    if moves[-1] < -1:
        return Verdict("rewarded", False)
    if moves[-1] <= 1:
        return Verdict("not seen", False)
    if min(steps) < -1:
        return Verdict("turns back", False)
    first = next(k for k in range(len(moves)) if min(moves[k:]) > 1)
    return Verdict(harm.level(harm.levels[first]), True)
