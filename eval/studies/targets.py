"""How much training it took to reach a target, from the evaluations during training: what pre-training saves.

Between two evaluations the place is interpolated linearly in the logarithm of the images seen, and its
seconds linearly in the images. Where the first evaluation is already past the target, its images are an upper
bound.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.results import PROTOCOL, SAMPLING, ResultLine
from trilemma.eval.studies.models import Model
from trilemma.eval.studies.tables import Marks, Table, markdown
from trilemma.training.options.flags import nearest

ALIKE = (*PROTOCOL, *SAMPLING, "seeds")
"""What must agree along a curve, and between two of them."""

RULE = (
    "Where a model first reaches the target: between two evaluations, linear in the logarithm of images; "
    "`<=` where its first evaluation was already there. Images and seconds are those of the run itself, "
    "without what it was started from."
)


@dataclass(frozen=True)
class Reached:
    """Where a target was reached; `first`: at the first evaluation, so that it is an upper bound."""

    images: float
    seconds: float | None
    first: bool


def parse_target(word: str) -> tuple[str, float]:
    """'fd_classifier=5.0' -> its metric and value."""
    metric, _, value = word.partition("=")
    with suppress(ValueError):
        if metric and math.isfinite(float(value)):
            return metric, float(value)
    raise ValueError(f"--target takes metric=value, such as fd_classifier=5.0; got {word!r}")


def check_target(metric: str, models: Sequence[Model]) -> None:
    """ValueError unless a model was evaluated with this metric while it trained, and it has a better end."""
    curves = {line.metric: line.measure for model in models for line in model.lines if line.images_seen}
    if metric not in curves:
        have = (
            f"they have {', '.join(sorted(curves))}" if curves else "they have no evaluations (--eval_steps)"
        )
        raise ValueError(f"--target {metric}: no model has such a metric; {have}.{nearest(metric, curves)}")
    if measure_row(curves[metric]).better is None:
        raise ValueError(
            f"--target {metric}: neither a higher nor a lower {curves[metric]} is better, so it cannot be a "
            "target"
        )


def curve_of(lines: Sequence[ResultLine], metric: str) -> list[ResultLine]:
    """The evaluations of one run that were made alike, by step, the longest such series; [] if none."""
    series: dict[tuple, dict[int, ResultLine]] = {}
    for line in lines:
        if line.metric == metric and line.images_seen:
            series.setdefault(line.key(ALIKE), {})[line.step] = line  # the newest of a step counts
    longest = max(series.values(), key=len, default={})
    return [longest[step] for step in sorted(longest)]


def reach(curve: Sequence[ResultLine], target: float, seconds: Mapping[int, float]) -> Reached | None:
    """Where a curve first reaches `target`, or None; seconds: step -> seconds of training.

    Which end is better is a fact of the measure; `check_target` refuses those without one.
    """
    sign = -1 if curve and measure_row(curve[0].measure).better == "higher" else 1
    there = next((i for i, line in enumerate(curve) if sign * line.value <= sign * target), None)
    if there is None:
        return None
    after, end = curve[there], curve[there].images_seen
    if there == 0:
        return Reached(end, seconds.get(after.step), first=True)
    before, start = curve[there - 1], curve[there - 1].images_seen
    share = (before.value - target) / (before.value - after.value)
    images = math.exp((1 - share) * math.log(start) + share * math.log(end))
    logged = [seconds.get(line.step) for line in (before, after)]
    passed = (
        None if None in logged else logged[0] + (logged[1] - logged[0]) * (images - start) / (end - start)
    )
    return Reached(images, passed, first=False)


def section(models: Sequence[Model], metric: str, target: float, marks: Marks) -> str:
    """The table of one target, in Markdown."""
    text = markdown(*table(models, metric, target, marks))
    return f"## {title(metric, target)}\n\n{text}\n{RULE}"


def title(metric: str, target: float) -> str:
    """The title of the table of one target."""
    return f"Images seen to reach {metric} = {target:g}"


def table(models: Sequence[Model], metric: str, target: float, marks: Marks) -> Table:
    """Images and seconds of each model to one target, and what they save against the first."""
    rows, first, usual = [], None, None
    for place, model in enumerate(models):
        curve = curve_of(model.lines, metric)
        seconds = {int(li["step"]): li["seconds"] for li in model.scalars if metric in li and "seconds" in li}
        reached = reach(curve, target, seconds)
        key = curve[0].key(ALIKE) if curve else None
        if place == 0:
            first, usual = reached, key
        other = [n for n, a, b in zip(ALIKE, key or (), usual or (), strict=False) if a != b]
        remark = f"not comparable: other {', '.join(other)} than the first model's curve" if other else ""
        rows.append([model.name + marks.mark(remark), *_cells(curve, reached, None if other else first)])
    return ["model", "images", "training s", "images saved", "seconds saved"], rows


def _cells(curve: Sequence[ResultLine], reached: Reached | None, first: Reached | None) -> list[str]:
    if not curve:
        return ["not evaluated while it trained", "", "", ""]
    if reached is None:
        last = curve[-1]
        return [f"not within {last.images_seen:,} images, where it was {number(last.value)}", "", "", ""]
    at_most = "<= " if reached.first else ""
    seconds = "" if reached.seconds is None else f"{at_most}{reached.seconds:.3g}"
    cells = [f"{at_most}{reached.images:,.0f}", seconds]
    if first is None or first is reached:
        return [*cells, "", ""]
    pairs = ((first.images, reached.images), (first.seconds, reached.seconds))
    return cells + ["" if None in pair else _saved(*pair) for pair in pairs]


def _saved(before: float, now: float) -> str:
    return f"{before - now:,.0f} ({1 - now / before:.0%})"
