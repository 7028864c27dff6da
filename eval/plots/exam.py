"""The figure of an exam: how far each harm moves each measure."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BOUNDS = (-30, -10, -3, -1, 1, 3, 10, 30)
"""Edges of the colours, in the units of `verdicts.move`: between -1 and 1 there is no difference."""


def moves(
    columns: Sequence[tuple[str, str]],
    panels: Mapping[str, Mapping[str, Sequence[float | None]]],
    failed: Mapping[str, Mapping[str, Sequence[str]]],
    title: str,
) -> Figure:
    """A panel for each group, with a row for each measure and a column for each level of each harm.

    columns: the harm and the level of each. panels: group -> measure -> moves to the worse end, None if
    nothing was measured. failed: group -> measure -> the harms under which it fails; they get a frame.
    """
    rows = sum(map(len, panels.values()))
    size = (2.2 + 0.33 * len(columns), 1.6 + 0.24 * rows + 0.9 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(panels), squeeze=False, height_ratios=[max(1, len(of)) for of in panels.values()]
    )[:, 0]
    norm = BoundaryNorm(BOUNDS, 256, extend="both")
    spans = _spans([harm for harm, _ in columns])
    for axis, (group, of) in zip(axes, panels.items(), strict=True):
        cells = np.array([[np.nan if one is None else one for one in row] for row in of.values()])
        picture = axis.imshow(np.clip(cells, -99, 99), cmap="RdBu_r", norm=norm, aspect="auto")
        axis.set_facecolor("0.85")
        axis.set_yticks(range(len(of)), list(of), fontsize=8)
        axis.set_xticks(range(len(columns)), [level for _, level in columns], rotation=90, fontsize=7)
        axis.set_ylabel(group, fontsize=9)
        for harm, (start, width) in spans.items():
            axis.axvline(start - 0.5, color="black", linewidth=0.8)
            if axis is axes[0]:
                axis.text(start - 0.3, -0.6, harm, rotation=30, fontsize=8, va="bottom")
            for row, measure in enumerate(of):
                if harm in failed[group][measure]:
                    corner = (start - 0.42, row - 0.42)
                    axis.add_patch(Rectangle(corner, width - 0.16, 0.84, fill=False, linewidth=1.4))
    bar = figure.colorbar(picture, ax=list(axes), ticks=BOUNDS, shrink=0.6, pad=0.01)
    bar.set_label("move to the worse end; between -1 and 1: too small for one set to show", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(f"{title}. Framed: failures", fontsize=10)
    return figure


def _spans(harms: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where the columns of each harm begin, and how many there are."""
    spans, start = {}, 0
    for harm, same in groupby(harms):
        spans[harm] = start, len(list(same))
        start += spans[harm][1]
    return spans
