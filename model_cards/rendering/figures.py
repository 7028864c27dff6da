"""The figures of a card: which lines of `results.jsonl` it shows, and how.

Every measured figure is in a row of one table and in the `model-index` of the front matter, so that
`differences.py` can compare both with the file. Above that table is a short one for the reader, with a row
for each way to sample.
"""

from collections.abc import Iterable
from statistics import median
from typing import Any

from huggingface_hub import EvalResult

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.results import ResultLine, newest
from trilemma.eval.studies.tables import markdown, with_interval
from trilemma.model_cards.rendering.saved_model import Sampling
from trilemma.model_cards.rendering.text import escape
from trilemma.training.options.flags import public_name
from trilemma.training.progress import counted

COLUMNS = (
    "metric", "value", "95% interval", "plain value", "floor", "n", "sampler", "NFE", "guidance scale",
    "s / image", "reference",
)  # fmt: skip
OLDER_COLUMNS = tuple(name for name in COLUMNS if name != "plain value")
"""Up to wording 3, where the value was the plain one."""
HEADER, OLDER_HEADER = (f"| {' | '.join(columns)} |" for columns in (COLUMNS, OLDER_COLUMNS))
SAME = (
    "metric", "n", "sampler", "num_inference_steps", "guidance_scale", "classes", "mixed_precision",
    "feature_extractor", "reference", "reference_split",
)  # fmt: skip
"""Two lines that agree in these measure the same thing; the newer one counts."""

WAY = (
    "n", "sampler", "num_inference_steps", "guidance_scale", "classes", "mixed_precision", "nfe", "reference",
)  # fmt: skip
"""Lines that agree in these are a row of the short table."""

COMPARED = ("metric", "n", "forced", "feature_extractor", "reference", "reference_split")
"""Lines that agree in these tell which way to sample is better."""

ARGUMENTS = (
    "n", "seeds", "interval", "debiased", "floor", "sampler", "num_inference_steps", "nfe", "guidance_scale",
    "classes", "mixed_precision", "seconds_per_image", "feature_extractor", "reference_n", "judge_accuracy",
)  # fmt: skip
"""What the front matter says of a figure, where the line has it."""


def shown(lines: Iterable[ResultLine], trained_steps: int | None) -> list[ResultLine]:
    """The newest measurement of each kind of the finished model; not those of folders of images."""
    def late(line: ResultLine) -> bool:
        return None in (line.step, trained_steps) or line.step >= trained_steps

    return newest((line for line in lines if line.seeds is not None and late(line)), SAME)


def best_sampling(lines: Iterable[ResultLine]) -> Sampling | None:
    """How the best of these results was sampled, by a Frechet distance, or else by the first metric of which
    one end is better. None without such a result.
    """
    comparable = [line for line in lines if line.classes is None and not measure_row(line.measure).of_split]
    comparable = [line for line in comparable if measure_row(line.measure).better]
    comparable.sort(key=lambda line: line.measure != "fd")
    if not comparable:
        return None
    alike = [line for line in comparable if line.key(COMPARED) == comparable[0].key(COMPARED)]
    lower = measure_row(comparable[0].measure).better == "lower"
    best = (min if lower else max)(alike, key=lambda line: line.value)
    return Sampling(best.sampler, best.num_inference_steps, best.guidance_scale)


FORMERLY_SHOWN = ("precision", "density")
"""Measures that the short table had up to wording 6."""


def short_table(lines: Iterable[ResultLine], older: bool = False) -> str:
    """A row for each way to sample, a column for each measure that a table of a sweep or comparison has.

    Empty without such a measure. The seconds of a way are the median of its lines. older: with
    FORMERLY_SHOWN.
    """
    rows: dict[tuple, dict[str, ResultLine]] = {}
    for line in lines:
        row = measure_row(line.measure)
        if row.shown or row.compared or (older and line.measure in FORMERLY_SHOWN):
            rows.setdefault(line.key(WAY), {})[_name(line)] = line
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not names:
        return ""
    body = []
    for row in rows.values():
        first = next(iter(row.values()))
        seconds = [line.seconds_per_image for line in row.values() if line.seconds_per_image is not None]
        guidance = None if first.guidance_scale is None else f"guidance {number(first.guidance_scale, 4)}"
        way = ", ".join(filter(None, [_way(first) or "no sampling", guidance]))
        cost = ["" if first.nfe is None else str(first.nfe), _number(median(seconds) if seconds else None, 3)]
        measured = [with_interval(row[name]) if name in row else "" for name in names]
        body.append([way, *cost, str(first.n), *measured])
    header = ["sampled with", "NFE", "s / image", "n", *names]
    return markdown(list(map(escape, header)), [list(map(escape, row)) for row in body]).rstrip()


def table(lines: Iterable[ResultLine], older: bool = False) -> str:
    """The table of the card; older: with OLDER_COLUMNS."""
    rows = [f"| {' | '.join(cells(line, older))} |" for line in lines]
    header, columns = (OLDER_HEADER, OLDER_COLUMNS) if older else (HEADER, COLUMNS)
    return "\n".join([header, f"|{' --- |' * len(columns)}", *rows])


def evaluations(lines: Iterable[ResultLine], task: str) -> list[EvalResult]:
    """The same figures for the front matter."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=public_name(line.reference or "unknown"),
            dataset_name=public_name(line.reference or "unknown"),
            dataset_split=line.reference_split,
            metric_type=line.metric,
            metric_name=_name(line),
            metric_value=line.value,
            metric_args=_arguments(line),
        )
        for line in lines
    ]


def cells(line: ResultLine, older: bool = False) -> tuple[str, ...]:
    """The row of a line, in the order of COLUMNS, or of OLDER_COLUMNS."""
    images = line.reference_n and f"{line.reference_n} images"
    reference = [public_name(line.reference or ""), line.reference_split, images]
    judge = line.judge_accuracy
    accuracy = "" if judge is None else f" (right on {100 * judge:.4g}% of held-out images)"
    extractor = line.feature_extractor and line.feature_extractor + accuracy
    row = (
        _name(line),
        _number(line.value if older else line.estimate, 5),
        " .. ".join(_number(end, 4) for end in line.interval or ()),
        *(() if older else (_number(line.plain, 5),)),
        _number(line.floor, 4),
        str(line.n),
        _way(line),
        "" if line.nfe is None else str(line.nfe),
        _number(line.guidance_scale, 4),
        _number(line.seconds_per_image, 3),
        "; ".join(filter(None, [", ".join(filter(None, reference)), extractor])),
    )
    return tuple(map(escape, row))


def _way(line: ResultLine) -> str:
    """How the images were sampled, but for guidance, which has a column."""
    steps = line.num_inference_steps
    sampling = [
        line.sampler,
        steps and counted(steps, "step" if line.sampler else "noise level"),
        line.classes and f"only classes {line.classes}",
        line.mixed_precision and f"network in {line.mixed_precision}",
    ]
    return ", ".join(filter(None, sampling))


def _name(line: ResultLine) -> str:
    return line.metric + (" (forced)" if line.forced else "")


def _arguments(line: ResultLine) -> dict[str, Any]:
    """The protocol, in types that YAML has."""
    values = zip(ARGUMENTS, line.key(ARGUMENTS), strict=True)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values
        if value is not None
    }


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else number(value, digits)
