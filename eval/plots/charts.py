"""Charts of results: of sweeps and of several models; no torch here.

Every chart returns a `Figure`; the caller saves it. Intervals are drawn as lines beside their values, since
an interval need not contain its value: that of a Frechet distance is debiased (docs/metrics.md).
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trilemma.eval.plots.axes import beside, drawn, floors, legend_beside, plain_axis
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.studies.questions import Point


def sweep(
    points: Sequence[tuple[Point, Mapping[str, ResultLine]]],
    columns: Sequence[str],
    x: str | None,
    title: str,
) -> Figure:
    """The results of the points of a sweep, a panel for each column, with intervals and floors.

    points: each with its lines of results by column. x: a flag or an entry of the lines that is the
    horizontal axis, with a curve for each setting of all flags but the last; None: a row for each point.
    """
    height = 3.5 if x else 0.8 + 0.35 * len(points)
    figure = Figure(figsize=(2.7 + 3.2 * len(columns), max(height, 2.2)), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        measured = [(point, lines[column]) for point, lines in points if column in lines]
        low = floors(line for _, line in measured)
        (_curves(axis, measured, x) if x else _rows(axis, measured))
        for floor in low[:1]:
            (axis.axhline if x else axis.axvline)(floor, color="gray", linestyle=":", label="floor")
        (axis.set_ylabel if x else axis.set_xlabel)(measured[0][1].metric)
        plain_axis(axis, "y" if x else "x", [*low[:1], *drawn(line for _, line in measured)])
    legend_beside(figure, axes)
    figure.suptitle(title, fontsize=10)
    return figure


def _rows(axis: Axes, measured: Sequence[tuple[Point, ResultLine]]) -> None:
    """A row for each point, the first at the top."""
    for row, (_, line) in enumerate(measured):
        axis.plot(line.estimate, row, "o", color="C0")
        axis.hlines(row, *(line.interval or [line.estimate] * 2), color="C0")
    names = [point.own_name or " ".join(point.flags.values()) for point, _ in measured]
    axis.set_yticks(range(len(measured)), names)
    axis.invert_yaxis()


def _curves(axis: Axes, measured: Sequence[tuple[Point, ResultLine]], x: str) -> None:
    series: dict[str, list[tuple[float, ResultLine]]] = {}
    for point, line in measured:
        name = " ".join(list(point.flags.values())[:-1])
        place = point.flags[x] if x in point.flags else line.to_json()[x]
        series.setdefault(name, []).append((float(place), line))
    everywhere = [place for pairs in series.values() for place, _ in pairs]
    for color, (name, pairs) in enumerate(series.items()):
        pairs.sort(key=lambda pair: pair[0])
        places = beside([place for place, _ in pairs], color, len(series), everywhere)
        axis.plot(places, [line.estimate for _, line in pairs], "o-", label=name or None, color=f"C{color}")
        intervals = [line.interval or [line.estimate] * 2 for _, line in pairs]
        axis.vlines(places, *zip(*intervals, strict=True), color=f"C{color}")
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


def quality_speed(models: Mapping[str, Sequence[ResultLine]]) -> Figure:
    """One metric against seconds per image, with intervals; lower left is better.

    models: name -> its results, one for each way to sample it; the numbers beside them are network calls.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    lines = [line for of_model in models.values() for line in of_model]
    for color, (name, of_model) in enumerate(models.items()):
        in_turn = sorted(of_model, key=lambda line: line.seconds_per_image)
        places, values = zip(*((line.seconds_per_image, line.estimate) for line in in_turn), strict=True)
        axis.plot(places, values, "o-", linewidth=0.8, color=f"C{color}", label=name)
        for line in in_turn:
            place, (low, high) = line.seconds_per_image, line.interval or [line.estimate] * 2
            axis.vlines(place, low, high, color=f"C{color}")
            calls = str(line.nfe or "")
            axis.annotate(calls, (place, line.estimate), (4, 3), textcoords="offset points", fontsize=8)
    low = floors(lines)
    if low:
        axis.axhline(low[0], color="gray", linestyle=":", label="floor")
    axis.set(xlabel="seconds per image; beside each point: network calls", ylabel=lines[0].metric)
    plain_axis(axis, "x", [line.seconds_per_image for line in lines])
    plain_axis(axis, "y", [*low[:1], *drawn(lines)])
    legend_beside(figure, [axis])
    return figure
