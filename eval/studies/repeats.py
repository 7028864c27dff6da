"""Trainings that were repeated with other seeds, and which of two is better.

Training again with another seed can move a distance more than sampling again does. The spread over repeated
trainings holds both: with estimates e_1 .. e_S of S trainings, their mean has the standard error
sd(e) / sqrt(S), and the interval of Student's t with S - 1 degrees of freedom. Two trainings are compared by
Welch's interval of the difference of their means (Welch 1947, Biometrika 34).
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from trilemma.eval.scoring.naming import number
from trilemma.eval.studies.models import Model
from trilemma.eval.studies.tables import Table, markdown
from trilemma.training import families
from trilemma.training.options.flags import flags_of

RULE = (
    "Intervals are 95% and cover other training seeds and other samples. A pair is *inconclusive* if the "
    "interval of its difference contains 0; of many equal pairs, about one in twenty gets another verdict by "
    "chance. *One training only*: train it again with another seed to compare it."
)
ONCE = (
    "No model here was trained again with another seed, so the verdict on each pair is *one training "
    "only*. The 95% intervals cover other samples of the same weights; another training seed can move a "
    "number further. To compare recipes, train each of them again with another `--seed` and name all folders."
)
TITLE = "Which training is better?"
GRID = 20_000
"""Points of the integral in `t_quantile`: its relative error is below 1e-5 up to 200 degrees of freedom."""


class Row(NamedTuple):
    """A training, a way to sample its models, and what a metric's estimates of them are, one for each seed.

    better: which end of the metric is.
    """

    training: str
    name: str
    metric: str
    estimates: tuple[float, ...]
    better: str | None


@dataclass(frozen=True)
class Training:
    """The models that the same training gave with different seeds."""

    name: str
    models: tuple[Model, ...]


def trainings(models: Sequence[Model]) -> list[Training]:
    """The models by how they were trained, apart from the seed, in the order of their first ones.

    A second model of the same seed, such as a copy or `best/`, is no repetition: it stands alone.
    """
    groups: dict[str, list[Model]] = {}
    for model in models:
        key = recipe(model)
        known = {one.config.get("seed") for one in groups.get(key, ())}
        key = f"only {model.name}" if model.config.get("seed") in known else key
        groups.setdefault(key, []).append(model)
    return [
        Training(same[0].name + (f" and {len(same) - 1} more" if len(same) > 1 else ""), tuple(same))
        for same in groups.values()
    ]


def recipe(model: Model) -> str:
    """All on which the weights depend, steps included, except the seed; without config.yaml, only itself."""
    family = model.run.get("family")
    if not model.config or family not in families.names():
        return f"only {model.name}"
    flags = flags_of(families.family(family).config)
    values = {
        name: value
        for name, value in model.config.items()
        if name != "seed" and not (name in flags and flags[name].meta["free"])
    }
    return json.dumps([family, model.run.get("steps"), values], sort_keys=True)


def t_quantile(freedom: float) -> float:
    """Student's t that is exceeded, on either side, with a probability of 5%; freedom: 1 or more.

    With t = sqrt(freedom) tan(a) its density is proportional to cos(a)^(freedom - 1), a in -pi/2..pi/2.
    """
    edges = np.linspace(0, math.pi / 2, GRID + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    inside = np.concatenate([[0.0], np.cumsum(np.cos(middles) ** (freedom - 1))])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, inside / inside[-1], edges)))


def mean_interval(estimates: Sequence[float]) -> tuple[float, float, float]:
    """Mean, standard error and half the 95% interval of the estimates of two repeated trainings or more."""
    error = statistics.stdev(estimates) / math.sqrt(len(estimates))
    return statistics.fmean(estimates), error, t_quantile(len(estimates) - 1) * error


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean of a less mean of b, and half of its 95% interval, from two estimates or more of each."""
    parts = [statistics.variance(each) / len(each) for each in (a, b)]
    difference = statistics.fmean(a) - statistics.fmean(b)
    if not sum(parts):
        return difference, 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(each) - 1) for part, each in zip(parts, (a, b), strict=True)
    )
    return difference, t_quantile(freedom) * math.sqrt(sum(parts))


def verdict(a: Sequence[float], b: Sequence[float], better: str) -> tuple[str, str]:
    """Difference with its interval, and better, worse, inconclusive, or one training only; of a against b."""
    if min(len(a), len(b)) < 2:
        return number(statistics.fmean(a) - statistics.fmean(b)), "one training only"
    difference, half = welch(a, b)
    said = f"{number(difference)} ({number(difference - half)} .. {number(difference + half)})"
    if abs(difference) <= half:
        return said, "inconclusive"
    return said, "better" if (difference < 0) == (better == "lower") else "worse"


def section(rows: Sequence[Row]) -> str:
    """Means over repeated trainings and the verdicts on pairs, '' where there is neither."""
    parts = [markdown(header, body) for header, body in tables(rows)]
    said = remark(rows)
    return "\n".join([f"## {TITLE}\n", *parts, said]) if said else ""


def tables(rows: Sequence[Row]) -> list[Table]:
    """Header and rows of the means, if a training was repeated, and of the pairs that are listed."""
    means = [[row.name, row.metric, *_mean_cells(row.estimates)] for row in rows] if repeated(rows) else []
    pairs = [
        [one.metric, f"{one.name} against {other.name}", *verdict(one.estimates, other.estimates, one.better)]
        for one, other in _pairs(rows)[0]
    ]
    both = (
        (["training", "metric", "seeds", "mean", "standard error"], means),
        (["metric", "pair", "difference", "verdict"], pairs),
    )
    return [(header, body) for header, body in both if body]


def remark(rows: Sequence[Row]) -> str:
    """What the verdicts mean, and that on the pairs that are not listed; '' where there is nothing to say."""
    listed, others = _pairs(rows)
    first = ["The better mean of each pair stands first."] if listed else []
    if not repeated(rows):
        return " ".join([ONCE, *first]) if listed or others else ""
    rest = ["Pairs that are not listed: *one training only* of both."] if others else []
    return " ".join([RULE, *first, *rest])


def repeated(rows: Sequence[Row]) -> bool:
    """Whether a training was repeated."""
    return any(len(row.estimates) > 1 for row in rows)


def _pairs(rows: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[tuple[Row, Row]]]:
    """The pairs of trainings that are listed, and the others; in each pair the better mean stands first.

    Two trainings without a repetition get no row, unless they are a metric's only pair: for ten models there
    would be 45 rows of every metric that all say the same.
    """
    listed, others = [], []
    for metric in dict.fromkeys(row.metric for row in rows if row.better):
        same = [row for row in rows if row.metric == metric]
        same.sort(key=lambda row: statistics.fmean(row.estimates), reverse=same[0].better == "higher")
        pairs = [pair for pair in combinations(same, 2) if pair[0].training != pair[1].training]
        for pair in pairs:
            (listed if len(pairs) == 1 or repeated(pair) else others).append(pair)
    return listed, others


def _mean_cells(estimates: Sequence[float]) -> list[str]:
    if len(estimates) < 2:
        return ["1", number(estimates[0]), ""]
    mean, error, half = mean_interval(estimates)
    interval = f"{number(mean - half)} .. {number(mean + half)}"
    return [str(len(estimates)), f"{number(mean)} ({interval})", number(error)]
