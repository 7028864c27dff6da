"""Markdown tables of results: cells, the sentence on how they were measured, numbered remarks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.results import ResultLine

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""

LARGE = 1000
"""From here on a number is rounded to a whole one."""


def cell(value: Any) -> str:
    """A number or text as tables show it, '' for None."""
    if value is None:
        return ""
    if isinstance(value, float) and abs(value) < LARGE:
        return number(value, 3)
    return value if isinstance(value, str) else f"{value:,.0f}"


def with_interval(line: ResultLine) -> str:
    """The estimate, and its interval if it has one."""
    interval = " .. ".join(map(number, line.interval or ()))
    return number(line.estimate) + (f" ({interval})" if interval else "")


def protocol(lines: Mapping[str, ResultLine]) -> str:
    """In a sentence, how one model's lines were measured; lines: column -> line."""
    line = next((line for line in lines.values() if line.feature_extractor), next(iter(lines.values())))
    against = f"{line.reference_n} images of {line.reference} ({line.reference_split})"
    floor = "" if line.floor is None else f"; the floor of {line.metric} is {number(line.floor)}"
    return f"{line.n} samples against {against}, {line.feature_extractor or 'no'} features{floor}."


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows]]
    return "".join(lines)


@dataclass
class Marks:
    """Numbered remarks under a table."""

    remarks: list[str] = field(default_factory=list)

    def mark(self, remark: str) -> str:
        """' [k]' for a remark, '' for none."""
        if not remark:
            return ""
        if remark not in self.remarks:
            self.remarks.append(remark)
        return f" [{self.remarks.index(remark) + 1}]"
