"""The body of `eval/evaluate.py`: what is scored, what with, and where the numbers go."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from trilemma.eval.bounds.bits_per_dim import bits_per_dim
from trilemma.eval.scoring import results
from trilemma.eval.scoring.file_images import open_images, own_share
from trilemma.eval.scoring.model_images import Drawing, labels_like, open_drawing, trained
from trilemma.eval.scoring.reference import READERS, load_reference
from trilemma.eval.scoring.results import Origin
from trilemma.eval.scoring.yardsticks import (
    Reference,
    pick_extractor,
    result_lines,
    score,
    yardsticks,
)
from trilemma.training.images.image_set import cache_folder, hold_out, load_images
from trilemma.training.loop.machine import PROCESS_GROUP, commit, set_cpu_threads
from trilemma.training.options.flags import read_yaml
from trilemma.training.options.groups import DataConfig


def evaluate(config) -> None:
    """Score what the flags of `eval/evaluate.py` ask for; collective."""
    if (config.model.model is None) == (config.images.images is None):
        raise ValueError("give one of --model and --images")
    if "bpd" in config.score.metrics and config.model.model is None:
        raise ValueError("--metrics bpd needs a --model")
    where = Path(config.output.output or default_output(config.model.model))
    results.check_writable(where)  # an error now, not when all is measured
    accelerator = Accelerator(kwargs_handlers=[PROCESS_GROUP])
    set_cpu_threads(accelerator, config.model.cpu_threads)
    reference = open_reference(config, accelerator)
    names = [name for name in config.score.metrics if name != "bpd"]
    weights = config.score.extractor_weights
    extractor = config.score.feature_extractor or (
        "inception" if weights else pick_extractor(reference, cache_folder(config.reference.cache_dir))
    )
    sticks = yardsticks(
        names, extractor, reference, accelerator, cache_folder(config.reference.cache_dir), weights
    )
    if config.reference.save_reference and not sticks:
        raise ValueError("--save_reference writes the statistics of a feature metric; --metrics names none")
    if config.reference.save_reference and accelerator.is_main_process:
        target = Path(config.reference.save_reference)
        statistics = sticks[0].reference
        (statistics.save_npz if target.suffix == ".npz" else statistics.save)(target)

    def tell(told: list[dict]) -> None:
        if accelerator.is_main_process:
            results.append(where, told)
            print(results.table(told), flush=True)

    drawing = None
    if config.model.model:
        drawing = open_drawing(config.model, config.sampling, accelerator)
        drawing.labels = labels_like(drawing, reference.images)
    if sticks:
        if drawing:
            scores = score(sticks, drawing, config.sampling.num_samples, accelerator, config.score.force)
            origin = drawing.origin(*trained(config.model.model))
        else:
            images = open_images(config.images.images)
            scores = score(
                sticks, own_share(images, accelerator), len(images), accelerator, config.score.force
            )
            origin = Origin(source=Path(config.images.images).name, n=len(images))
        tell(result_lines(scores, origin, config.score.force))
    if "bpd" in config.score.metrics:
        tell(likelihood_lines(config, drawing, reference, accelerator))
    accelerator.print(f"added to {where}")


def open_reference(config, accelerator: Accelerator) -> Reference:
    """The reference of the flags, or the images that the model was trained on."""
    given = config.reference
    if given.reference and Path(given.reference).suffix in READERS:
        return Reference(None, statistics=load_reference(given.reference, given.reference_n))
    data, seed = trained_on(config.model.model) if given.reference is None else (DataConfig(), 0)
    changes = {
        "train_split": given.split,
        "resolution": given.resolution,
        "image_column": given.image_column,
        "label_column": given.label_column,
        "cache_dir": given.cache_dir,
    }
    data = replace(data, **{name: value for name, value in changes.items() if value is not None})
    return load_images_of(data, given.reference, seed, accelerator)


def load_images_of(data: DataConfig, place: str | None, seed: int, accelerator: Accelerator) -> Reference:
    """The images of these options, from `place` (a folder, or else a Hub id) if given, and held-out ones:
    those of the validation, or else the test split where there is one.
    """
    if place and Path(place).is_dir():
        data = replace(data, train_data_dir=place)
    elif place:
        data = replace(data, train_data_dir=None, dataset_name=place)
    with accelerator.local_main_process_first():
        images, held_out = load_images(data), None
        if data.validation_split:
            alike = replace(data, channels=images.channels, resolution=images.resolution)
            held_out = load_images(alike, data.validation_split)
        elif data.validation_size:
            images, held_out = hold_out(images, data.validation_size, seed)
        elif images.split == "train":
            with suppress(ValueError):  # data without such a split have nothing held out
                held_out = load_images(replace(data, channels=images.channels), "test")
    return Reference(images, held_out)


def trained_on(model: str | None) -> tuple[DataConfig, int]:
    """The data options and the seed in the config.yaml beside a model."""
    path = Path(model or "") / "config.yaml"
    if model is None or not path.is_file():
        raise ValueError(
            "--reference must name a data set or a statistics file: there is no config.yaml to tell"
        )
    values = read_yaml(path)
    names = DataConfig.__dataclass_fields__
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in names}
    return DataConfig(**given), values["seed"]


def likelihood_lines(
    config, drawing: Drawing, reference: Reference, accelerator: Accelerator
) -> list[dict]:
    """Lines of the bits per dimension of the images trained on and of held-out ones."""
    if reference.images is None:
        raise ValueError("--metrics bpd needs a data set as --reference, not a statistics file")
    told = []
    trained_split = config.reference.split or "train"
    for part, images in ((trained_split, reference.images), ("test", reference.held_out)):
        if images is None:
            continue
        count = min(config.score.bpd_images or len(images), len(images))
        measured = bits_per_dim(
            drawing.pipeline,
            images,
            timesteps=config.score.bpd_timesteps,
            seed=config.sampling.seed,
            batch_size=config.model.batch_size,
            accelerator=accelerator,
            indices=range(count),
        )
        named = {name.replace("bpd", f"bpd_{part}", 1): m for name, m in measured.items()}
        levels = config.score.bpd_timesteps
        origin = replace(
            drawing.origin(*trained(config.model.model)),
            sampler=None,
            num_inference_steps=levels,
            nfe=None,
            classes=None,
            guidance_scale=None,
            seconds_per_image=None,
        )
        for line in results.lines(named, origin, None, commit=commit()):
            told.append({**line, "reference": images.name, "reference_split": part,
                         "reference_n": len(images), "data_fingerprint": images.fingerprint})  # fmt: skip
    return told


def default_output(model: str | None) -> str:
    """Beside the model where it is a folder, else here."""
    return str(Path(model) / results.RESULTS) if model and Path(model).is_dir() else results.RESULTS
