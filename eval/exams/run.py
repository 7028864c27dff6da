"""The body of `eval/exam.py`: the sets, their scores, which are kept as they come, and the report."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import trilemma
from trilemma.eval.exams.harms import HARMS
from trilemma.eval.exams.report import PERFECT, Exam, case_of, figure, page
from trilemma.eval.exams.sets import REPEATS, Draw, Samples, split
from trilemma.eval.features.judge_files import JudgeChoice
from trilemma.eval.metrics.table import METRICS
from trilemma.eval.scoring.after_training import naming_reference
from trilemma.eval.scoring.calibration import able
from trilemma.eval.scoring.yardsticks import (
    BATCH,
    JUDGE,
    Batch,
    Reference,
    Yardstick,
    pick_extractor,
    score,
    yardsticks,
)
from trilemma.pipelines.files.reading import read_json
from trilemma.pipelines.files.writing import write_json, write_text, written
from trilemma.training.devices.ranks import decided, on_all, require_same_flags
from trilemma.training.images.folders import existing_folder
from trilemma.training.images.image_set import Images, cache_folder, load_images
from trilemma.training.loop.machine import commit, evaluation_accelerator, hardware
from trilemma.training.options.groups import DataConfig
from trilemma.training.progress import Progress

JUDGES = "judge"
"""The group of the measures that need a judge: they use the classifier for any --feature_extractor."""


def examine(config) -> None:
    """Do what the flags of `eval/exam.py` ask for; collective."""
    accelerator = evaluation_accelerator(config.exam.cpu_threads)
    require_same_flags(accelerator, config)
    images = on_all(accelerator, lambda: reference_images(config.reference), local_main_first=True)
    if images.points:
        raise ValueError(f"--reference {images.name} has points of the plane; an exam needs images")
    reference, draws = split(images, config.exam.num_samples, config.exam.seed)
    groups, left_out = examined(config, reference, draws[0], accelerator)
    accelerator.print(
        f"{len(draws)} sets of {draws[0].n:,} images of {images.name} against {len(reference.images):,} "
        f"others, {len(reference.held_out):,} more held out"
    )
    if left_out:
        accelerator.print(f"left out: {', '.join(left_out)}")
    if config.exam.dry_run:
        return
    folder = Path(config.exam.output_dir or f"outputs/exam-{Path(images.name).name}")
    exam = Exam(_settings(config, images, reference, draws, groups))
    decided(accelerator, lambda: folder.mkdir(parents=True, exist_ok=True))
    exam.values, exam.seconds = decided(accelerator, lambda: _earlier(folder / "exam.json", exam))
    _score_all(exam, draws, groups, folder / "exam.json", accelerator)
    decided(accelerator, lambda: _write(exam, folder, hardware(accelerator)))
    accelerator.print(f"{exam.summary()}\nwritten to {folder}")


def reference_images(flags) -> Images:
    """The images of the flags of the reference: 'digits', a folder or a Hub id."""
    names = ("resolution", "image_column", "label_column", "cache_dir")
    values = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    place = "train_data_dir" if existing_folder(flags.reference).is_dir() else "dataset_name"
    with naming_reference(flags.reference):
        return load_images(DataConfig(**{place: flags.reference}, **values), flags.split)


def examined(
    config, reference: Reference, draw: Draw, accelerator: Accelerator
) -> tuple[dict[str, Yardstick], list[str]]:
    """A yardstick for each extractor, and for the judge, and what cannot be measured; collective."""
    flags, cache = config.score, cache_folder(config.reference.cache_dir)
    judge, labelled = JudgeChoice(flags.judge), draw.pool.labels is not None
    extractors = flags.feature_extractor or _extractors(reference, cache, judge)
    names = flags.metrics or _all_metrics(labelled or flags.judge is not None)
    groups, left_out = {}, []
    for extractor in extractors:
        weights = flags.extractor_weights if extractor == extractors[0] else None
        for kind, mine in (
            (extractor, [name for name in names if not METRICS[name].judge]),
            (JUDGES, [name for name in names if METRICS[name].judge and JUDGES not in groups]),
        ):
            used = extractor if kind == extractor else JUDGE
            made = yardsticks(mine, used, reference, accelerator, cache, weights, judge) if mine else []
            for stick in made:
                kept = tuple(name for name in able(stick, draw.n, labelled) if _has_logits(stick, name))
                groups[kind] = replace(stick, names=kept)
                left_out += [f"{name} of {kind}" for name in stick.names if name not in kept]
    groups = {kind: stick for kind, stick in groups.items() if stick.names}
    if not groups:
        raise ValueError(f"--metrics: nothing can be examined here: {', '.join(left_out)}")
    return groups, left_out


def _extractors(reference: Reference, cache: Path, judge: JudgeChoice) -> tuple[str, ...]:
    """The extractor that an evaluation would choose, if it finds one, and pixels."""
    with suppress(ValueError):
        return tuple(dict.fromkeys((pick_extractor(reference, cache, judge), "pixels")))
    return ("pixels",)


def _all_metrics(judged: bool) -> tuple[str, ...]:
    """The metrics of samples that promise something."""
    return tuple(
        name
        for name, row in METRICS.items()
        if row.needs != ("model",)
        and (judged or not row.judge)
        and any(measure.promised for measure in row.measures.values())
    )


def _has_logits(stick: Yardstick, name: str) -> bool:
    return "logits" not in METRICS[name].needs or stick.extractor.num_classes is not None


def _settings(config, images: Images, reference: Reference, draws: list[Draw], groups) -> dict[str, Any]:
    """Settings that must agree before the scores of an earlier run are used."""
    return {
        "reference": images.name,
        "split": images.split,
        "data_fingerprint": images.fingerprint,
        "training_images": len(reference.images),
        "held_out_images": len(reference.held_out),
        "num_samples": draws[0].n,
        "sets": REPEATS,
        "seed": config.exam.seed,
        "groups": {kind: [stick.extractor.sha256, *stick.names] for kind, stick in groups.items()},
        "harms": {name: list(harm.levels) for name, harm in HARMS.items()},
        "version": trilemma.__version__,
        "commit": commit(),
    }


def _earlier(path: Path, exam: Exam) -> tuple[dict, float]:
    """The scores of an earlier run of the same exam, and its seconds; ValueError if it was another one."""
    if not path.is_file():
        return {}, 0.0
    kept = read_json(path, remedy="delete it, or give another --output_dir")
    before = kept.get("settings", {})
    different = [
        "choice of measures or extractors" if name == "groups" else name.replace("_", " ")
        for name, value in exam.settings.items()
        if before.get(name) != value
    ]
    if different:
        raise ValueError(
            f"--output_dir {str(path.parent)!r} holds an exam with another {', '.join(different)}: "
            "give another folder, or delete its exam.json"
        )
    return kept["values"], kept["seconds"]


def _score_all(
    exam: Exam, draws: list[Draw], groups: dict[str, Yardstick], path: Path, accelerator: Accelerator
) -> None:
    """Score the cases that no earlier run has scored; a case is kept when all its sets are scored."""
    cases = {case_of(PERFECT): (lambda draw, _: draw.own, 0.0)}
    labelled = draws[0].pool.labels is not None
    for name, harm in HARMS.items():
        if harm.hurts != "classes" or labelled:
            cases |= {case_of(name, level): (harm.make, level) for level in harm.levels}
    todo = {case: made for case, made in cases.items() if case not in exam.values}
    with Progress("scoring", len(todo) * len(draws), "set", show=accelerator.is_main_process) as progress:
        for case, (make, level) in todo.items():
            began, found = time.monotonic(), {}
            for draw in draws:
                for kind, measures in _estimates(groups, make(draw, level), accelerator).items():
                    for measure, value in measures.items():
                        found.setdefault(kind, {}).setdefault(measure, []).append(value)
                progress.update()
            exam.values[case] = found
            exam.seconds += time.monotonic() - began
            decided(accelerator, lambda: write_json(path, exam.as_json(hardware(accelerator))))


def _estimates(
    groups: dict[str, Yardstick], samples: Samples, accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """The estimate of each measure for which there are enough samples, by group; not those of each class,
    of which some may have too few.
    """
    named = {name for row in METRICS.values() for name in row.measures}
    n, labelled = len(samples.pixels), samples.labels is not None
    sticks = {kind: replace(stick, names=able(stick, n, labelled)) for kind, stick in groups.items()}
    scores = score(list(sticks.values()), _batches(samples, accelerator), n, accelerator)
    return {
        kind: {measure: one.estimate for measure, one in scores[stick].items() if measure in named}
        for kind, stick in sticks.items()
    }


def _batches(samples: Samples, accelerator: Accelerator) -> Iterator[Batch]:
    """This rank's share of the samples."""
    share = torch.arange(len(samples.pixels))[accelerator.process_index :: accelerator.num_processes]
    for index in share.split(BATCH):
        yield index, *samples.take(index)


def _write(exam: Exam, folder: Path, machine: dict[str, Any]) -> None:
    write_json(folder / "exam.json", exam.as_json(machine))
    write_text(folder / "exam.md", page(exam))
    with written(folder / "exam.png") as file:
        figure(exam).savefig(file, format="png", dpi=110)
