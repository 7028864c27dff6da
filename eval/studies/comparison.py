"""The body of `eval/compare.py`: reads the models, writes Markdown, charts and the page `report.html`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trilemma.eval.report.details import Command
from trilemma.eval.report.page import html_page
from trilemma.eval.studies import repeats, targets
from trilemma.eval.studies.model_table import figures, repeated, standard_protocols, trilemma
from trilemma.eval.studies.models import Model, read_models
from trilemma.eval.studies.tables import Marks
from trilemma.pipelines.files.writing import write_text, written

if TYPE_CHECKING:
    from trilemma.eval.report.pictures import Drawn


def compare(config, command: Command) -> None:
    """Write and print what the flags of `eval/compare.py` ask for.

    command: (family, flags, hardware) -> the command line that trains a model again.
    """
    if not config.models:
        raise ValueError("--models must name output folders")
    goals = [targets.parse_target(word) for word in config.target or ()]
    models = read_models(config.models)
    for metric, _ in goals:
        targets.check_target(metric, models)
    drawn = _draw(models, config.draw) if config.draw else {}
    folder, marks = Path(config.output_dir), Marks()
    standards = standard_protocols(models)
    parts = ["# Comparison", trilemma(models, standards, marks)]
    parts += [text] if (text := repeats.section(repeated(models, standards))) else []
    parts += [targets.section(models, metric, value, marks) for metric, value in goals]
    parts += (
        ["\n".join(f"[{i}] {remark}" for i, remark in enumerate(marks.remarks, 1))] if marks.remarks else []
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(models, standards).items():
        with written(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=150)
        parts.append(f"![{name}]({name}.png)")
    text = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    page = folder / "comparison.md"
    write_text(page, text)
    report = folder / "report.html"
    write_text(report, html_page(models, goals, drawn, command))
    print(f"{text}\nin {page} and {report}")


def _draw(models: Sequence[Model], count: int) -> dict[str, "Drawn"]:
    from trilemma.eval.report.drawing import draw  # nothing else here needs torch

    return draw(models, count)
