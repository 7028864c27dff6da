"""The body of `eval/compare.py`: which numbers of several models may be compared, and their table.

Two numbers are measured alike when everything in `PROTOCOL` agrees. For each metric the protocol of most
models is the standard. A number with another protocol gets a mark that says what differs, and is left out of
the charts. How images are sampled may differ: it is what is compared, a row for each way.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trilemma.eval.metrics.table import METRICS, measure_row
from trilemma.eval.plots import charts
from trilemma.eval.scoring.results import PROTOCOL, SAMPLING, ResultLine, plain_and_floor
from trilemma.eval.studies import repeats, targets
from trilemma.eval.studies.models import Model, read_models
from trilemma.eval.studies.tables import Marks, cell, markdown, with_interval
from trilemma.pipelines.files.writing import write_text, written

MACHINE = ("name", "processes", "threads", "mixed_precision")
"""What of the hardware in run.json the seconds of training depend on."""

NAMES = {
    "nfe": "NFE", "seconds_per_image": "s / image", "seconds": "training s", "images_seen": "images seen",
    "parameters": "parameters",
}  # fmt: skip


def compare(config) -> None:
    """Write and print what the flags of `eval/compare.py` ask for."""
    if not config.models:
        raise ValueError("--models must name output folders")
    goals = [targets.parse_target(word) for word in config.target or ()]
    models = read_models(config.models)
    for metric, _ in goals:
        targets.check_target(metric, models)
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
    print(f"{text}\nin {page}")


def standard_protocols(models: Sequence[Model]) -> dict[str, tuple]:
    """Metric -> the protocol that most models have measured it with; of equals that of the earlier model."""
    votes: dict[str, Counter] = {}
    for model in models:
        for metric, key in dict.fromkeys((li.metric, li.key(PROTOCOL)) for li in model.finished):
            votes.setdefault(metric, Counter())[key] += 1
    return {metric: counter.most_common(1)[0][0] for metric, counter in votes.items()}


def difference(line: ResultLine, standard: tuple) -> str:
    """How the protocol of a line differs from a standard, in words; '' if it does not."""
    pairs = zip(PROTOCOL, line.key(PROTOCOL), standard, strict=True)
    wrong = [f"{name} {str(own)[:12]}, not {str(usual)[:12]}" for name, own, usual in pairs if own != usual]
    return "not comparable: " + "; ".join(wrong) if wrong else ""


def trilemma(models: Sequence[Model], standards: Mapping[str, tuple], marks: Marks) -> str:
    """The table: a row for each model and way to sample it."""
    shown = compared(models)
    rows = []
    for model in models:
        for key in ways(model):
            picked = {metric: pick(model, metric, key, standards[metric]) for metric in shown}
            cells = [_cell(line, standards[metric], marks) for metric, line in picked.items()]
            drawn = next((line for line in picked.values() if line and line.sampler), None)
            speed = [cell(drawn and drawn.nfe), cell(drawn and drawn.seconds_per_image)]
            speed[1] += marks.mark(_elsewhere(drawn.device, models)) if speed[1] else ""
            cost = [cell(model.run.get(name)) for name in list(NAMES)[2:]]
            cost[0] += marks.mark(_other_machine(model, models[0])) if cost[0] else ""
            rows.append([model.name, _way(key), *cells, *speed, *cost])
    return markdown(["model", "sampling", *shown, *NAMES.values()], rows)


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
                picked = [pick(model, metric, way, standards[metric]) for model in training.models]
                lines = [line for line in picked if line and line.key(PROTOCOL) == standards[metric]]
                if lines and (lines[0].sampler or way == next(iter(every))):  # likelihoods once
                    name = training.name if len(every) == 1 else f"{training.name}, {_way(way)}"
                    estimates, row = tuple(line.estimate for line in lines), measure_row(lines[0].measure)
                    rows.append(repeats.Row(training.name, name, metric, estimates, row.better))
    return rows


def figures(models: Sequence[Model], standards: Mapping[str, tuple]) -> dict[str, Any]:
    """Charts by the name of their file, of those for which there are numbers."""
    drawn = {}
    logs = {model.name: model.scalars for model in models if any("bpd" in line for line in model.scalars)}
    if logs:
        drawn["elbo"] = charts.elbo(logs)
    for metric, standard in standards.items():
        if not _is_distance(metric, models):
            continue
        points = [
            (model.name if len(ways(model)) == 1 else f"{model.name}, {_way(way)}", line)
            for model in models
            for way in ways(model)
            if (line := pick(model, metric, way, standard)) and line.key(PROTOCOL) == standard
        ]
        drawn[f"{metric}-speed"] = charts.quality_speed(points)
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
    parts = (sampler, steps and f"{steps} steps", guidance and f"guidance {guidance:g}", classes, precision)
    return ", ".join(str(part) for part in parts if part)


def _elsewhere(device: str | None, models: Sequence[Model]) -> str:
    usual = next((li.device for model in models for li in model.finished if li.device), device)
    return "" if device == usual else f"not comparable: seconds on {device}, not {usual}"


def _other_machine(model: Model, first: Model) -> str:
    own, usual = (m.run.get("hardware", {}) for m in (model, first))
    wrong = [f"{n} {own.get(n)}, not {usual.get(n)}" for n in MACHINE if own.get(n) != usual.get(n)]
    return "not comparable: seconds of training with " + "; ".join(wrong) if wrong else ""
