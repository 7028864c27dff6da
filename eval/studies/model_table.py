"""Which numbers of several models may be compared, and their table.

Two numbers are measured alike when everything in `PROTOCOL` agrees. For each metric the protocol of most
models is the standard. A number with another protocol gets a mark that says what differs, and is left out of
the charts. How images are sampled may differ: it is what is compared, a row for each way.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trilemma.eval.metrics.table import METRICS, measure_row
from trilemma.eval.plots import charts
from trilemma.eval.scoring.results import PROTOCOL, SAMPLING, ResultLine, plain_and_floor
from trilemma.eval.studies import repeats
from trilemma.eval.studies.models import Model
from trilemma.eval.studies.tables import Marks, cell, markdown, with_interval

MACHINE = {
    "name": "processor", "processes": "processes", "threads": "threads", "mixed_precision": "precision",
}  # fmt: skip
"""The hardware entries of run.json on which the seconds of training depend, and their names in notes."""

NAMES = {
    "nfe": "NFE", "seconds_per_image": "s / image", "seconds": "training s", "images_seen": "images seen",
    "parameters": "parameters",
}  # fmt: skip


def standard_protocols(models: Sequence[Model]) -> dict[str, tuple]:
    """Metric -> the protocol that most models have measured it with; of equals that of the earlier model."""
    votes: dict[str, Counter] = {}
    for model in models:
        for metric, key in dict.fromkeys((li.metric, li.key(PROTOCOL)) for li in model.finished):
            votes.setdefault(metric, Counter())[key] += 1
    return {metric: counter.most_common(1)[0][0] for metric, counter in votes.items()}


def difference(line: ResultLine, standard: tuple) -> str:
    """How the protocol of a line differs from a standard, in words; '' if it does not."""
    wrong = [
        f"{name} {str(own)[:12]}, not {str(usual)[:12]}" for name, own, usual in differences(line, standard)
    ]
    return "not comparable: " + "; ".join(wrong) if wrong else ""


def differences(line: ResultLine, standard: tuple) -> list[tuple[str, Any, Any]]:
    """Entries of PROTOCOL in which a line differs from a standard: name, its value, the standard's."""
    values = zip(PROTOCOL, line.key(PROTOCOL), standard, strict=True)
    return [(name, own, usual) for name, own, usual in values if own != usual]


class TableRow(NamedTuple):
    """A model in one way to sample it. picked: metric -> its line, None if it was not measured."""

    model: Model
    way: tuple
    picked: Mapping[str, ResultLine | None]

    @property
    def drawn(self) -> ResultLine | None:
        """A line that says how images were drawn; None for a model that was not sampled."""
        return next((line for line in self.picked.values() if line and line.sampler), None)

    @property
    def sampling(self) -> str:
        """The way to sample in words, '' if nothing was sampled."""
        return _way(self.way)


def table_rows(models: Sequence[Model], standards: Mapping[str, tuple]) -> list[TableRow]:
    """A row for each model and way to sample it."""
    shown = compared(models)
    return [
        TableRow(model, way, {metric: pick(model, metric, way, standards[metric]) for metric in shown})
        for model in models
        for way in ways(model)
    ]


def trilemma(models: Sequence[Model], standards: Mapping[str, tuple], marks: Marks) -> str:
    """The table in Markdown."""
    rows = []
    for row in table_rows(models, standards):
        cells = [_cell(line, standards[metric], marks) for metric, line in row.picked.items()]
        drawn = row.drawn
        speed = [cell(drawn and drawn.nfe), cell(drawn and drawn.seconds_per_image)]
        speed[1] += marks.mark(elsewhere(drawn.device, models)) if speed[1] else ""
        cost = [cell(row.model.run.get(name)) for name in list(NAMES)[2:]]
        cost[0] += marks.mark(other_machine(row.model, models[0])) if cost[0] else ""
        rows.append([row.model.name, row.sampling, *cells, *speed, *cost])
    return markdown(["model", "sampling", *compared(models), *NAMES.values()], rows)


def ways(model: Model) -> list[tuple]:
    """Each way that the finished model was sampled in; one of None where it never was."""
    keys = dict.fromkeys(line.key(SAMPLING) for line in model.finished if line.sampler)
    return list(keys) or [(None,) * len(SAMPLING)]


def pick(model: Model, metric: str, way: tuple, standard: tuple) -> ResultLine | None:
    """The newest line of a metric, if there is one of the standard protocol; likelihoods are of every way."""
    lines = [
        line
        for line in model.finished
        if line.metric == metric and (not line.sampler or line.key(SAMPLING) == way)
    ]
    alike = [line for line in lines if line.key(PROTOCOL) == standard]
    return next(reversed(alike or lines), None)


def repeated(models: Sequence[Model], standards: Mapping[str, tuple]) -> list[repeats.Row]:
    """The estimates of each training in each way to sample it, of the standard protocol alone."""
    rows = []
    for metric in compared(models):
        for training in repeats.trainings(models):
            every = dict.fromkeys(way for model in training.models for way in ways(model))
            for way in every:
                lines = lines_of(training, metric, way, standards[metric])
                if lines and (lines[0].sampler or way == next(iter(every))):  # likelihoods once
                    name = training.name if len(every) == 1 else f"{training.name}, {_way(way)}"
                    estimates, row = tuple(line.estimate for line in lines), measure_row(lines[0].measure)
                    rows.append(repeats.Row(training.name, name, metric, estimates, row.better))
    return rows


def lines_of(training: repeats.Training, metric: str, way: tuple, standard: tuple) -> list[ResultLine]:
    """A metric's lines of a training's models in one way to sample them, those of the standard protocol."""
    picked = [(model, pick(model, metric, way, standard)) for model in training.models]
    return [line for model, line in picked if line and measured_alike(model, line, standard)]


def measured_alike(model: Model, line: ResultLine, standard: tuple) -> bool:
    """Whether a line of a repeated training was measured as the standard says.

    Each seed holds out other images, so the training images that are left, to which a model is compared, are
    others too. This is part of what varies with the seed.
    """
    wrong = {name for name, _, _ in differences(line, standard)}
    held_out = model.config.get("validation_size") and not model.config.get("validation_split")
    return wrong <= ({"data_fingerprint"} if held_out and line.reference_split == "train" else set())


def figures(models: Sequence[Model], standards: Mapping[str, tuple]) -> dict[str, Any]:
    """Charts by the name of their file, of those for which there are numbers."""
    drawn = {}
    logs = {model.name: model.scalars for model in models if any("bpd" in line for line in model.scalars)}
    if logs:
        drawn["elbo"] = charts.elbo(logs)
    for metric, standard in standards.items():
        if not _is_distance(metric, models):
            continue
        every = {model.name: [pick(model, metric, way, standard) for way in ways(model)] for model in models}
        alike = {
            name: [line for line in lines if line and line.key(PROTOCOL) == standard]
            for name, lines in every.items()
        }
        drawn[f"{metric}-speed"] = charts.quality_speed({n: lines for n, lines in alike.items() if lines})
    return drawn


def compared(models: Sequence[Model]) -> list[str]:
    """Names of the metrics that the table shows, in the order of METRICS; training images before others."""
    order = [measure for row in METRICS.values() for measure in row.measures]
    lines = {li.metric: li for m in models for li in m.finished if measure_row(li.measure).compared}

    def place(name: str) -> tuple[int, bool, str]:
        line = lines[name]
        return order.index(line.measure), line.reference_split != "train", name

    return sorted(lines, key=place)


def _is_distance(metric: str, models: Sequence[Model]) -> bool:
    """Whether a chart of this metric against speed has its best place at the lower left."""
    measure = next(li.measure for model in models for li in model.finished if li.metric == metric)
    row = measure_row(measure)
    return row.charted and row.better == "lower" and not row.of_split


def _cell(line: ResultLine | None, standard: tuple, marks: Marks) -> str:
    if line is None:
        return ""
    forced = " (forced)" if line.forced else ""
    return with_interval(line) + plain_and_floor(line) + forced + marks.mark(difference(line, standard))


def _way(key: tuple) -> str:
    sampler, steps, guidance, classes, precision = key
    parts = (
        sampler,
        steps and f"{steps} step{'' if steps == 1 else 's'}",
        guidance and f"guidance {guidance:g}",
        classes,
        precision,
    )
    return ", ".join(str(part) for part in parts if part)


def elsewhere(device: str | None, models: Sequence[Model]) -> str:
    """How the device that drew differs from that of the first model that drew; '' if it does not."""
    usual = next((li.device for model in models for li in model.finished if li.device), device)
    return "" if device == usual else f"not comparable: seconds on {device}, not {usual}"


def other_machine(model: Model, first: Model) -> str:
    """How the machine of a training differs from that of the first model; '' if it does not."""
    own, usual = (m.run.get("hardware", {}) for m in (model, first))
    wrong = [
        f"{word} {own.get(name)}, not {usual.get(name)}"
        for name, word in MACHINE.items()
        if own.get(name) != usual.get(name)
    ]
    return "not comparable: seconds of training with " + "; ".join(wrong) if wrong else ""
