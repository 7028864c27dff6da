"""The body of `eval/evaluate.py`: what is scored, with which reference, and where the numbers go."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from diffusers import DiffusionPipeline

from trilemma.eval.bounds.bits_per_dim import Likelihood
from trilemma.eval.bounds.result_lines import likelihood_images, likelihood_lines, likelihood_of
from trilemma.eval.features.judge_files import JudgeChoice, judge_folder, keep_judges
from trilemma.eval.metrics.table import METRICS
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring import results
from trilemma.eval.scoring.calibration import calibrate
from trilemma.eval.scoring.file_images import open_images, own_share
from trilemma.eval.scoring.model_images import (
    Drawing,
    default_output,
    drawing_in_memory,
    labels_like,
    open_drawing,
    training_so_far,
)
from trilemma.eval.scoring.reference import READERS, load_reference
from trilemma.eval.scoring.results import Origin, ResultLine
from trilemma.eval.scoring.yardsticks import (
    Reference,
    Yardstick,
    check_samples,
    pick_extractor,
    result_lines,
    score,
    yardsticks,
)
from trilemma.pipelines.files.reading import FileError
from trilemma.training.devices.ranks import (
    decided,
    on_all,
    require_same,
    require_same_code,
    require_same_flags,
)
from trilemma.training.images.folders import existing_folder
from trilemma.training.images.image_set import cache_folder, hold_out, load_images
from trilemma.training.loop.machine import evaluation_accelerator
from trilemma.training.options.groups import DataConfig
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import Progress


class Prepared(NamedTuple):
    """Everything that is known before the first image is drawn: what is scored, and with what."""

    drawing: Drawing | None
    reference: Reference
    sticks: list[Yardstick]
    likelihoods: list[Likelihood]


def evaluate(
    config, model: DiffusionPipeline | None = None, reference: Reference | None = None
) -> list[ResultLine]:
    """Score what the flags of `eval/evaluate.py` name, and record it; collective.

    model, reference: a pipeline and images in memory, in place of --model and --reference. Of a pipeline in
    memory nothing is recorded without --output.
    """
    place = config.output.output or (default_output(config.model.model) if model is None else None)
    path, every = place and Path(place), []
    accelerator = evaluation_accelerator(config.model.cpu_threads)
    prepared = prepare(config, model, reference, path, accelerator)
    if config.output.dry_run:
        accelerator.print(f"no error found: --metrics {' '.join(config.score.metrics)} can be measured")
        return []
    save_reference(config.reference.save_reference, prepared.sticks, accelerator)

    def record(lines: list[ResultLine]) -> None:
        said = f"{results.heading(lines)}\n{results.table(lines)}"
        accelerator.print(said, flush=True)  # first, so that no disk can take it away
        decided(accelerator, lambda: path and results.append(path, lines))
        every.extend(lines)

    drawing, reference, sticks, likelihoods = prepared
    if sticks:
        with Progress("scoring", show=accelerator.is_main_process):
            new = sample_lines(config, drawing, sticks, accelerator)
        record(new)
        with Progress("scoring real images, blurred ones and noise", show=accelerator.is_main_process):
            n = min(config.reference.calibration_images, new[0].n)
            if meaning := calibrate(sticks, reference, n, accelerator):
                accelerator.print(meaning, flush=True)
        beside_model = config.model.model and path == OutputFolder(Path(config.model.model)).results
        if beside_model:
            judges = [stick.extractor.file for stick in sticks]
            decided(accelerator, lambda: keep_judges(OutputFolder(path.parent), judges))
    for likelihood in likelihoods:
        record(likelihood_lines(config, drawing, likelihood, reference, accelerator))
    if path:
        accelerator.print(f"added to {path}")
    return every


def prepare(
    config,
    model: DiffusionPipeline | None,
    reference: Reference | None,
    path: Path | None,
    accelerator: Accelerator,
) -> Prepared:
    """Open model, reference and extractors; all that can be refused is refused here. Collective."""
    of_samples, of_model = check_flags(config, model is not None)
    require_same_flags(accelerator, config)
    require_same_code(accelerator)
    decided(accelerator, lambda: path and results.check_writable(path))  # now, not when all is measured
    drawing, main = None, accelerator.is_main_process
    if model is not None:
        drawing = drawing_in_memory(model, config.sampling, config.model.batch_size, accelerator)
    if config.model.model:
        with Progress("loading the model", show=main):
            drawing = on_all(accelerator, lambda: open_drawing(config.model, config.sampling, accelerator))
    likelihoods = [likelihood_of(name, drawing, config) for name in of_model]
    with Progress("reading the reference", show=main):
        reference = reference or open_reference(config, accelerator)
    if drawing:
        drawing.labels = labels_like(drawing, reference.images)
    for likelihood in likelihoods:
        likelihood.check(*likelihood_images(config, reference).values())
    with Progress("preparing the evaluation", show=main):
        sticks = open_yardsticks(config, of_samples, reference, accelerator)
    if drawing:
        check_samples(sticks, config.sampling.num_samples, drawing.labels is not None, config.score.force)
    return Prepared(drawing, reference, sticks, likelihoods)


def check_flags(config, has_model: bool = False) -> tuple[list[str], list[str]]:
    """Names of the metrics of samples, and of those of the model itself; ValueError for flags that clash.

    has_model: whether a model is given in memory.
    """
    has_model = has_model or config.model.model is not None
    if has_model == (config.images.images is not None):
        raise ValueError("give one of --model and --images")
    given = [f.name for f in fields(SamplingConfig) if getattr(config.sampling, f.name) != f.default]
    if given and not has_model:
        raise ValueError(f"--{given[0]} is for images that a --model draws; of --images all are scored")
    names = tuple(dict.fromkeys(config.score.metrics))  # each once
    of_model = [name for name in names if METRICS[name].needs == ("model",)]
    if of_model and not has_model:
        raise ValueError(f"--metrics {of_model[0]} needs a --model")
    of_samples = [name for name in names if name not in of_model]
    for name in ("compile", "mixed_precision"):
        if name in given and not of_samples:
            raise ValueError(f"--{name} has no effect on --metrics {' '.join(of_model)}; leave it out")
    if config.reference.save_reference and not of_samples:
        raise ValueError(
            "--save_reference writes the statistics of features, and none of these --metrics uses features"
        )
    return of_samples, of_model


def open_yardsticks(
    config, names: list[str], reference: Reference, accelerator: Accelerator
) -> list[Yardstick]:
    """The yardsticks of these metrics, with the extractor of the flags or the usual one; collective."""
    if not names:
        return []
    cache, weights = cache_folder(config.reference.cache_dir), config.score.extractor_weights
    judge = choose_judge(config, reference, accelerator)
    extractor = config.score.feature_extractor
    extractor = extractor or (
        "inception" if weights else decided(accelerator, lambda: pick_extractor(reference, cache, judge))
    )
    return yardsticks(names, extractor, reference, accelerator, cache, weights, judge)


def choose_judge(config, reference: Reference, accelerator: Accelerator) -> JudgeChoice:
    """The judge of the flags; else that of the statistics, of the model, or of the data."""
    protocol = reference.statistics and reference.statistics.protocol
    folder = on_all(accelerator, lambda: judge_folder(config.model.model), local_main_first=True)
    return JudgeChoice(config.score.judge, protocol and protocol.extractor_sha256, folder)


def save_reference(place: str | None, sticks: list[Yardstick], accelerator: Accelerator) -> None:
    """Write the statistics of the first yardstick where --save_reference says; collective."""
    if place:
        target, statistics = Path(place), sticks[0].reference
        save = statistics.save_npz if target.suffix == ".npz" else statistics.save
        decided(accelerator, lambda: save(target))


def sample_lines(
    config, drawing: Drawing | None, sticks: list[Yardstick], accelerator: Accelerator
) -> list[ResultLine]:
    """Lines of the metrics of samples, of a model or from files; collective."""
    force = config.score.force
    if drawing:
        scores = score(sticks, drawing, config.sampling.num_samples, accelerator, force)
        origin = drawing.origin(*training_so_far(config.model.model))
    else:
        images = on_all(accelerator, lambda: open_images(config.images.images))
        scores = score(sticks, own_share(images, accelerator), len(images), accelerator, force)
        origin = Origin(source=images.path.resolve().name, n=len(images))
    return result_lines(scores, origin, force)


def open_reference(config, accelerator: Accelerator) -> Reference:
    """The reference of the flags, or the images that the model was trained on."""
    flags = config.reference
    is_file = flags.reference and not Path(flags.reference).is_dir()
    if is_file and Path(flags.reference).suffix in READERS:
        read = partial(load_reference, flags.reference, flags.reference_n)
        return Reference(None, statistics=on_all(accelerator, read))
    data, seed = DataConfig(), 0
    if flags.reference is None:
        data, seed = on_all(accelerator, lambda: trained_on(config.model.model))
    changes = {
        "resolution": flags.resolution,
        "image_column": flags.image_column,
        "label_column": flags.label_column,
        "cache_dir": flags.cache_dir,
    }
    data = replace(data, **{name: value for name, value in changes.items() if value is not None})
    return load_images_of(data, flags.reference, seed, accelerator, flags.split)


def load_images_of(
    data: DataConfig, place: str | None, seed: int, accelerator: Accelerator, split: str | None = None
) -> Reference:
    """The images of these options, from `place` (a folder, or else a Hub id) if it is not None, and held-out
    ones: those of the validation, or else the test split where there is one.

    split: the split to read. If it is not the one that these options train on, nothing is taken from it for
    validation.
    """
    trained = split in (None, data.train_split)
    data = data if trained else replace(data, train_split=split)
    if place and existing_folder(place).is_dir():
        data = replace(data, train_data_dir=place)
    elif place:
        data = replace(data, train_data_dir=None, dataset_name=place)

    def read() -> Reference:
        images, held_out = load_images(data), None
        if trained and data.validation_split:
            alike = replace(data, channels=images.channels, resolution=images.resolution)
            held_out = load_images(alike, data.validation_split)
        elif trained and data.validation_size:
            images, held_out = hold_out(images, data.validation_size, seed)
        elif images.split == "train":
            with suppress(ValueError):  # data without such a split have nothing held out
                held_out = load_images(replace(data, channels=images.channels), "test")
        return Reference(images, held_out)

    with naming_reference(place):
        reference = on_all(accelerator, read, local_main_first=True)
    prints = {"images of the reference": reference.images.fingerprint}
    require_same(accelerator, prints, "the data must be the same on all machines")
    return reference


@contextmanager
def naming_reference(place: str | None) -> Iterator[None]:
    """Where the place of the data was typed as --reference, errors in the block say so."""
    try:
        yield
    except ValueError as problem:
        said = re.sub("--(train_data_dir|dataset_name)", "--reference", str(problem))
        if place is None or said == str(problem):
            raise
        raise ValueError(said) from problem


def trained_on(model: str | None) -> tuple[DataConfig, int]:
    """The data options and the seed in the config.yaml beside a model."""
    values: dict[str, Any] = OutputFolder(Path(model)).read_config() if model else {}
    if not values:
        raise ValueError(
            "--reference must name a data set or a statistics file: there is no config.yaml beside the model "
            "that says what it was trained on"
        )
    names = DataConfig.__dataclass_fields__
    options = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in names}
    if "seed" not in values:
        raise FileError(OutputFolder(Path(model)).config, "lacks the seed")
    if not (values.get("dataset_name") or values.get("train_data_dir")):
        raise ValueError("--reference must name the data: a script trained this model on images in memory")
    return DataConfig(**options), values["seed"]
