"""The figure and the table of README.md: `python benchmarks/zoo_page.py`.

Both are made from the results of the MNIST models in model_cards/zoo, by the code of `eval/compare.py`; only
numbers that were measured alike are shown. The table goes between the lines `<!-- zoo -->` and
`<!-- end of zoo -->` of the page.
"""

from collections.abc import Sequence
from pathlib import Path

from kept_table import Part
from matplotlib.figure import Figure

from trilemma.eval.plots.charts import quality_speed
from trilemma.eval.scoring.results import PROTOCOL, ResultLine
from trilemma.eval.studies.model_table import TableRow, standard_protocols, table_rows
from trilemma.eval.studies.models import Model, read_model, read_models
from trilemma.eval.studies.tables import markdown
from trilemma.training.output_folder import OutputFolder

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "model_cards" / "zoo"
CHART = ROOT / "docs" / "images" / "zoo-mnist.png"
PART = Part(ROOT / "README.md", "<!-- zoo -->\n", "<!-- end of zoo -->\n")
DISTANCE, VARIETY = "fd_classifier", "recall_classifier"


def images(model: Model) -> str:
    """Images that a model was trained on; and before it, the model that it was tuned from."""
    seen, teacher = f"{model.run['images_seen']:,}", model.config.get("init_from")
    if not teacher:
        return seen
    return f"{seen}, after {read_model(OutputFolder(ROOT / teacher), teacher).run['images_seen']:,}"


def cells(row: TableRow, distance: ResultLine) -> list[str]:
    """A row of the table."""
    name, variety = row.model.name, row.picked[VARIETY]
    low, high = distance.interval
    return [
        f"[{name}](model_cards/zoo/{name}/README.md)", row.sampling, str(distance.nfe),
        f"{distance.estimate:.2f} [{low:.2f}, {high:.2f}]",
        f"{variety.estimate:.2f}" if variety else "",
        images(row.model),
    ]  # fmt: skip


def measured_alike(models: Sequence[Model]) -> list[tuple[TableRow, ResultLine]]:
    """Each row that has a distance, measured as most of them were; the best first."""
    standards = standard_protocols(models)
    rows = [(row, row.picked[DISTANCE]) for row in table_rows(models, standards)]
    alike = [(row, line) for row, line in rows if line and line.key(PROTOCOL) == standards[DISTANCE]]
    return sorted(alike, key=lambda pair: pair[1].estimate)


def table(models: Sequence[Model]) -> str:
    """The table in Markdown, and how it was measured."""
    alike = measured_alike(models)
    header = ["model", "sampling", "calls", f"`{DISTANCE}`", "recall", "trained on"]
    line = alike[0][1]
    said = (
        f"`{DISTANCE}`: Frechet distance of {line.n} samples to the {line.reference_n:,} training images; "
        "lower is better, and other real images have about 0. In brackets: its 95% interval for other "
        "samples of the same model. *recall*: variety, higher is better. A call is one run of the network, "
        "of the VAE of its decoder alone. *trained on*: images seen, 'after' those of the model that it was "
        "tuned from. One training each."
    )
    return f"{markdown(header, [cells(row, line) for row, line in alike])}\n{said}\n"


def zoo() -> list[Model]:
    """The models of MNIST."""
    return read_models(sorted(map(str, ZOO.glob("*mnist"))))


def chart(models: Sequence[Model]) -> Figure:
    """The distance against network calls; seconds were measured on a machine that was busy now and then."""
    lines: dict[str, list[ResultLine]] = {}
    for row, line in measured_alike(models):
        lines.setdefault(row.model.name, []).append(line)
    return quality_speed(lines, in_calls=True)


def main() -> None:
    """Write the figure and the table."""
    models = zoo()
    PART.write(f"\n{table(models)}")
    chart(models).savefig(CHART, dpi=150)


if __name__ == "__main__":
    main()
