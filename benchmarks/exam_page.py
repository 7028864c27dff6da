"""The table of the exams in docs/metrics.md: `python benchmarks/exam_page.py outputs/exam-digits ...`.

Each folder is one of `eval/exam.py`. Its exam.md is copied to results/ under the name of the folder. The
table says where each measure fails; it goes between the lines `<!-- exams -->` and `<!-- end of exams -->` of
the page. Cells that the folders do not have stay as they are: after a change of one measure, an exam of it
alone (`--metrics`) is enough.
"""

import sys
from pathlib import Path
from typing import Any

from kept_table import Part

from trilemma.eval.studies.tables import markdown
from trilemma.pipelines.files.reading import read_json, read_text
from trilemma.pipelines.files.writing import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PART = Part(ROOT / "docs" / "metrics.md", "<!-- exams -->\n", "<!-- end of exams -->\n")


def cell(verdicts: dict[str, dict[str, Any]] | None) -> str:
    """Where a measure fails, and how; 'passes 12' if nowhere."""
    if not verdicts:
        return ""
    failed = [f"{harm}: {one['said']}" for harm, one in verdicts.items() if not one["passed"]]
    return "; ".join(failed) or f"passes {len(verdicts)}"


def columns(kept: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """An exam's groups with features, each with the measures of the judge."""
    verdicts = dict(kept["verdicts"])
    judged = verdicts.pop("judge", {})
    data = Path(kept["settings"]["reference"]).name
    return [(f"{data}, {group}", of | judged) for group, of in verdicts.items()]


def cells_of(table: str) -> dict[str, dict[str, str]]:
    """Column -> measure -> cell of a table in Markdown; nothing of a text that has none."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    if not lines:
        return {}
    names = lines[0][1:]
    cells: dict[str, dict[str, str]] = {name: {} for name in names}
    for measure, *row in lines[2:]:
        for name, value in zip(names, row, strict=False):
            cells[name][measure.strip("`")] = value.strip()
    return cells


def main(folders: list[str]) -> None:
    """Copy the pages, and write the table."""
    every = cells_of(PART.read())
    for folder in map(Path, folders):
        for name, verdicts in columns(read_json(folder / "exam.json")):
            found = {measure: cell(one) for measure, one in verdicts.items()}
            every[name] = every.get(name, {}) | found
        write_text(RESULTS / f"{folder.name}.md", read_text(folder / "exam.md"))
    measures = list(dict.fromkeys(measure for of in every.values() for measure in of))
    rows = [[f"`{measure}`", *(of.get(measure, "") for of in every.values())] for measure in measures]
    PART.write(f"\n{markdown(['measure', *every], rows)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
