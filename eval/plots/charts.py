"""Charts of results: of sweeps and of several models; no torch here.

Every chart returns a `Figure`; the caller saves it. Intervals are drawn as lines beside their values, since
an interval need not contain its value: that of a Frechet distance is debiased (docs/metrics.md).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trilemma.eval.plots.axes import beside, drawn, floors, legend_beside, plain_axis
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.studies.questions import Point
from trilemma.eval.studies.repeats import mean_interval

_SEED = {"markersize": 9, "linestyle": "", "color": "black", "label": "one seed", "zorder": 3}
"""How the result of a single training is drawn beside the mean of its repetitions."""


class _Mark(NamedTuple):
    """A point as it is drawn. line: one of its results. seeds: the estimates of single trainings, or none.

    value and interval: of its result, or the mean over its seeds.
    """

    point: Point
    line: ResultLine
    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]


def sweep(
    points: Sequence[tuple[Point, Mapping[str, ResultLine]]],
    columns: Sequence[str],
    x: str | None,
    title: str,
) -> Figure:
    """The results of the points of a sweep, a panel for each column, with intervals and floors.

    points: each with its lines of results by column; those that repeat a point are drawn as one, their mean.
    x: a flag or an entry of the lines that is the horizontal axis, with a curve for each setting of all flags
    but the last; None: a row for each point.
    """
    marks = [
        _marks([(point, lines[column]) for point, lines in points if column in lines]) for column in columns
    ]
    height = 3.5 if x else 1.2 + 0.35 * max(map(len, marks))
    figure = Figure(figsize=(2.7 + 3.2 * len(columns), max(height, 2.2)), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, measured in zip(axes, marks, strict=True):
        low = floors(mark.line for mark in measured)
        (_curves(axis, measured, x) if x else _rows(axis, measured))
        for floor in low[:1]:
            (axis.axhline if x else axis.axvline)(floor, color="gray", linestyle=":", label="floor")
        (axis.set_ylabel if x else axis.set_xlabel)(measured[0].line.metric)
        values = [value for mark in measured for value in (mark.value, *mark.interval, *mark.seeds)]
        plain_axis(axis, "y" if x else "x", [*low[:1], *values])
    legend_beside(figure, axes)
    figure.suptitle(title, fontsize=10)
    return figure


def _marks(measured: Sequence[tuple[Point, ResultLine]]) -> list[_Mark]:
    """The points in their order, those that repeat one as one; with several seeds, the mean's interval."""
    groups: dict[str, list[tuple[Point, ResultLine]]] = {}
    for point, line in measured:
        point = point.repeats or point
        groups.setdefault(point.name, []).append((point, line))
    marks = []
    for same in groups.values():
        (point, line), seeds = same[0], tuple(line.estimate for _, line in same)
        if len(same) == 1:
            marks.append(_Mark(point, line, line.estimate, line.interval or (line.estimate,) * 2, ()))
        else:
            mean, _, half = mean_interval(seeds)
            marks.append(_Mark(point, line, mean, (mean - half, mean + half), seeds))
    return marks


def _rows(axis: Axes, marks: Sequence[_Mark]) -> None:
    """A row for each point, the first at the top."""
    for row, mark in enumerate(marks):
        if mark.seeds:
            axis.plot(mark.seeds, [row] * len(mark.seeds), marker="|", **_SEED)
        axis.plot(mark.value, row, "o", color="C0", label="mean, 95%" if mark.seeds else None)
        axis.hlines(row, *mark.interval, color="C0")
    names = [mark.point.own_name or " ".join(mark.point.flags.values()) for mark in marks]
    axis.set_yticks(range(len(marks)), names)
    axis.set_ylim(len(marks) - 0.5, -0.5)


def _curves(axis: Axes, marks: Sequence[_Mark], x: str) -> None:
    series: dict[str, list[tuple[float, _Mark]]] = {}
    for mark in marks:
        flags = mark.point.flags
        place = flags[x] if x in flags else mark.line.to_json()[x]
        series.setdefault(" ".join(list(flags.values())[:-1]), []).append((float(place), mark))
    everywhere = [place for pairs in series.values() for place, _ in pairs]
    for color, (name, pairs) in enumerate(series.items()):
        pairs.sort(key=lambda pair: pair[0])
        places = beside([place for place, _ in pairs], color, len(series), everywhere)
        axis.plot(places, [mark.value for _, mark in pairs], "o-", label=name or None, color=f"C{color}")
        axis.vlines(places, *zip(*(mark.interval for _, mark in pairs), strict=True), color=f"C{color}")
        for place, (_, mark) in zip(places, pairs, strict=True):
            if mark.seeds:
                axis.plot([place] * len(mark.seeds), mark.seeds, marker="_", **_SEED)
    axis.set(xlabel=x)
    plain_axis(axis, "x", everywhere)


def elbo(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """The bound in bits per dimension against steps and against seconds; logs: model -> its scalars' lines.

    Thin: the mean over training images since the line before. Thick: held-out images, on the average weights.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    bounds: list[float] = []
    for axis, x in zip(axes, ("step", "seconds"), strict=True):
        places: list[float] = []
        for color, (name, lines) in enumerate(logs.items()):
            for metric, label, width in (("bpd", None, 0.8), ("validation_bpd", name, 2.2)):
                points = [(line[x], line[metric]) for line in lines if metric in line and x in line]
                if points:
                    axis.plot(*zip(*points, strict=True), color=f"C{color}", linewidth=width, label=label)
                    places += [place for place, _ in points]
                    bounds += [bound for _, bound in points]
            if not any("validation_bpd" in line for line in lines):
                axis.plot([], [], color=f"C{color}", label=f"{name} (no held-out images)")
        axis.set(xlabel={"step": "optimizer steps", "seconds": "seconds of training"}[x])
        plain_axis(axis, "x", places)
    axes[0].set(ylabel="bits per dimension")
    plain_axis(axes[0], "y", bounds)
    legend_beside(figure, axes)
    figure.suptitle("Bound on minus log likelihood: training images thin, held-out images thick", fontsize=10)
    return figure


def quality_speed(models: Mapping[str, Sequence[ResultLine]], *, in_calls: bool = False) -> Figure:
    """One metric against seconds per image, with intervals; lower left is better.

    models: name -> its results, one for each way to sample it; the numbers beside them are network calls.
    in_calls: against network calls, for results whose seconds are of a machine that was busy now and then.
    """

    def cost(line: ResultLine) -> float:
        return line.nfe if in_calls else line.seconds_per_image

    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    lines = [line for of_model in models.values() for line in of_model]
    for color, (name, of_model) in enumerate(models.items()):
        in_turn = sorted(of_model, key=cost)
        places, values = zip(*((cost(line), line.estimate) for line in in_turn), strict=True)
        axis.plot(places, values, "o-", linewidth=0.8, color=f"C{color}", label=name)
        for line in in_turn:
            place, (low, high) = cost(line), line.interval or [line.estimate] * 2
            axis.vlines(place, low, high, color=f"C{color}")
            calls = "" if in_calls else str(line.nfe or "")
            axis.annotate(calls, (place, line.estimate), (4, 3), textcoords="offset points", fontsize=8)
    low = floors(lines)
    if low:
        axis.axhline(low[0], color="gray", linestyle=":", label="floor")
    costs = "network calls per image" if in_calls else "seconds per image; beside each point: network calls"
    axis.set(xlabel=costs, ylabel=lines[0].metric)
    plain_axis(axis, "x", [cost(line) for line in lines])
    plain_axis(axis, "y", [*low[:1], *drawn(lines)])
    legend_beside(figure, [axis])
    return figure
