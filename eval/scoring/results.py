"""The lines of `results.jsonl`: a measured number each, with all that must agree before it is compared.

`ResultLine` is the only reader and writer of them. What a number is called is in `naming.py`.
"""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.scoring.naming import SCHEDULERS, measure_of, metric_name, number, whole_of
from trilemma.pipelines.files.reading import FileError, check_types, read_json_lines
from trilemma.pipelines.files.writing import append_lines
from trilemma.training.progress import counted

if TYPE_CHECKING:  # whoever only reads results need not wait for torch
    from trilemma.eval.metrics.sample_metric import Measurement
    from trilemma.eval.scoring.reference import ReferenceProtocol

PROTOCOL = (
    "n", "extractor_sha256", "resize", "quantisation", "reference", "data_fingerprint", "reference_split",
    "reference_n",
)  # fmt: skip
PLAIN = "A plain value is that of these n samples, as published tables have it; of few samples it is biased."
"""Stands under tables in which the two differ."""
SEEDS = re.compile(r"(\d{1,20})\.\.(\d{1,20})")
SAMPLING = ("sampler", "num_inference_steps", "guidance_scale", "classes", "mixed_precision")
"""What must agree before two numbers are compared; and how images were sampled, which may be the question."""


@dataclass(frozen=True)
class Origin:
    """Where the images come from. For a folder of images all but `source` and `n` may be None."""

    source: str  # model or image folder
    n: int
    seeds: str | None = None  # "0..499"
    sampler: str | None = None  # as --sampler takes it
    num_inference_steps: int | None = None
    nfe: int | None = None  # evaluations of the network per image
    classes: str | None = None  # only these were drawn; names as a shell would quote them
    guidance_scale: float | None = None  # diffusers' scale: 1 + w of Ho & Salimans
    seconds_per_image: float | None = None  # process-seconds, sampling alone
    device: str | None = None
    step: int | None = None
    images_seen: int | None = None
    mixed_precision: str | None = None  # of the network while it drew: fp16, bf16; None: float32


@dataclass(frozen=True)
class ResultLine:
    """A measured number, what it measures, and how. Entries are None where they do not apply."""

    metric: str  # display name, such as fid_10k_vs_test
    measure: str  # what was measured, a measure of METRICS: fd, coverage, prior_bpd ...
    value: float
    interval: tuple[float, float] | None  # 95%
    floor: float | None  # what a perfect model would be expected to score
    source: str  # model or image folder; from here to `images_seen` as in Origin
    n: int
    seeds: str | None
    sampler: str | None
    num_inference_steps: int | None
    nfe: int | None
    classes: str | None
    guidance_scale: float | None
    seconds_per_image: float | None
    device: str | None
    step: int | None
    images_seen: int | None
    feature_extractor: str | None
    extractor_sha256: str | None
    resize: str | None
    quantisation: str | None
    reference: str | None  # name of the data
    reference_split: str | None
    reference_n: int | None  # images
    data_fingerprint: str | None
    whole: bool | None  # the reference was all images of its split; None where that is not recorded
    judge_accuracy: float | None
    commit: str | None
    created: str
    forced: bool  # it would have been refused without --force
    mixed_precision: str | None = None  # as in Origin; lines of older files lack it
    debiased: float | None = None  # what the interval is about, where `value` is biased; they lack it too
    extra: dict[str, Any] = field(default_factory=dict)  # entries that sweeps add, and judge_data

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "ResultLine":
        """A line as the file has it, of this or an older version; ValueError says what is wrong with it."""
        values = dict(line)
        if missing := REQUIRED - values.keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        check_types(values, TYPES)
        values["interval"] = values["interval"] and tuple(values["interval"])
        _check_numbers(values)
        name = values["metric"]
        if "measure" not in values:  # a line of an older file
            values["measure"] = measure_of(name, values["feature_extractor"])
            values["sampler"] = SCHEDULERS.get(values["sampler"], values["sampler"])
        values.setdefault("whole", whole_of(name))
        extra = {key: values.pop(key) for key in line if key not in ENTRIES}
        return cls(**values, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """The line as the file has it."""
        values = {name: getattr(self, name) for name in ENTRIES}
        values["interval"] = None if self.interval is None else list(self.interval)
        return {**values, **self.extra}

    @property
    def estimate(self) -> float:
        """The number to show beside its interval; `value` is the plain one of n samples.

        An older file has no debiased value: where the plain one lies outside the interval, its middle.
        """
        if self.debiased is not None or self.interval is None:
            return self.value if self.debiased is None else self.debiased
        low, high = self.interval
        beside = any(math.isclose(self.value, end, rel_tol=1e-12) for end in self.interval)  # older files
        return self.value if beside or low <= self.value <= high else (low + high) / 2

    @property
    def plain(self) -> float | None:
        """The plain value of n samples, where it is another number than the estimate."""
        return None if self.estimate == self.value else self.value

    def key(self, names: Iterable[str]) -> tuple[Any, ...]:
        """The values of these entries; lines with the same key are compared."""
        return tuple(getattr(self, name) for name in names)

    @property
    def column(self) -> str:
        """What tables of several models call it, whatever it was measured with: fd, coverage, bpd_test."""
        return self.metric if measure_row(self.measure).of_split else self.measure


def _check_numbers(values: Mapping[str, Any]) -> None:
    """ValueError for what no evaluation gives: numbers that are not finite, no images, odd seeds."""
    numbers = [values[name] for name in ("value", "floor", "seconds_per_image")]
    numbers += [values.get("debiased"), *(values["interval"] or ())]
    if not all(math.isfinite(number) for number in numbers if number is not None):
        raise ValueError("has a number that is not finite")
    if values["n"] < 1:
        raise ValueError(f"has n {values['n']}, which is no number of images")
    ends = SEEDS.fullmatch(values["seeds"] or "0..0")
    if ends is None or int(ends[1]) > int(ends[2]):
        raise ValueError(f"has seeds {values['seeds']!r}, which must be such as 0..499")


ENTRIES = tuple(entry.name for entry in fields(ResultLine) if entry.name != "extra")
REQUIRED = {*ENTRIES} - {"measure", "whole", "mixed_precision", "debiased"}
"""What every line has, those of older files too."""
TYPES = {name: hint for name, hint in get_type_hints(ResultLine).items() if name in ENTRIES}


def lines(
    measurements: "Mapping[str, Measurement]",
    origin: Origin,
    protocol: "ReferenceProtocol",
    *,
    commit: str | None,
    forced: Collection[str] = (),
    judge_accuracy: float | None = None,
    judge_data: str | None = None,
) -> list[ResultLine]:
    """One line for each measurement.

    forced: the measures that would have been refused. judge_data: what the classifier was trained on, if not
    on the reference.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return [
        ResultLine(
            metric=metric_name(measure, protocol.extractor, m.n, protocol.split, protocol.whole),
            measure=measure,
            value=m.value,
            interval=tuple(m.interval) if m.interval else None,
            floor=m.floor,
            debiased=m.debiased,
            **asdict(replace(origin, n=m.n)),
            feature_extractor=protocol.extractor,
            extractor_sha256=protocol.extractor_sha256,
            resize=protocol.resize,
            quantisation=protocol.quantisation,
            reference=protocol.data,
            reference_split=protocol.split,
            reference_n=protocol.n,
            data_fingerprint=protocol.data_fingerprint,
            whole=protocol.whole,
            judge_accuracy=judge_accuracy,
            commit=commit,
            created=now,
            forced=measure in forced,
            extra={"judge_data": judge_data} if judge_data else {},
        )
        for measure, m in measurements.items()
    ]


def append(path: Path, lines: Iterable[ResultLine]) -> None:
    """Add lines to a results file."""
    append_lines(path, as_text(lines))


def as_text(lines: Iterable[ResultLine]) -> str:
    """Lines as a results file has them."""
    return "".join(json.dumps(line.to_json()) + "\n" for line in lines)


def read(path: Path, damaged: Callable[[FileError], None] | None = None) -> list[ResultLine]:
    """The lines of a results file, oldest first; [] if there is none, FileError names a damaged line.

    damaged: called with the error of a damaged line, which is then left out.
    """
    lines = []
    for row, values in read_json_lines(path, damaged=damaged):
        try:
            lines.append(ResultLine.from_json(values))
        except ValueError as problem:
            fault = FileError(f"{path}, line {row}", problem, "delete the line")
            if damaged is None:
                raise fault from problem
            damaged(fault)
    return lines


def check_writable(path: Path) -> None:
    """OSError unless lines can be added to this file, which need not exist, nor its folder."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(nearest, os.W_OK) or (path.exists() and not path.is_file()):
        raise OSError(f"cannot write results to {path}; name another file with --output")


def in_words(line: ResultLine) -> str:
    """A measured number with its interval, plain value and floor, where it has them."""
    interval = f", 95% interval {' .. '.join(map(number, line.interval))}" if line.interval else ""
    return f"{line.metric} {number(line.estimate)}{interval}{plain_and_floor(line)}"


def plain_and_floor(line: ResultLine) -> str:
    """Plain value and floor, with commas before them, where there are any."""
    parts = {"plain": line.plain, "floor": line.floor}
    return "".join(f", {name} {number(part)}" for name, part in parts.items() if part is not None)


def newest(lines: Iterable[ResultLine], names: Sequence[str]) -> list[ResultLine]:
    """Of lines that agree in these entries, the last; in the order of those that are left."""
    kinds: dict[tuple, ResultLine] = {}
    for line in lines:
        kinds.pop(line.key(names), None)
        kinds[line.key(names)] = line
    return list(kinds.values())


def heading(lines: Sequence[ResultLine]) -> str:
    """What these numbers, measured together, are of: model, sampling, reference, extractors; '' for none."""
    if not lines:
        return ""
    one = lines[0]
    words = [f"{one.source} at step {one.step:,}" if one.step is not None else one.source]
    if one.sampler:
        calls = f", {counted(one.nfe, 'call')} of the network" if one.nfe else ""
        steps = f" in {counted(one.num_inference_steps, 'step')}" if one.num_inference_steps else ""
        words.append(f"{one.sampler}{steps}{calls}")
        words.append("no guidance" if one.guidance_scale is None else f"guidance {one.guidance_scale:g}")
        words += [f"only classes {one.classes}"] if one.classes else []
        words += [f"the network in {one.mixed_precision}"] if one.mixed_precision else []
    split = f" ({one.reference_split})" if one.reference_split else ""
    words.append(f"against {one.reference_n or 0:,} images of {one.reference}{split}")
    extractors = dict.fromkeys(line.feature_extractor for line in lines if line.feature_extractor)
    words += [f"{' and '.join(extractors)} features"] if extractors else []
    return "; ".join(words)


def table(lines: Iterable[ResultLine]) -> str:
    """Results as text: name, estimate, interval, plain value, floor, n; and what the plain value is."""
    lines = list(lines)
    rows = [("metric", "value", "95% interval", "plain value", "floor", "n")]
    for line in lines:
        interval = " .. ".join(map(number, line.interval or ()))
        floor = "" if line.floor is None else number(line.floor)
        name = line.metric + (" (forced)" if line.forced else "")
        plain = "" if line.plain is None else number(line.plain, 5)
        rows.append((name, number(line.estimate, 5), interval, plain, floor, str(line.n)))
    return aligned(rows) + (f"\n{PLAIN}" if any(line.plain is not None for line in lines) else "")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
