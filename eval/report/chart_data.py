"""The numbers that the page's charts draw (`assets/charts.js`), a part for each data set."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.plots.axes import floors
from trilemma.eval.report.groups import Group
from trilemma.eval.report.words import figure, in_units, interval
from trilemma.eval.scoring.results import PROTOCOL, ResultLine
from trilemma.eval.studies.model_table import TableRow
from trilemma.eval.studies.models import Model
from trilemma.eval.studies.targets import curve_of

MOST_POINTS = 150
"""Most points of a curve from the log of a training; of more points, evenly spaced ones are kept."""


def chart_data(groups: Sequence[Group], families: Mapping[str, str], places: Mapping[str, str]) -> list[Any]:
    """The data for `charts.js`. families: of the models; places: the ids of their parts of the page."""
    return [
        {
            "data": group.data,
            "metrics": [_metric(group, metric) for metric in group.metrics],
            "rows": [
                _row(group, row, families[row.model.name], places[row.model.name]) for row in group.rows
            ],
            "curves": _alike(
                {"name": model.name, "family": families[model.name], **curve}
                for model in group.models
                for curve in _curves(model)
            ),
        }
        for group in groups
    ]


def _metric(group: Group, metric: str) -> dict[str, Any]:
    lines = [line for row in group.rows if (line := row.picked[metric]) and not group.remark(line)]
    low = floors(lines)
    return {
        "name": metric,
        "axis": group.axis(metric),
        "better": measure_row(group.line(metric).measure).better,
        "floor": low[0] if low and len(low) == len(lines) else None,
    }


def _row(group: Group, row: TableRow, family: str, place: str) -> dict[str, Any]:
    drawn, run = row.drawn, row.model.run
    values = {metric: _value(line, group.remark(line)) for metric, line in row.picked.items() if line}
    return {
        "name": row.model.name,
        "family": family,
        "sampling": row.sampling,
        "place": place,
        "values": values,
        "x": {
            "calls": drawn and drawn.nfe,
            "time": drawn and drawn.seconds_per_image,
            "training": run.get("seconds"),
            "images": run.get("images_seen"),
            "parameters": run.get("parameters"),
        },
    }


def _value(line: ResultLine, remark: str) -> dict[str, Any]:
    return {
        "value": line.estimate,
        "interval": line.interval,
        "n": line.n,
        "remark": remark,
        "text": f"{line.metric} {figure(line.estimate)}"
        + (f", 95% interval {interval(line.interval)}" if line.interval else "")
        + f", n {line.n:,}",
    }


def _alike(curves: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves, each with whether it was measured as most of its metric were."""
    curves = list(curves)
    for curve in curves:
        votes = Counter(other["protocol"] for other in curves if other["metric"] == curve["metric"])
        curve["alike"] = curve["protocol"] == votes.most_common(1)[0][0]
    for curve in curves:
        del curve["protocol"]
    return curves


def _curves(model: Model) -> list[dict[str, Any]]:
    """Distances and bounds of one training against images and seconds."""
    seen, steps = model.run.get("images_seen"), model.run.get("steps")
    seconds = {int(line["step"]): line["seconds"] for line in model.scalars if "seconds" in line}
    if steps is not None and model.run.get("seconds") is not None:
        seconds.setdefault(steps, model.run["seconds"])
    curves = []
    rows = {line.metric: measure_row(line.measure) for line in model.lines}
    names = [metric for metric, row in rows.items() if row.compared and not row.of_split]
    for metric in names:
        curve = curve_of(model.lines, metric)
        points = [
            {
                "images": line.images_seen,
                "seconds": seconds.get(line.step),
                "value": line.estimate,
                "interval": line.interval,
                "text": _reached(line.images_seen, seconds.get(line.step)) + f", n {line.n:,}",
            }
            for line in curve
        ]
        if points:
            curves.append({"metric": metric, "points": points, "protocol": curve[-1].key(PROTOCOL)})
    if seen and steps:
        curves += _logged(model, seen / steps)
    return curves


def _logged(model: Model, images_per_step: float) -> list[dict[str, Any]]:
    """The bound in the log of a training: of held-out images if there were any, else of training images."""
    for entry, name in (("validation_bpd", "held-out images"), ("bpd", "training images")):
        lines = [line for line in model.scalars if math.isfinite(line.get(entry, math.nan))]
        if not lines:
            continue
        places = sorted({round(k * (len(lines) - 1) / (MOST_POINTS - 1)) for k in range(MOST_POINTS)})
        points = [
            {
                "images": line["step"] * images_per_step,
                "seconds": line.get("seconds"),
                "value": line[entry],
                "interval": None,
                "text": f"{_reached(line['step'] * images_per_step, line.get('seconds'))}, {name}",
            }
            for line in (lines[place] for place in places)
        ]
        return [{"metric": "bits per dimension", "points": points, "protocol": None}]
    return []


def _reached(images: float, seconds: float | None) -> str:
    after = "" if seconds is None else f", {in_units(seconds)}"
    return f"after {images:,.0f} images{after}"
