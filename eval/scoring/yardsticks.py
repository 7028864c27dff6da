"""Scoring: images in, measurements out, in one pass. Each process scores its share.

A `Yardstick` is one extractor with the statistics of the reference under it and the metrics that use them.
The same yardsticks score during training and after it, samples of a model and folders of images.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trilemma.eval.features.classifier import judge_in_words
from trilemma.eval.features.extractors import FeatureExtractor, load_extractor
from trilemma.eval.features.inception import WEIGHTS_FILE, WEIGHTS_VARIABLE
from trilemma.eval.features.judge_files import BY_DATA, JudgeChoice, check_classes, has_classes
from trilemma.eval.metrics.build import REMEDIES, build_metrics
from trilemma.eval.metrics.sample_metric import FixedSubset, Measurement, SampleMetric
from trilemma.eval.metrics.table import METRICS
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.reference import (
    ReferenceCollector,
    ReferenceStatistics,
    cache_path,
    cached_reference,
)
from trilemma.eval.scoring.results import Origin, ResultLine, lines
from trilemma.pipelines.shared import exact_device
from trilemma.training.devices.ranks import on_all
from trilemma.training.images.image_set import Images
from trilemma.training.loop.machine import commit
from trilemma.training.progress import each

BATCH = 250
JUDGE = "classifier"
"""The extractor of metrics that judge, whatever the others use."""

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Indices (B,) int64, images uint8 (B, C, H, W), labels (B,) int64 or None."""


@dataclass(frozen=True)
class Yardstick:
    """An extractor, the reference's statistics under it, and the names of METRICS that use them."""

    extractor: FeatureExtractor
    reference: ReferenceStatistics
    protocol: ReferenceProtocol
    names: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """The reference: the images trained on and others that were not, or a statistics file."""

    images: Images | None
    held_out: Images | None = None
    statistics: ReferenceStatistics | None = None


def yardsticks(
    metrics: Sequence[str],
    extractor: str,
    reference: Reference,
    accelerator: Accelerator,
    cache: Path,
    weights: str | None = None,
    judge: JudgeChoice = BY_DATA,
) -> list[Yardstick]:
    """Everything that scoring these metrics of samples needs, computed or from the cache; collective."""
    for name in metrics:  # before a classifier is trained for minutes
        if "heldout" in METRICS[name].parts and reference.images is not None and reference.held_out is None:
            raise ValueError(f"--metrics {name} needs {REMEDIES['heldout']}")
    groups: dict[str, list[str]] = {extractor: []}
    for name in sorted(metrics, key=lambda name: METRICS[name].judge):  # judges last, else as they were named
        groups.setdefault(JUDGE if METRICS[name].judge else extractor, []).append(name)
    sticks = []
    for kind, names in groups.items():
        if not names:
            continue
        source = weights if kind == extractor else None
        at = {"weights": source, "reference": reference.images, "cache_dir": str(cache), "judge": judge}
        load = partial(load_extractor, kind, **at)
        net = on_all(accelerator, load, local_main_first=True)
        if net.judge_data:
            accelerator.print(
                f"The classifier was trained on {net.judge_data}, not on the images of "
                f"{reference.images.name}; results say so"
            )
        if net.judge_accuracy is not None:
            accelerator.print(judge_in_words(net.judge_accuracy, net.num_classes), flush=True)
        for name in names:
            if METRICS[name].judge and "labels" in METRICS[name].needs and reference.images is not None:
                check_classes(reference.images, net.num_classes, name)
        _check_equal([net.sha256], f"the {kind} extractor's weights")
        net = net.to(accelerator.device)
        if reference.statistics is not None and kind == extractor:
            sticks.append(_of_file(net, reference.statistics, names))
        elif reference.images is None:
            raise ValueError(f"--metrics {names[0]} needs the data set itself as --reference, not a file")
        else:
            sticks.append(_of_images(net, reference, names, accelerator, cache))
    return sticks


def _of_images(
    net: FeatureExtractor, reference: Reference, names: list[str], accelerator: Accelerator, cache: Path
) -> Yardstick:
    """A yardstick over a set of images, with the features of held-out ones if a metric needs them."""
    keep = max(METRICS[name].keep for name in names)
    statistics = reference_statistics(reference.images, net, accelerator, keep, cache)
    if any("heldout" in METRICS[name].parts for name in names) and reference.held_out is not None:
        others = reference_statistics(reference.held_out, net, accelerator, len(reference.held_out), cache)
        statistics = replace(statistics, heldout=others.features)
    labels = reference.images.labels
    if any("labels" in METRICS[name].parts for name in names) and labels is not None:
        rows = FixedSubset(len(labels), keep).members
        statistics = replace(statistics, labels=torch.from_numpy(labels)[rows])
    return Yardstick(net, statistics, statistics.protocol, tuple(names))


def pick_extractor(reference: Reference, cache: Path, judge: JudgeChoice = BY_DATA) -> str:
    """Pixels for points of the plane; Inception if its weights are here; else the classifier, if it is named
    or the data have labels to train it on.
    """
    if reference.statistics is not None:
        made_with = reference.statistics.protocol
        return made_with.extractor if made_with else "inception"
    if reference.images.points:
        return "pixels"
    if os.environ.get(WEIGHTS_VARIABLE) or (cache / WEIGHTS_FILE).is_file():
        return "inception"
    if judge.name is not None or has_classes(reference.images):
        return JUDGE
    raise ValueError(
        "name a feature extractor: there are no Inception weights on this machine, and the data have no "
        "labels of two classes or more to train a classifier on"
    )


def _of_file(net: FeatureExtractor, statistics: ReferenceStatistics, names: list[str]) -> Yardstick:
    """A yardstick over a statistics file; its protocol must be this extractor's, if it has one."""
    recorded = statistics.protocol
    protocol = ReferenceProtocol(
        extractor=net.name,
        extractor_sha256=net.sha256,
        resize=net.resize,
        quantisation="uint8",
        data=recorded.data if recorded else "statistics file",
        split=recorded.split if recorded else "unknown",
        data_fingerprint=recorded.data_fingerprint if recorded else "unknown",
        flips=recorded.flips if recorded else False,
        n=recorded.n if recorded else statistics.gaussian.n or 0,
        whole=recorded.whole if recorded else False,
    )
    statistics.check(protocol)
    return Yardstick(net, statistics, protocol, tuple(names))


def reference_statistics(
    images: Images, extractor: FeatureExtractor, accelerator: Accelerator, keep: int, cache: Path
) -> ReferenceStatistics:
    """Statistics of a set of images, from the cache or computed now, each rank its share; collective."""
    protocol = ReferenceProtocol(
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        resize=extractor.resize,
        quantisation="uint8",
        data=images.name,
        split=images.split,
        data_fingerprint=images.fingerprint,
        flips=False,
        n=len(images),
        whole=images.whole,
    )
    keep = min(keep, len(images))
    path = cache_path(cache / "references", protocol, keep)
    cached = on_all(accelerator, lambda: cached_reference(path, protocol, keep))
    if all(gather_object([cached is not None])):
        return cached
    collector = ReferenceCollector(len(images), extractor.dim, extractor.num_classes or 0, keep)
    collector = collector.to(exact_device(accelerator.device))
    for index, pixels, _ in image_batches(images, accelerator, f"{extractor.name} features of {images.name}"):
        features, logits = extractor(pixels.to(accelerator.device))
        logits = None if logits is None else logits.to(collector.device)
        collector.update(index, features.to(collector.device), logits)
    statistics = collector.statistics(protocol)
    on_all(accelerator, lambda: statistics.save(path) if accelerator.is_local_main_process else None)
    return statistics


def image_batches(images: Images, accelerator: Accelerator, what: str) -> Iterator[Batch]:
    """This rank's share of a set of images, in batches, under a progress bar."""
    share = torch.arange(len(images))[accelerator.process_index :: accelerator.num_processes]
    chunks = share.split(BATCH)
    for index in each(chunks, what, len(chunks), "batch", show=accelerator.is_main_process):
        yield index, *images.__getitems__(index)


def score(
    sticks: Sequence[Yardstick],
    batches: Iterable[Batch],
    n: int,
    accelerator: Accelerator,
    force: bool = False,
) -> dict[Yardstick, dict[str, Measurement]]:
    """Score n images, of which each rank brings its share; the same numbers on every rank; collective.

    ValueError for fewer samples than features where a metric needs at least that number, unless forced.
    """
    check_samples(sticks, n, True, force)
    metrics = {}
    for stick in sticks:
        built = build_metrics(stick.names, stick.reference, n)
        device = exact_device(accelerator.device)  # metrics are sums in float64
        metrics[stick] = {name: metric.to(device) for name, metric in built.items()}
    for index, images, labels in batches:
        images = images.to(accelerator.device)
        for stick, built in metrics.items():
            _update(stick, built, index, images, labels)
    return {
        stick: {name: m for metric in built.values() for name, m in metric.compute().items()}
        for stick, built in metrics.items()
    }


def check_samples(sticks: Sequence[Yardstick], n: int, labelled: bool, force: bool) -> None:
    """ValueError for a metric that n samples, with labels or without, do not suffice for."""
    for stick in sticks:
        dim, few = stick.extractor.dim, _too_few_for(stick, n)
        if few and not force:
            raise ValueError(
                f"--metrics {few[0]} over {dim} {stick.extractor.name} features needs {dim} images or more "
                f"(--num_samples); got {n}. --force measures it nevertheless and marks the result as forced"
            )
        if not labelled:
            for name in stick.names:
                _check_needs(stick, name, [need for need in METRICS[name].needs if need == "labels"])


def _check_needs(stick: Yardstick, name: str, missing: Sequence[str]) -> None:
    if missing:
        raise ValueError(
            f"--metrics {name} needs {missing[0]}, and there are none: labels come with samples of "
            f"class-conditional models, and logits from an extractor with classes"
            f" (this one is {stick.extractor.name})"
        )


def _update(
    stick: Yardstick, metrics: dict[str, SampleMetric], index: Tensor, images: Tensor, labels: Tensor | None
) -> None:
    """Show a batch to the metrics of a yardstick."""
    output = stick.extractor(images)
    inputs = {"features": output.features, "logits": output.logits, "labels": labels}
    for name, metric in metrics.items():
        _check_needs(stick, name, [need for need in METRICS[name].needs if inputs[need] is None])
        metric.update(index, *(inputs[need].to(metric.device) for need in METRICS[name].needs))


def result_lines(
    scores: dict[Yardstick, dict[str, Measurement]], origin: Origin, forced: bool
) -> list[ResultLine]:
    """The lines of `results.jsonl` of a scoring; `forced` marks those that would have been refused."""
    new = []
    for stick, measurements in scores.items():
        few = _too_few_for(stick, origin.n) if forced else []
        new += lines(
            measurements,
            origin,
            stick.protocol,
            commit=commit(),
            forced={measure for name in few for measure in METRICS[name].measures},
            judge_accuracy=stick.extractor.judge_accuracy,
            judge_data=stick.extractor.judge_data,
        )
    return new


def _too_few_for(stick: Yardstick, n: int) -> list[str]:
    """Metrics of a yardstick that need a sample for each feature, and have fewer samples."""
    return [name for name in stick.names if METRICS[name].full_rank and n < stick.extractor.dim]


def _check_equal(values: list[str], what: str) -> None:
    if len(set(gather_object(values))) > 1:
        raise ValueError(
            f"{what} differ between processes: share the cache between machines (TRILEMMA_CACHE), or name "
            "one file with --extractor_weights"
        )
