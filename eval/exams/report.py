"""The verdicts of an exam as a page, a figure and a line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from trilemma.eval.exams.harms import HARMS, Harm
from trilemma.eval.exams.sets import REPEATS
from trilemma.eval.exams.verdicts import T, Verdict, judge, move, worse
from trilemma.eval.metrics.table import METRICS, measure_row
from trilemma.eval.plots.exam import moves as draw_moves
from trilemma.eval.studies.tables import markdown

PERFECT = "perfect"


def case_of(harm: str, level: float | None = None) -> str:
    """What a case is called in exam.json."""
    return harm if level is None else f"{harm} {HARMS[harm].level(level)}"


@dataclass
class Exam:
    """An exam: its settings, and the estimates of each case, by group and measure, one for each set."""

    settings: dict[str, Any]
    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    seconds: float = 0.0

    def measures(self, group: str) -> list[str]:
        """The measures of a group that promise something; not the parts of a mean, such as single classes."""
        named = {name for row in METRICS.values() for name in row.measures}
        return [name for name in self.values[PERFECT][group] if name in named and measure_row(name).promised]

    def levels(self, group: str, measure: str, harm: str) -> dict[float, list[float]]:
        """The values at each level of a harm, if the measure could be measured there."""
        of = {level: self.values.get(case_of(harm, level), {}) for level in HARMS[harm].levels}
        values = {level: one.get(group, {}).get(measure) for level, one in of.items()}
        return {level: one for level, one in values.items() if one}

    def verdicts(self, group: str) -> dict[str, dict[str, Verdict]]:
        """What each measure of a group does under each harm."""
        return {
            measure: {name: self._verdict(group, measure, name, harm) for name, harm in HARMS.items()}
            for measure in self.measures(group)
        }

    def _verdict(self, group: str, measure: str, name: str, harm: Harm) -> Verdict:
        levels = self.levels(group, measure, name)
        if not levels:
            return Verdict("", None)
        harm = harm._replace(levels=tuple(levels))
        perfect = self.values[PERFECT][group][measure]
        values = [perfect, *levels.values()]
        return judge(measure_row(measure), harm, values, self.settings["num_samples"])

    def as_json(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """What exam.json holds."""
        verdicts = {
            group: {
                measure: {name: one._asdict() for name, one in row.items() if one.passed is not None}
                for measure, row in self.verdicts(group).items()
            }
            for group in self.values[PERFECT]
        }
        return {
            "settings": self.settings,
            "seconds": self.seconds,
            "hardware": machine,
            "verdicts": verdicts,
            "values": self.values,
        }

    def summary(self) -> str:
        """A line for each group: which measures pass every check, and how many checks the others fail."""
        lines = []
        for group in self.values[PERFECT]:
            failed = {measure: len(failures(row)) for measure, row in self.verdicts(group).items()}
            ordered = sorted(failed, key=failed.get)
            lines.append(f"{group}: failed checks: {', '.join(f'{one} {failed[one]}' for one in ordered)}")
        return "\n".join(lines)


def failures(row: Mapping[str, Verdict]) -> list[str]:
    """The harms under which a measure fails."""
    return [name for name, verdict in row.items() if verdict.passed is False]


def page(exam: Exam) -> str:
    """exam.md: what was done, the rules, and a table for each group."""
    settings = exam.settings
    head = (
        f"# Exam of the measures: {settings['reference']}\n\n"
        f"{REPEATS} sets of {settings['num_samples']:,} real images (split {settings['split']}, seed "
        f"{settings['seed']}) stand for the samples of a perfect model. They are compared with "
        f"{settings['training_images']:,} other images as training images; "
        f"{settings['held_out_images']:,} more are held out. Scoring took {exam.seconds:.0f} s.\n\n{RULES}\n"
    )
    harms = [
        [name, ", ".join(map(harm.level, harm.levels)), harm.what, harm.hurts or "nothing"]
        for name, harm in HARMS.items()
    ]
    parts = [head, markdown(["harm", "levels", "what is done", "hurts"], harms)]
    for group in exam.values[PERFECT]:
        parts.append(f"\n## {group}\n\n{table(exam, group)}")
    return "\n".join(parts)


RULES = f"""Two values differ if their means over the sets differ by more than {T:.3f} sqrt(s^2 + s'^2), with
s and s' the standard deviations over the sets: what one evaluation of each would show (Student's t, 97.5%,
{REPEATS - 1} degrees of freedom). The difference must also be more than the larger value / n, since one
sample of n can move a mean by that much.

- A harm that a measure is meant to see must make it worse, and a higher level must not make it better again.
  The table shows the first level that is seen; **not seen**, **rewarded** and **turns back** are failures.
- A harm that it is not meant to see must not make it better: **rewarded from** is a failure, a dash is none.
- A harmless change must not move it: **moves** is a failure.
- Cells that are empty or in parentheses have no rule.
"""


def table(exam: Exam, group: str) -> str:
    """The verdicts of a group in Markdown, failures in bold."""
    rows = []
    for measure, row in exam.verdicts(group).items():
        asked = [verdict for verdict in row.values() if verdict.passed is not None]
        passed = sum(verdict.passed for verdict in asked)
        rows.append([f"`{measure}`", *map(_cell, row.values()), f"{passed} of {len(asked)}"])
    return markdown(["measure", *HARMS, "passed"], rows)


def _cell(verdict: Verdict) -> str:
    if verdict.passed is None:
        return f"({verdict.said})" if verdict.said else ""
    if not verdict.passed:
        return f"**{verdict.said}**"
    return "-" if verdict.said == "not rewarded" else verdict.said


def figure(exam: Exam) -> Figure:
    """How far each harm moves each measure: a panel for each group, with frames around failures."""
    columns = [(name, harm.level(level), level) for name, harm in HARMS.items() for level in harm.levels]
    panels = {}
    for group in exam.values[PERFECT]:
        perfect = exam.values[PERFECT][group]
        panels[group] = {
            measure: [
                _signed(exam, measure, perfect[measure], exam.levels(group, measure, name).get(level))
                for name, _, level in columns
            ]
            for measure in exam.measures(group)
        }
    failed = {
        group: {measure: failures(row) for measure, row in exam.verdicts(group).items()} for group in panels
    }
    title = f"Exam of the measures on {exam.settings['reference']}, {exam.settings['num_samples']:,} samples"
    return draw_moves([column[:2] for column in columns], panels, failed, title)


def _signed(exam: Exam, measure: str, perfect: list[float], values: list[float] | None) -> float | None:
    """The move to the worse end; if neither end is worse, the size of the move."""
    if values is None:
        return None
    sign = worse(measure_row(measure))
    moved = move(perfect, values, exam.settings["num_samples"])
    return sign * moved if sign else abs(moved)
