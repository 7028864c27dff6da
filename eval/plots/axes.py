"""Axes of charts: plain numbers that do not collide, and a logarithm only where values span a wide range."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from trilemma.eval.scoring.results import ResultLine

WIDE = 10
"""An axis is logarithmic where the largest value is more than this many times the smallest."""

MOST_TICKS = 5
GAP = 0.015
"""Between two series with the same places, as a share of the axis."""


def is_wide(values: Iterable[float]) -> bool:
    """Whether these values need a logarithmic axis; it has no place for 0."""
    values = [value for value in values if np.isfinite(value)]
    return bool(values) and 0 < WIDE * min(values) < max(values)


def plain(value: float, _: int = 0) -> str:
    """A number as one writes it by hand: 0.00002, 21.5, 20,000, 1.5M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.6g}M"
    if abs(value) >= 1:
        return f"{value:,.6g}"
    return np.format_float_positional(float(f"{value:.6g}"), trim="-")


def plain_axis(axis: Axes, which: Literal["x", "y"], values: Sequence[float], whole: bool = False) -> None:
    """Scale, ticks and numbers of one axis that shows these values; whole: it counts something."""
    wide = is_wide(values)
    (axis.set_xscale if which == "x" else axis.set_yscale)("log" if wide else "linear")
    side = axis.xaxis if which == "x" else axis.yaxis
    if wide:
        decades = np.log10(max(values) / min(value for value in values if value > 0))
        side.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=MOST_TICKS + 2))
        side.set_minor_locator(NullLocator())
    else:
        side.set_major_locator(MaxNLocator(MOST_TICKS, integer=whole, min_n_ticks=1 if whole else 2))
    side.set_major_formatter(FuncFormatter(plain))


def drawn(lines: Iterable[ResultLine]) -> list[float]:
    """Estimates of these results, and the ends of their intervals."""
    return [value for line in lines for value in (line.estimate, *(line.interval or ()))]


def floors(lines: Iterable[ResultLine]) -> list[float]:
    """Floors of these results; not of those that are drawn without their bias, which the floor has."""
    return [line.floor for line in lines if line.floor is not None and line.plain is None]


def beside(places: Sequence[float], series: int, count: int, everywhere: Sequence[float]) -> list[float]:
    """Places of series number `series` of `count`, moved a little so that intervals do not hide each other.

    everywhere: the places of all series, from which follows whether the axis is logarithmic.
    """
    move = GAP * (series - (count - 1) / 2)
    low, high = min(everywhere), max(everywhere)
    if is_wide(everywhere):
        return [place * (high / low) ** move for place in places]
    return [place + move * ((high - low) or abs(high) or 1) for place in places]


def legend_beside(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all these axes, right of them, where it hides nothing."""
    entries = {}
    for axis in axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", fontsize=8)


def own_legend(axis: Axes) -> None:
    """A legend right of these axes, where it hides nothing."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3, fontsize=8, frameon=False)
