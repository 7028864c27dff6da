"""The figures of a card: which lines of `results.jsonl` it shows, and how.

Every measured figure stands in a row of one table and in the `model-index` of the front matter, and nowhere
else on the page, so that `check.py` can compare both with the file line by line.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult

from trilemma.model_cards.rendering.text import escape
from trilemma.training.options.flags import public_name

Line = Mapping[str, Any]

COLUMNS = (
    "metric", "value", "95% interval", "floor", "n", "sampler", "NFE", "guidance scale", "s / image",
    "reference",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |"
SAME = (
    "metric", "n", "sampler", "num_inference_steps", "guidance_scale", "classes", "feature_extractor",
    "reference", "reference_split",
)  # fmt: skip
"""Two lines that agree in these measure the same thing; the newer one counts."""

TOLD = (
    "n", "seeds", "interval", "floor", "sampler", "num_inference_steps", "nfe", "guidance_scale",
    "classes", "seconds_per_image", "feature_extractor", "reference_n", "judge_accuracy",
)  # fmt: skip
"""What the front matter says of a figure, where it is known."""


def shown(lines: Iterable[Line], trained_steps: int | None) -> list[Line]:
    """The newest measurement of each kind of the finished model, without those of folders of images."""
    newest: dict[tuple, Line] = {}
    for line in lines:
        early = None not in (line["step"], trained_steps) and line["step"] < trained_steps
        if line["seeds"] is None or early:
            continue
        kind = tuple(line[name] for name in SAME)
        newest.pop(kind, None)  # the order is that of the newest lines
        newest[kind] = line
    return list(newest.values())


def table(lines: Iterable[Line]) -> str:
    """The table of the card."""
    rows = [f"| {' | '.join(cells(line))} |" for line in lines]
    return "\n".join([HEADER, f"|{' --- |' * len(COLUMNS)}", *rows])


def evaluations(lines: Iterable[Line], task: str) -> list[EvalResult]:
    """The same figures for the front matter."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=public_name(line["reference"] or "unknown"),
            dataset_name=public_name(line["reference"] or "unknown"),
            dataset_split=line["reference_split"],
            metric_type=line["metric"],
            metric_name=line["metric"] + (" (forced)" if line["forced"] else ""),
            metric_value=line["value"],
            metric_args={name: line[name] for name in TOLD if line[name] is not None},
        )
        for line in lines
    ]


def cells(line: Line) -> tuple[str, ...]:
    """The row of a line, in the order of COLUMNS."""
    steps = line["num_inference_steps"]
    of_sampler = [
        line["sampler"],
        steps and f"{steps} {'steps' if line['sampler'] else 'noise levels'}",
        line["classes"] and f"only classes {line['classes']}",
    ]
    images = line["reference_n"] and f"{line['reference_n']} images"
    of_reference = [public_name(line["reference"] or ""), line["reference_split"], images]
    extractor, judge = line["feature_extractor"], line["judge_accuracy"]
    right = "" if judge is None else f" (right on {100 * judge:.4g}% of held-out images)"
    by = extractor and extractor + right
    row = (
        line["metric"] + (" (forced)" if line["forced"] else ""),
        _number(line["value"], 5),
        " .. ".join(_number(end, 4) for end in line["interval"] or ()),
        _number(line["floor"], 4),
        str(line["n"]),
        ", ".join(filter(None, of_sampler)),
        "" if line["nfe"] is None else str(line["nfe"]),
        _number(line["guidance_scale"], 4),
        _number(line["seconds_per_image"], 3),
        "; ".join(filter(None, [", ".join(filter(None, of_reference)), by])),
    )
    return tuple(map(escape, row))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}g}"
