"""Scoring: images in, measurements out, in one pass that holds no images, each process its share.

A `Yardstick` is one extractor with the statistics of the reference under it and the metrics that use them.
The same yardsticks score during training and after it, samples of a model and folders of images.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from trilemma.eval.features.extractors import FeatureExtractor, load_extractor
from trilemma.eval.features.inception import WEIGHTS_FILE, WEIGHTS_VARIABLE
from trilemma.eval.metrics.distances import METRICS, build_metrics
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.scoring.reference import (
    Protocol,
    ReferenceCollector,
    ReferenceStatistics,
    cache_path,
    load_reference,
)
from trilemma.eval.scoring.results import Origin, lines
from trilemma.training.images.image_set import Images
from trilemma.training.loop.machine import commit

BATCH = 250
JUDGED_METRICS = ("class_accuracy", "modes")
"""Metrics of the classifier, whatever extractor the others use."""

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Indices (B,) int64, images uint8 (B, C, H, W), labels (B,) int64 or None."""


@dataclass(frozen=True)
class Yardstick:
    """An extractor, the reference's statistics under it, and the names of METRICS that use them."""

    extractor: FeatureExtractor
    reference: ReferenceStatistics
    protocol: Protocol
    names: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """What is compared with: the images trained on and others that were not, or a statistics file."""

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
) -> list[Yardstick]:
    """Everything that scoring needs, computed or from the cache; collective."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"--metrics must be of bpd, {', '.join(METRICS)}; got {unknown[0]!r}")
    judged = [name for name in metrics if name in JUDGED_METRICS]
    groups = {extractor: [name for name in metrics if name not in JUDGED_METRICS]}
    groups["classifier"] = groups.get("classifier", []) + judged
    made = []
    for kind, names in groups.items():
        if not names:
            continue
        with accelerator.local_main_process_first():
            given = weights if kind == extractor else None
            net = load_extractor(kind, weights=given, reference=reference.images, cache_dir=str(cache))
        _check_equal([net.sha256], f"the {kind} extractor's weights")
        net = net.to(accelerator.device)
        keep = max(METRICS[name].keep for name in names)
        if reference.statistics is not None and kind == extractor:
            made.append(_of_file(net, reference.statistics, names))
            continue
        if reference.images is None:
            raise ValueError(f"--metrics {names[0]} needs the data set itself as --reference, not a file")
        statistics = reference_statistics(reference.images, net, accelerator, keep, cache)
        if any("heldout" in METRICS[name].parts for name in names) and reference.held_out is not None:
            others = reference_statistics(
                reference.held_out, net, accelerator, len(reference.held_out), cache
            )
            statistics = replace(statistics, heldout=others.features)
        made.append(Yardstick(net, statistics, statistics.protocol, tuple(names)))
    return made


def pick_extractor(reference: Reference, cache: Path) -> str:
    """Inception where its weights are at hand, else the classifier where there are labels to train it on."""
    if reference.statistics is not None:
        known = reference.statistics.protocol
        return known.extractor if known else "inception"
    if reference.images.resolution == 1:  # points of the plane are features as they are
        return "pixels"
    if os.environ.get(WEIGHTS_VARIABLE) or (cache / WEIGHTS_FILE).is_file():
        return "inception"
    if reference.images.labels is not None:
        return "classifier"
    raise ValueError(
        "name a feature extractor: no Inception weights are at hand, and the data have no labels"
    )


def _of_file(net: FeatureExtractor, statistics: ReferenceStatistics, names: list[str]) -> Yardstick:
    """A yardstick over a statistics file; its protocol must be this extractor's, if it has one."""
    known = statistics.protocol
    protocol = Protocol(
        extractor=net.name,
        extractor_sha256=net.sha256,
        resize=net.resize,
        quantisation="uint8",
        data=known.data if known else "statistics file",
        split=known.split if known else "unknown",
        data_fingerprint=known.data_fingerprint if known else "unknown",
        flips=known.flips if known else False,
        n=known.n if known else statistics.gaussian.n or 0,
        whole=known.whole if known else False,
    )
    statistics.check(protocol)
    return Yardstick(net, statistics, protocol, tuple(names))


def reference_statistics(
    images: Images, extractor: FeatureExtractor, accelerator: Accelerator, keep: int, cache: Path
) -> ReferenceStatistics:
    """Statistics of a set of images, from the cache or made now, each rank its share; collective."""
    protocol = Protocol(
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
    path = cache_path(cache / "references", protocol, min(keep, len(images)))
    if all(gather_object([path.exists()])):
        return load_reference(path)
    collector = ReferenceCollector(len(images), extractor.dim, extractor.num_classes or 0, keep)
    collector = collector.to(accelerator.device)
    for index, pixels, _ in image_batches(images, accelerator, f"{extractor.name} features of {images.name}"):
        features = extractor(pixels.to(accelerator.device))
        collector.update(index, features.features, features.logits)
    statistics = collector.statistics(protocol)
    if accelerator.is_local_main_process:
        statistics.save(path)
    accelerator.wait_for_everyone()
    return statistics


def image_batches(images: Images, accelerator: Accelerator, what: str) -> Iterator[Batch]:
    """This rank's share of a set of images, in batches, under a progress bar."""
    share = torch.arange(len(images))[accelerator.process_index :: accelerator.num_processes]
    chunks = share.split(BATCH)
    for index in tqdm(chunks, desc=what, unit="batch", disable=None if accelerator.is_main_process else True):
        yield index, *images.__getitems__(index)


def score(
    sticks: Sequence[Yardstick],
    batches: Iterable[Batch],
    n: int,
    accelerator: Accelerator,
    force: bool = False,
) -> dict[Yardstick, dict[str, Measurement]]:
    """Score n images, of which each rank brings its share; the same numbers on every rank; collective.

    ValueError when a Frechet distance would rest on fewer samples than features, unless forced.
    """
    metrics = {}
    for stick in sticks:
        if "fd" in stick.names and n < stick.extractor.dim and not force:
            raise ValueError(
                f"a Frechet distance over {stick.extractor.dim} {stick.extractor.name} features means little "
                f"with {n} images: take {stick.extractor.dim} or more (--num_samples), or --force it, marked"
            )
        built = build_metrics(stick.names, stick.reference, n)
        metrics[stick] = {name: metric.to(accelerator.device) for name, metric in built.items()}
    for index, images, labels in batches:
        images = images.to(accelerator.device)
        for stick, built in metrics.items():
            features = stick.extractor(images)
            given = {"features": features.features, "logits": features.logits, "labels": labels}
            for name, metric in built.items():
                missing = [need for need in METRICS[name].needs if given[need] is None]
                if missing:
                    raise ValueError(
                        f"--metrics {name} needs {missing[0]}, and there are none: class_accuracy is for "
                        f"class-conditional models, and {stick.extractor.name} may give no logits"
                    )
                metric.update(index, *(given[need] for need in METRICS[name].needs))
    return {
        stick: {name: m for metric in built.values() for name, m in metric.compute().items()}
        for stick, built in metrics.items()
    }


def result_lines(
    scores: dict[Yardstick, dict[str, Measurement]], origin: Origin, forced: bool
) -> list[dict[str, object]]:
    """The lines of `results.jsonl` of a scoring; `forced` marks those that would have been refused."""
    told = []
    for stick, measurements in scores.items():
        few = forced and origin.n < stick.extractor.dim
        told += lines(
            measurements,
            origin,
            stick.protocol,
            commit=commit(),
            forced=("fd",) if few else (),
            judge_accuracy=stick.extractor.judge_accuracy,
        )
    return told


def _check_equal(values: list[str], what: str) -> None:
    if len(set(gather_object(values))) > 1:
        raise ValueError(
            f"{what} differ between processes: share the cache between machines (TRILEMMA_CACHE), or name "
            "one file with --extractor_weights"
        )
