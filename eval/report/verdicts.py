"""What the page says of each row of its table, against the best value of the same data set.

Another seed of the training can move a number further than other samples do. So which of two trainings is
better is only said if both were repeated (`studies/repeats.py`). Of other rows, the page says how their
samples score: this is about these weights, sampled in this way.
"""

from typing import NamedTuple

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.report.groups import Group
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.studies import repeats
from trilemma.eval.studies.model_table import TableRow, lines_of

RANKS = {"better": 0, "inconclusive": 1, "worse": 2}
"""Verdicts on repeated trainings -> ranks."""


class Verdict(NamedTuple):
    """rank: to sort by. samples: how they score, '' if the verdict is on repeated trainings or on none."""

    rank: int
    said: str
    samples: str = ""


def verdict(group: Group, row: TableRow) -> Verdict:
    """The verdict on a row against the best of its data set, by the main metric."""
    line = row.picked.get(group.main) if group.main else None
    if line is None:
        return Verdict(4, "not measured")
    if group.remark(line):
        return Verdict(3, "not comparable")
    alike = [one for one in group.rows if (it := one.picked[group.main]) and not group.remark(it)]
    if len(alike) == 1:
        return Verdict(0, "only one")
    lower = measure_row(line.measure).better == "lower"
    best = (min if lower else max)(alike, key=lambda one: one.picked[group.main].estimate)
    if row is best:
        return Verdict(0, "best value")
    if _training(group, row) is _training(group, best):
        return Verdict(*_samples("same training", line, best.picked[group.main], lower))
    _, said = repeats.verdict(_estimates(group, row), _estimates(group, best), "lower" if lower else "higher")
    if said in RANKS:
        return Verdict(RANKS[said], said)
    return Verdict(*_samples(said, line, best.picked[group.main], lower))


def _samples(said: str, line: ResultLine, best: ResultLine, lower: bool) -> tuple[int, str, str]:
    """Two values differ with over 95% confidence if their 95% intervals do not overlap."""
    if not (line.interval and best.interval):
        return 2, said, "samples: behind, no interval"
    apart = line.interval[0] > best.interval[1] if lower else line.interval[1] < best.interval[0]
    return (2, said, "samples score worse") if apart else (1, said, "samples: no clear difference")


def _training(group: Group, row: TableRow) -> repeats.Training:
    return group.trainings[row.model.name]


def _estimates(group: Group, row: TableRow) -> list[float]:
    """Those of the row's training, one for each seed, sampled in the row's way."""
    lines = lines_of(_training(group, row), group.main, row.way, group.standards[group.main])
    return [line.estimate for line in lines]
