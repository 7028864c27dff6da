"""Do the published weights give the card's numbers? Same seeds, sampler, steps and guidance; same judge.

From all stored seeds, a number must come out the same up to rounding: processors, and batches of other sizes,
round differently, which turns a pixel by a grey level here and there. That moves a number far less than
another sample would; allowed is the larger of 1% of the value and a tenth of its 95% interval's width (where
it has no interval, of two images' share). From fewer seeds, both intervals must overlap; numbers that depend
on n by themselves are not judged then.
"""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import snapshot_download

from trilemma.eval.metrics.pairs import NEAREST_QUANTILES
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.eval.scoring import results
from trilemma.eval.scoring.after_training import load_images_of, trained_on
from trilemma.eval.scoring.model_images import labels_like, open_drawing
from trilemma.eval.scoring.yardsticks import Reference, score, yardsticks
from trilemma.model_cards.rendering.differences import check_card
from trilemma.model_cards.rendering.figures import Line
from trilemma.model_cards.rendering.facts import read_folder
from trilemma.training.loop.machine import PROCESS_GROUP
from trilemma.training.options.flags import public_name

DRAW = (*results.SAMPLING, "seeds", "reference", "reference_split")
"""Lines that agree in these were measured on one set of samples."""

RELATIVE, OF_INTERVAL, IMAGES = 0.01, 0.1, 2

MEASURES = {
    "fd": ("fd",),
    "kid": ("kid",),
    "energy": ("energy",),
    "is": ("is", "is_std"),
    "prdc": ("precision", "recall", "density", "coverage"),
    "class_accuracy": ("class_accuracy",),
    "modes": ("modes", "modes_kl", "confidence", "confident_share"),
    "memorization": (
        "copying",
        *(f"nearest_{name}{end}" for name in NEAREST_QUANTILES for end in ("", "_heldout")),
    ),
    "diversity": ("diversity",),
}
"""Name in METRICS -> names of what it measures."""

FREE_OF_N = ("fd", "kid", "energy", "class_accuracy", "confident_share", "diversity")
"""Measures whose interval is for the same number whatever n is."""


@dataclass(frozen=True)
class Check:
    """A line of the card and what came out now; `agrees` is None where that cannot be told."""

    line: Line
    now: Measurement | None
    agrees: bool | None
    why: str


def recheck(model: str, num_samples: int | None = None, reference: str | None = None) -> list[Check]:
    """Check every result on the card of a Hub id or folder, over all its seeds or the first `num_samples`.

    `reference` is where the reference data are, if not where config.yaml says. ValueError when the
    card is at odds with its own results.jsonl, or the reference is another.
    """
    is_folder = Path(model).is_dir()
    folder = Path(model if is_folder else snapshot_download(model, ignore_patterns=["logs/*"]))
    _, problems = check_card(folder)
    if problems:
        hint = "the card is not what its files give (one of another version: render a copy, --verify that)"
        raise ValueError("\n".join([*problems, hint]))
    accelerator = Accelerator(kwargs_handlers=[PROCESS_GROUP])
    groups: dict[tuple, list[Line]] = {}
    for line in read_folder(folder).lines:
        groups.setdefault(tuple(line[name] for name in DRAW), []).append(line)
    return [
        check
        for lines in groups.values()
        for check in _check_draw(str(folder), lines, num_samples, reference, accelerator)
    ]


def _check_draw(
    model: str, lines: list[Line], num_samples: int | None, reference: str | None, accelerator: Accelerator
) -> list[Check]:
    """Check the lines of one set of samples."""
    wanted = {line["metric"]: _measure(line) for line in lines}
    measured = [line for line in lines if wanted[line["metric"]] is not None]
    checks = [Check(line, None, None, "not drawn from seeds") for line in lines if line not in measured]
    if not measured:
        return checks
    sampler = measured[0]["sampler"]
    first, last = map(int, measured[0]["seeds"].split(".."))
    stored = last - first + 1
    n = stored if num_samples is None else num_samples
    if not 1 < n <= stored:
        raise ValueError(f"--num_samples must be in 2..{stored}, the number of stored seeds; got {n}")
    sampling = SamplingConfig(
        num_samples=n,
        seed=first,
        # The class of a scheduler is the name of the model's own sampler, and needs no flag.
        sampler=None if sampler.endswith("Scheduler") else sampler,
        num_inference_steps=measured[0]["num_inference_steps"],
        guidance_scale=measured[0]["guidance_scale"],
        classes=tuple(shlex.split(measured[0]["classes"] or "")) or None,
    )
    images = _open_reference(model, reference, measured[0], accelerator)
    cache = Path(os.environ.get("TRILEMMA_CACHE") or "~/.cache/trilemma").expanduser()
    sticks = []
    for extractor in {line["feature_extractor"]: None for line in measured}:
        of_it = [wanted[line["metric"]] for line in measured if line["feature_extractor"] == extractor]
        names = tuple(dict.fromkeys(_metric_of(name) for name in of_it))
        sticks += yardsticks(names, extractor, images, accelerator, cache)
    drawing = open_drawing(ModelConfig(model=model), sampling, accelerator)
    drawing.labels = labels_like(drawing, images.images)
    scores = score(sticks, drawing, n, accelerator, force=True)
    found = {
        (stick.extractor.name, name): (stick.extractor.sha256, measurement)
        for stick, measurements in scores.items()
        for name, measurement in measurements.items()
    }
    for line in measured:
        measure = wanted[line["metric"]]
        sha256, now = found[line["feature_extractor"], measure]
        checks.append(_compare(line, measure, sha256, now, n == stored))
    return checks


def _measure(line: Line) -> str | None:
    """The name in MEASURES behind a line's metric, or None."""
    for names in MEASURES.values():
        for name in names:
            told = results.metric_name(name, line["feature_extractor"], line["n"], line["reference_split"])
            if line["feature_extractor"] and told == line["metric"]:
                return name
    return None


def _metric_of(measure: str) -> str:
    return next(metric for metric, names in MEASURES.items() if measure in names)


def _open_reference(model: str, place: str | None, line: Line, accelerator: Accelerator) -> Reference:
    """What a line was measured against, as `eval/evaluate.py` takes it; ValueError if it is not there."""
    data, seed = trained_on(model)
    data = replace(data, train_split=line["reference_split"], cache_dir=None)
    reference = load_images_of(data, place, seed, accelerator)
    if reference.images.fingerprint != line["data_fingerprint"]:
        raise ValueError(
            f"{line['metric']} was measured against other images than are here: by --reference, name the Hub "
            f"id or the folder of what was {public_name(line['reference'])!r} there"
        )
    return reference


def _compare(line: Line, measure: str, sha256: str | None, now: Measurement, all_seeds: bool) -> Check:
    if sha256 != line["extractor_sha256"]:
        return Check(line, now, None, f"the {line['feature_extractor']} here has other weights")
    difference, interval = abs(now.value - line["value"]), line["interval"]
    if all_seeds:
        share = OF_INTERVAL * (interval[1] - interval[0]) if interval else IMAGES / line["n"]
        agrees = difference <= max(RELATIVE * abs(line["value"]), share)
        return Check(line, now, agrees, "the same" if agrees else "DIFFERS")
    if measure not in FREE_OF_N or interval is None or now.interval is None:
        return Check(line, now, None, "needs all seeds")
    agrees = now.interval[0] <= interval[1] and interval[0] <= now.interval[1]
    told = " and ".join(f"{low:.4g} .. {high:.4g}" for low, high in (interval, now.interval))
    why = "intervals overlap" if agrees else "DIFFERS: intervals do not overlap"
    return Check(line, now, agrees, f"{why}: {told}")


def report(checks: Iterable[Check]) -> str:
    """What was checked, as text."""
    rows = [("metric", "on the card", "now", "n now", "")]
    for check in checks:
        now = ("", "") if check.now is None else (f"{check.now.value:.5g}", str(check.now.n))
        rows.append((check.line["metric"], f"{check.line['value']:.5g}", *now, check.why))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
