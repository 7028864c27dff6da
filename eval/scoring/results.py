"""What a measured number is called and what it must say of itself: the lines of `results.jsonl`.

A number is `fid` only over Inception features of at least 50,000 samples against the whole training split,
which is what the literature means by it. Everything else bears its protocol in its name: `fid_10k`,
`fid_10k_vs_test`, `fd_classifier`, `kid_pixels`.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever only reads results need not wait for torch
    from trilemma.eval.metrics.sample_metric import Measurement
    from trilemma.eval.scoring.reference import Protocol

RESULTS = "results.jsonl"
LITERATURE_SAMPLES = 50_000
JUDGED = ("class_accuracy", "modes", "modes_kl", "confidence", "confident_share")
"""Numbers of the classifier as a judge; they bear no extractor's name."""

HIGHER_IS_BETTER = {
    "fd": False, "energy": False, "kid": False, "is": True, "precision": True, "recall": True,
    "density": True, "coverage": True, "class_accuracy": True, "modes": True, "bpd_train": False,
    "bpd_test": False,
}  # fmt: skip
"""What tables of several models show, by the kind of the lines: see `kind`."""

PROTOCOL = (
    "n", "extractor_sha256", "resize", "quantisation", "reference", "data_fingerprint", "reference_split",
    "reference_n",
)  # fmt: skip
SAMPLING = ("sampler", "num_inference_steps", "guidance_scale", "classes")
"""What must agree before two numbers are compared; and how images were sampled, which may be the question."""


@dataclass(frozen=True)
class Origin:
    """Where the images come from. For a folder of images all but `source` and `n` may be None."""

    source: str  # model or image folder
    n: int
    seeds: str | None = None  # "0..499"
    sampler: str | None = None
    num_inference_steps: int | None = None
    nfe: int | None = None  # evaluations of the network per image
    classes: str | None = None  # only these were drawn; names as a shell would quote them
    guidance_scale: float | None = None  # diffusers' scale: 1 + w of Ho & Salimans
    seconds_per_image: float | None = None  # process-seconds, sampling alone
    device: str | None = None
    step: int | None = None
    images_seen: int | None = None


KEYS = {
    "metric", "value", "interval", "floor", "forced", "feature_extractor", "judge_accuracy", "commit",
    "created", *PROTOCOL, *Origin.__dataclass_fields__,
}  # fmt: skip
"""What every line has."""


def metric_name(name: str, extractor: str | None, n: int, split: str | None, whole: bool = True) -> str:
    """What a measurement of METRICS is called in results: see the top of this file.

    split and whole: of the reference, and whether it is all of that split.
    """
    if name in JUDGED or extractor is None:
        return name
    if name != "fd":
        return name if extractor == "inception" else f"{name}_{extractor}"
    if extractor != "inception":
        return f"fd_{extractor}"
    if n >= LITERATURE_SAMPLES and split == "train" and whole:
        return "fid"
    count = f"{n // 1000}k" if n % 1000 == 0 else str(n)
    against = (split or "unknown") if whole else f"part_of_{split}"
    return f"fid_{count}" if against == "train" else f"fid_{count}_vs_{against}"


def lines(
    measurements: "Mapping[str, Measurement]",
    origin: Origin,
    protocol: "Protocol | None",
    *,
    commit: str | None,
    forced: Collection[str] = (),
    judge_accuracy: float | None = None,
) -> list[dict[str, Any]]:
    """One line for each measurement, with everything that must agree before it is compared with another.

    forced: those that would have been refused.
    """
    extractor = protocol.extractor if protocol else None
    split = protocol.split if protocol else None
    told = {
        "feature_extractor": extractor,
        "extractor_sha256": protocol.extractor_sha256 if protocol else None,
        "resize": protocol.resize if protocol else None,
        "quantisation": protocol.quantisation if protocol else None,
        "reference": protocol.data if protocol else None,
        "reference_split": split,
        "reference_n": protocol.n if protocol else None,
        "data_fingerprint": protocol.data_fingerprint if protocol else None,
        "judge_accuracy": judge_accuracy,
        "commit": commit,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return [
        {
            "metric": metric_name(name, extractor, m.n, split, protocol.whole if protocol else True),
            "value": m.value,
            "interval": list(m.interval) if m.interval else None,
            "floor": m.floor,
            **asdict(replace(origin, n=m.n)),
            **told,
            "forced": name in forced,
        }
        for name, m in measurements.items()
    ]


def append(path: Path, new: Iterable[dict[str, Any]]) -> None:
    """Add lines to a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in new)
    with open(path, "a") as file:
        file.write(text)


def check_writable(path: Path) -> None:
    """OSError unless lines can be added to this file, which need not exist, nor its folder."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(nearest, os.W_OK) or (path.exists() and not path.is_file()):
        raise OSError(f"cannot write results to {path}; name another file with --output")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, oldest first; [] if there is none, ValueError names a damaged line."""
    numbered = read_objects(path)
    for number, line in numbered.items():
        if lacking := KEYS - line.keys():
            fault = f"lacks {', '.join(sorted(lacking))}"
        elif not _is_number(line["value"]):
            fault = f"has the value {line['value']!r}, which is no number"
        elif line["interval"] is not None and not _is_pair(line["interval"]):
            fault = f"has the interval {line['interval']!r}, which is neither two numbers nor null"
        else:
            continue
        raise ValueError(f"{path}, line {number} {fault}; delete the line")
    return list(numbered.values())


def read_objects(path: Path) -> dict[int, dict[str, Any]]:
    """The JSON objects of a file by the number of their line, without blank ones; {} if there is no file."""
    found = {}
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            line = json.loads(text) if text.strip() else None
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path}, line {number} is not JSON: {problem}; delete the line") from problem
        if text.strip() and not isinstance(line, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object; delete the line")
        if line is not None:
            found[number] = line
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def table(results: Iterable[dict[str, Any]]) -> str:
    """Results as text: name, value, interval, floor, n."""
    rows = [("metric", "value", "95% interval", "floor", "n")]
    for line in results:
        low, high = line["interval"] or (None, None)
        interval = "" if low is None else f"{low:.4g} .. {high:.4g}"
        floor = "" if line["floor"] is None else f"{line['floor']:.4g}"
        name = line["metric"] + (" (forced)" if line["forced"] else "")
        rows.append((name, f"{line['value']:.5g}", interval, floor, str(line["n"])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def kind(line: Mapping[str, Any]) -> str:
    """What a line measures, whatever it was measured with: `metric_name` the other way."""
    name, extractor = line["metric"], line["feature_extractor"]
    return "fd" if name.startswith("fid") else name.removesuffix(f"_{extractor}")


def cell(line: Mapping[str, Any], key: str) -> str:
    """An entry of a line as tables show it, '' for none."""
    value = line.get(key)
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def protocol(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """What one model's lines by kind were measured with, in a sentence."""
    line = next((line for line in lines.values() if line["feature_extractor"]), next(iter(lines.values())))
    against = f"{line['reference_n']} images of {line['reference']} ({line['reference_split']})"
    floor = "" if line["floor"] is None else f"; the floor of {line['metric']} is {line['floor']:.4g}"
    return f"{line['n']} samples against {against}, {line['feature_extractor'] or 'no'} features{floor}."


def with_interval(line: Mapping[str, Any]) -> str:
    """The value, and its interval if it has one."""
    low, high = line["interval"] or (None, None)
    return f"{line['value']:.4g}" + ("" if low is None else f" ({low:.4g} .. {high:.4g})")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows]]
    return "".join(lines)


@dataclass
class Marks:
    """Numbered remarks under the table."""

    said: list[str] = field(default_factory=list)

    def mark(self, remark: str) -> str:
        """' [k]' for a remark, '' for none."""
        if not remark:
            return ""
        if remark not in self.said:
            self.said.append(remark)
        return f" [{self.said.index(remark) + 1}]"
