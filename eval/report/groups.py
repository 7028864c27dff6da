"""The models by their data sets: only models of the same data share a chart and are compared with one best.

For each data set the protocol of most models is the standard (`studies/model_table.py`). Numbers that differ
from it are named and explained, and are not in the charts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.scoring.results import PROTOCOL, ResultLine
from trilemma.eval.studies.model_table import (
    TableRow,
    compared,
    differences,
    standard_protocols,
    table_rows,
)
from trilemma.eval.studies.models import Model
from trilemma.eval.studies.repeats import Training, trainings
from trilemma.training.options.flags import public_name

EXPLAINED = {
    "n": "The number of samples, or of images for bits per dimension. With fewer samples a plain distance "
    "is larger, and coverage and recall change too.",
    "extractor_sha256": "The network whose features are compared. Another one gives other numbers for the "
    "same images.",
    "resize": "How images are resized for the features.",
    "quantisation": "Whether images were rounded to 8 bits.",
    "reference": "The data that samples are compared with.",
    "data_fingerprint": "The pixels of the reference. With other pixels, they are other images.",
    "reference_split": "Training or held-out images.",
    "reference_n": "The number of images that samples are compared with.",
}
"""Entry of PROTOCOL -> its meaning, and why numbers that differ in it are not compared."""

WORDS = {
    "extractor_sha256": "feature network", "data_fingerprint": "reference pixels", "reference_split": "split",
    "reference_n": "reference images",
}  # fmt: skip
"""Entry of PROTOCOL -> its name on the page; other entries keep their own names."""
DIGESTS = {"extractor_sha256": "another feature network", "data_fingerprint": "other reference pixels"}
"""Entries whose values mean nothing to a reader -> the words for a difference."""

UNKNOWN = "unknown data"


@dataclass(frozen=True)
class Group:
    """The models of one data set, and its standard protocols."""

    data: str
    models: Sequence[Model]

    @cached_property
    def standards(self) -> dict[str, tuple]:
        """Metric -> the protocol of most models."""
        return standard_protocols(self.models)

    @cached_property
    def rows(self) -> list[TableRow]:
        """Each model in each way to sample it."""
        return table_rows(self.models, self.standards)

    @cached_property
    def trainings(self) -> dict[str, Training]:
        """Name of a model -> its training, with the models that it gave with other seeds."""
        return {model.name: one for one in trainings(self.models) for model in one.models}

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the metrics that are compared."""
        return compared(self.models)

    def axis(self, metric: str) -> str:
        """'quality', 'coverage' or 'bits'."""
        row = measure_row(self.line(metric).measure)
        return "bits" if row.of_split else "coverage" if row.covers else "quality"

    def line(self, metric: str) -> ResultLine:
        """A line of a metric, of the standard protocol."""
        standard = self.standards[metric]
        lines = [li for model in self.models for li in model.finished if li.metric == metric]
        return next(li for li in lines if li.key(PROTOCOL) == standard)

    def remark(self, line: ResultLine) -> str:
        """How its protocol differs from the standard, such as 'n 500, not 2,000'; '' if it does not."""
        return "; ".join(
            DIGESTS.get(name) or f"{word(name)} {_value(own)}, not {_value(usual)}"
            for name, own, usual in differences(line, self.standards[line.metric])
        )

    @cached_property
    def main(self) -> str | None:
        """The metric of the verdicts: the quality that most rows have; None if no row has any."""
        having = {
            metric: sum(bool(row.picked[metric]) for row in self.rows)
            for metric in self.metrics
            if self.axis(metric) == "quality"
        }
        return max(having, key=having.__getitem__, default=None)


def word(entry: str) -> str:
    """What the page calls an entry of PROTOCOL."""
    return WORDS.get(entry, entry)


def groups(models: Sequence[Model]) -> list[Group]:
    """The models by their data, in the order of the first of each."""
    found: dict[str, list[Model]] = {}
    for model in models:
        found.setdefault(data_of(model), []).append(model)
    return [Group(data, same) for data, same in found.items()]


def data_of(model: Model) -> str:
    """The data set of a model's training, and the part that was used: 'mnist', 'cifar10, airplane, 16x16'."""
    config = model.config
    place = config.get("dataset_name") or config.get("train_data_dir")
    references = [line.reference for line in model.finished if line.reference]
    name = public_name(str(place or next(iter(references), UNKNOWN))).rpartition("/")[2]
    classes, side = config.get("classes") or (), config.get("resolution")
    return ", ".join([name, *map(str, classes), *([f"{side}x{side}"] if side else [])])


def family_of(model: Model) -> str:
    """The family, from run.json or the pipeline; 'other' for a pipeline of no family."""
    return model.run.get("family") or model.folder.family or "other"


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
