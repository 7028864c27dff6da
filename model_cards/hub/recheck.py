"""Do the published weights give the numbers on the card? Sampled and scored in the same way.

Over all stored seeds, a number must come out the same up to rounding: other processors and other batch sizes
round differently, which changes a pixel by a grey level here and there. That moves a number far less than
another sample would. Allowed is 1% of the value or a tenth of the width of its 95% interval, whichever is
larger; for a number without an interval, the tenth is replaced by 2 / n, the weight of two images. Over fewer
seeds, both intervals must overlap; numbers that depend on n cannot be compared then.
"""

import logging
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import snapshot_download

from trilemma.eval.features.judge_files import JudgeChoice
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.metrics.table import METRICS, measure_row, metric_of
from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.eval.scoring import results
from trilemma.eval.scoring.after_training import load_images_of, trained_on
from trilemma.eval.scoring.model_images import labels_like, open_drawing
from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.scoring.yardsticks import Reference, score, yardsticks
from trilemma.model_cards.rendering.contents import read_contents
from trilemma.model_cards.rendering.differences import compare_card
from trilemma.pipelines.files.hub import check_place, patience
from trilemma.pipelines.files.saved import check_loadable, foreign_code
from trilemma.training.devices.ranks import decided, on_all
from trilemma.training.loop.machine import evaluation_accelerator
from trilemma.training.options.flags import public_name
from trilemma.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

DRAW = (*results.SAMPLING, "seeds", "reference", "reference_split", "data_fingerprint")
"""Lines that agree in these were measured on the same samples, against the same images."""

RELATIVE, OF_INTERVAL, IMAGES = 0.01, 0.1, 2


@dataclass(frozen=True)
class Check:
    """A line of the card and what was measured now; `agrees` is None where they cannot be compared."""

    line: ResultLine
    now: Measurement | None
    agrees: bool | None
    why: str


def recheck(
    model: str,
    num_samples: int | None = None,
    reference: str | None = None,
    batch_size: int = 250,
    trust_remote_code: bool = False,
) -> list[Check]:
    """Check every result on the card of a Hub id or folder, over all its seeds or the first `num_samples`.

    `reference` is where the reference data are, if not where config.yaml says; `batch_size` is the number of
    images that a process draws at once. ValueError if the card differs from the files of the model, the
    reference from the one that was used, or, unless `trust_remote_code`, the model's code from the toolkit's.
    """
    accelerator = evaluation_accelerator()
    folder = on_all(accelerator, lambda: _folder_of(model), local_main_first=True)
    decided(accelerator, lambda: _check_code(folder, trust_remote_code))
    lines = decided(accelerator, lambda: _lines_of(folder, model))
    draws: dict[tuple, list[ResultLine]] = {}
    for line in lines:
        draws.setdefault(line.key(DRAW), []).append(line)
    return [
        check
        for lines in draws.values()
        for check in _check_draw(
            ModelConfig(str(folder), batch_size=batch_size), lines, num_samples, reference, accelerator
        )
    ]


def _folder_of(model: str) -> Path:
    """A model's folder; one on the Hub is downloaded without its logs."""
    check_place(model, "--verify")
    if Path(model).is_dir():
        return Path(model)
    config = OutputFolder(Path()).config.name  # says where the logs are
    with patience():
        folder = OutputFolder(Path(snapshot_download(model, allow_patterns=[config])))
        logs = os.path.relpath(folder.logs, folder.path)
        return Path(snapshot_download(model, ignore_patterns=[f"{logs}/*"]))


def _check_code(folder: Path, trusted: bool) -> None:
    """ValueError for code that is not the toolkit's and was not allowed, and for what must not be loaded."""
    index = check_loadable(OutputFolder(folder).index)
    foreign = [] if trusted else foreign_code(index, folder)
    if foreign:
        raise ValueError(
            f"{foreign[0]} comes with the model and differs from what this version of Trilemma ships under "
            "this name: read it, and allow it to run with --trust_remote_code"
        )


def _lines_of(folder: Path, model: str) -> list[ResultLine]:
    """The results on the card, which must agree with the files."""
    comparison = compare_card(folder)
    if comparison.differences:
        hint = (
            "the card differs from the model's files; to check the numbers in the files, copy the folder, "
            "render the copy's card (python -m trilemma.model_cards.card <copy>) and --verify the copy"
        )
        raise ValueError("\n".join([*comparison.differences, hint]))
    if comparison.remark:
        logger.warning("The card of %s: %s", model, comparison.remark)
    return read_contents(folder).lines


def _check_draw(
    model: ModelConfig,
    lines: list[ResultLine],
    num_samples: int | None,
    reference: str | None,
    accelerator: Accelerator,
) -> list[Check]:
    """Check the lines of one set of samples."""
    measured = [line for line in lines if _of_samples(line)]
    checks = [Check(line, None, None, "not measured on samples") for line in lines if line not in measured]
    if not measured:
        return checks
    sampling, stored = _sampling_of(measured[0], num_samples)
    images = _open_reference(model.model, reference, measured[0], accelerator)
    cache = Path(os.environ.get("TRILEMMA_CACHE") or "~/.cache/trilemma").expanduser()
    groups: dict[tuple, list[ResultLine]] = {}
    for line in measured:
        groups.setdefault(line.key(("feature_extractor", "extractor_sha256")), []).append(line)
    sticks = {}
    for (extractor, sha256), lines_of_it in groups.items():
        names = tuple(dict.fromkeys(metric_of(line.measure) for line in lines_of_it))
        judge = JudgeChoice(sha256=sha256, folder=Path(model.model))
        (sticks[extractor, sha256],) = yardsticks(names, extractor, images, accelerator, cache, judge=judge)
    drawing = open_drawing(model, sampling, accelerator)
    drawing.labels = labels_like(drawing, images.images)
    scores = score([*sticks.values()], drawing, sampling.num_samples, accelerator, force=True)
    for key, lines_of_it in groups.items():
        for line in lines_of_it:
            now = scores[sticks[key]][line.measure]
            sha256 = sticks[key].extractor.sha256
            checks.append(_compare(line, sha256, now, sampling.num_samples == stored))
    return checks


def _of_samples(line: ResultLine) -> bool:
    """Whether a metric of METRICS gives this number from samples."""
    metric = metric_of(line.measure)
    return metric is not None and METRICS[metric].needs != ("model",)


def _sampling_of(line: ResultLine, num_samples: int | None) -> tuple[SamplingConfig, int]:
    """How the samples of a line were drawn, the first `num_samples` of them; and how many there were."""
    first, last = map(int, line.seeds.split(".."))
    stored = last - first + 1
    n = stored if num_samples is None else num_samples
    if not 1 < n <= stored:
        raise ValueError(f"--num_samples must be in 2..{stored}, the number of stored seeds; got {n}")
    sampling = SamplingConfig(
        num_samples=n,
        seed=first,
        sampler=line.sampler,
        num_inference_steps=line.num_inference_steps,
        guidance_scale=line.guidance_scale,
        classes=tuple(shlex.split(line.classes or "")) or None,
        mixed_precision=line.mixed_precision,
    )
    return sampling, stored


def _open_reference(model: str, place: str | None, line: ResultLine, accelerator: Accelerator) -> Reference:
    """What a line was measured against, as `eval/evaluate.py` reads it; ValueError if it is other images."""
    data, seed = trained_on(model)
    data = replace(data, cache_dir=None)
    reference = load_images_of(data, place, seed, accelerator, line.reference_split)
    if reference.images.fingerprint != line.data_fingerprint:
        raise ValueError(
            f"{line.metric} was measured against other images than those here: give --reference, the Hub id "
            f"or the folder of the data that were called {public_name(line.reference)!r} there"
        )
    return reference


def _compare(line: ResultLine, sha256: str | None, now: Measurement, all_seeds: bool) -> Check:
    if sha256 != line.extractor_sha256:
        return Check(line, now, None, f"the {line.feature_extractor} here has other weights")
    difference, interval = abs(now.value - line.value), line.interval
    if all_seeds:
        share = OF_INTERVAL * (interval[1] - interval[0]) if interval else IMAGES / line.n
        agrees = difference <= max(RELATIVE * abs(line.value), share)
        return Check(line, now, agrees, "the same" if agrees else "DIFFERS")
    if measure_row(line.measure).depends_on_n or interval is None or now.interval is None:
        return Check(line, now, None, "needs all seeds")
    agrees = now.interval[0] <= interval[1] and interval[0] <= now.interval[1]
    intervals = " and ".join(" .. ".join(map(number, one)) for one in (interval, now.interval))
    why = "intervals overlap" if agrees else "DIFFERS: intervals do not overlap"
    return Check(line, now, agrees, f"{why}: {intervals}")


def report(checks: Iterable[Check]) -> str:
    """What was checked, as text."""
    rows = [("metric", "on the card", "now", "n now", "")]
    for check in checks:
        now = ("", "") if check.now is None else (number(check.now.value, 5), str(check.now.n))
        rows.append((check.line.metric, number(check.line.value, 5), *now, check.why))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
