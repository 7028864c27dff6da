"""The shared body of the entry points: build, train, score, card, publish.

The one place beside `training/entry.py` that may look upward, to what draws, scores and publishes.
"""

import logging
import math
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.eval.plots import curves
from trilemma.eval.plots.sheets import Subject
from trilemma.eval.plots.sheets import sheet as sheet_of
from trilemma.eval.scoring import results
from trilemma.eval.scoring.while_training import Evaluation
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.hub.upload import PublishError, publish
from trilemma.model_cards.rendering.differences import to_measure
from trilemma.model_cards.rendering.render import write_card
from trilemma.pipelines.files.writing import written
from trilemma.training import families
from trilemma.training.devices.chosen import Size, settle, with_all_threads, with_warmup, work
from trilemma.training.devices.memory import OutOfMemory, saying_what_to_lower
from trilemma.training.devices.ranks import (
    agreement,
    decided,
    on_all,
    require_same,
    require_same_code,
    require_same_flags,
    seed_noise,
)
from trilemma.training.images.batches import Order, batches
from trilemma.training.images.image_set import Images, hold_out, load_images, to_float
from trilemma.training.images.shards.batches import Place, shard_batches
from trilemma.training.loop.loop import Data, Hooks, train
from trilemma.training.loop.machine import closing_groups, make_accelerator
from trilemma.training.loop.method import Method
from trilemma.training.loop.records import RunLog
from trilemma.training.loop.sheets import draw, images_at_once, sampling_pipeline
from trilemma.training.loop.stop import StopSignal
from trilemma.training.networks.rows import network_name
from trilemma.training.options.flags import Config, flatten
from trilemma.training.options.groups import HubConfig
from trilemma.training.options.in_memory import NOTHING, InMemory, in_memory, with_network
from trilemma.training.options.plugins import digests, located
from trilemma.training.output_folder import OutputFolder
from trilemma.training.own_folder import own_folder
from trilemma.training.progress import Progress, counted

IMAGES_SHOWN, POINTS_SHOWN = 4, 500
"""Images, or points of the plane, in the pictures of the process."""

REMEDY = "take a smaller network, or lower --train_batch_size and --eval_forward_batch"
"""What helps where memory runs out before the training."""


def run(config: Config, family: str, given: Collection[str] = ()) -> None:
    """Train and publish a model; errors in the flags or the data end the program with one line."""
    main = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(format="%(message)s", level=logging.INFO if main else logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with closing_groups(), saying_what_to_lower(REMEDY):
            train_and_save(config, family, given)
    except (ValueError, OSError, FloatingPointError, OutOfMemory, PublishError) as problem:
        raise SystemExit(f"error: {located(problem)}") from problem


def train_and_save(
    config: Config, family: str, given: Collection[str] = (), memory: InMemory = NOTHING
) -> None:
    """Fill the output folder; given: options that were typed, and which the family does not choose.

    memory: images and a network of a script, in place of those that the options name.
    """
    accelerator = make_accelerator(config)
    require_same_flags(accelerator, config)
    require_same_code(accelerator, family=family, plugins=digests())
    stop = StopSignal(agreement(accelerator))
    with own_folder(config.run, accelerator) as folder:
        with Progress("reading the images", show=accelerator.is_main_process):
            images, held_out = load_data(config, accelerator, memory)
        row = families.family(family)
        config = with_network(config, memory.network)
        config = row.complete(config, given, images, accelerator, folder, row.build)
        config = with_validation_size(config, held_out)
        if config.hub.push_to_hub and not config.evaluation.eval_steps:
            accelerator.print("--push_to_hub without --eval_steps: the card will have no measurements.")
        budget = budget_of(config, images, accelerator)
        config = with_warmup(config, budget.total, folder, accelerator)

        set_seed(config.run.seed)
        method = row.build(config, images, accelerator, budget.total)
        seed_noise(config.run.seed, accelerator.process_index)
        size = Size(work(method.net, images.resolution**2), budget.total * budget.per_step)
        config = settle(config, accelerator, folder, size, row.faster(config), method)
        accelerator.print(first_line(config, images, method, budget, accelerator), flush=True)

        def save(pipeline: DiffusionPipeline, where: Path = folder.path) -> None:
            decided(accelerator, lambda: save_bundle(pipeline, where))

        def finish(pipeline: DiffusionPipeline) -> None:
            main = accelerator.is_main_process
            with Progress("saving the model", show=main):
                save(pipeline)
            with Progress("drawing the sample sheet", show=main):
                sheet = draw(method, accelerator, config, stop)
            if main:
                with Progress("drawing the pictures"):
                    stop.at_once(lambda: draw_pictures(sheet, method, images, config, folder))
                report(folder.path, config.hub, stop, bool(config.evaluation.eval_steps))

        def show(sheet: Tensor, step: int) -> None:
            files = folder.sheet(step), folder.samples
            decided(accelerator, lambda: draw_sheet(sheet, method, images, *files))

        evaluate = None
        if config.evaluation.eval_steps:
            evaluate = Evaluation(config, images, held_out, accelerator, save, stop)
            with Progress("preparing the evaluation", show=accelerator.is_main_process):
                evaluate.prepare()  # what is mistyped or missing is an error now, not at the first evaluation
            evaluate.check_metrics(conditional=method.num_classes is not None)
            evaluate = with_all_threads(config, accelerator, evaluate)
        data = data_of(config, images, held_out, budget, accelerator)
        runlog = RunLog(accelerator, folder, config, family, memory.facts)
        with stop:
            hooks = Hooks(save, finish, stop, show, evaluate)
            train(method, data, hooks, runlog, accelerator, config, budget.total)


class Budget(NamedTuple):
    """Images in an optimizer step, steps in an epoch, steps in all."""

    per_step: int
    epoch: int
    total: int


def budget_of(config: Config, images: Images, accelerator: Accelerator) -> Budget:
    """How long the run will be."""
    optim, world = config.optim, accelerator.num_processes
    per_step = optim.train_batch_size * optim.gradient_accumulation_steps * world
    epoch = math.ceil(len(images) / per_step)
    return Budget(per_step, epoch, config.run.max_train_steps or config.run.num_epochs * epoch)


def first_line(
    config: Config, images: Images, method: Method, budget: Budget, accelerator: Accelerator
) -> str:
    """What is trained, on what and for how long."""
    channels = {1: "grey", 3: "RGB"}.get(images.channels, f"{images.channels} channels")
    size = "points" if images.points else f"{images.resolution}x{images.resolution} {channels}"
    classes = "no classes" if method.num_classes is None else f"{method.num_classes:,} classes"
    count = sum(p.numel() for p in method.net.parameters())
    flags = {} if in_memory(config) else flatten(config)
    network = network_name(flags, images.resolution, images.points) or type(method.net).__name__
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    many = "a stream" if config.data.streaming else f"{len(images):,} images"
    return (
        f"{many} of {images.name} ({size}), {classes}; network {network} "
        f"({count:,} parameters, {precision}); {budget.total:,} steps of {budget.per_step:,} images on "
        f"{accelerator.num_processes} x {accelerator.device.type}"
    )


def data_of(
    config: Config, images: Images, held_out: Images | None, budget: Budget, accelerator: Accelerator
) -> Data:
    """What the loop reads of the data, this rank's share."""
    size, seed = config.optim.train_batch_size, config.run.seed
    rank, world = accelerator.process_index, accelerator.num_processes

    def stream(start: int):
        return batches(
            images,
            Order(size, seed, rank, world, start),
            device=accelerator.device,
            num_workers=config.data.dataloader_num_workers,
            random_flip=config.data.random_flip,
        )

    place = None
    if config.data.streaming:
        place, order = Place(), Order(size, seed, rank, world)
        stream = shard_batches(config.data, images, order, place, accelerator.device)
    return Data(stream, held_out, budget.epoch, images.fingerprint, images.points, place)


def load_data(
    config: Config, accelerator: Accelerator, memory: InMemory = NOTHING
) -> tuple[Images, Images | None]:
    """Images to train on and, if requested, others to validate on; one process a machine decodes them."""
    images, held_out = on_all(accelerator, lambda: read_data(config, memory), local_main_first=True)
    prints = {"training images": images.fingerprint, "held-out images": held_out and held_out.fingerprint}
    require_same(accelerator, prints, "the data must be the same on all machines")
    return images, held_out


def read_data(config: Config, memory: InMemory = NOTHING) -> tuple[Images, Images | None]:
    """Images to train on and, if requested, others to validate on."""
    data = config.data
    images = load_images(data) if memory.images is None else memory.images
    if memory.held_out is not None:
        return images, memory.held_out
    size, split = data.validation_size, data.validation_split
    if size == 0 or size is split is None:
        return images, None
    if split is None:
        return hold_out(images, size, config.run.seed)
    alike = replace(data, channels=images.channels, resolution=images.resolution)
    others = load_images(alike, split)
    return images, others.subset(range(len(others) if size is None else min(size, len(others))))


def with_validation_size(config: Config, held_out: Images | None) -> Config:
    """The configuration with the number of held-out images, where none is given."""
    if config.data.validation_size is not None:
        return config
    return replace(config, data=replace(config.data, validation_size=len(held_out or ())))


def draw_sheet(sheet: Tensor, method: Method, images: Images, *files: Path) -> None:
    """A sheet of samples, uint8 (N, C, H, W), as these files."""
    names = None if method.num_classes is None else images.require_class_names()
    picture = sheet_of(sheet, points=images.points, class_names=names)
    for file in files:
        file.parent.mkdir(exist_ok=True)
        with written(file) as opened:
            picture.save(opened, format="png")


def draw_pictures(
    sheet: Tensor, method: Method, images: Images, config: Config, folder: OutputFolder
) -> None:
    """The pictures of the finished model; sheet: uint8 samples (N, C, H, W)."""
    draw_sheet(sheet, method, images, folder.samples)
    with written(folder.losses) as file:
        curves.losses(folder.read_scalars()).savefig(file, format="png")
    scores = results.read(folder.results)
    if len({line.step for line in scores}) > 1:
        with written(folder.scores) as file:
            curves.scores(scores).savefig(file, format="png")
    pipeline = sampling_pipeline(method, config.sheet)
    steps = pipeline.steps(config.sheet.ddpm_num_inference_steps)
    rows = min(POINTS_SHOWN if images.points else IMAGES_SHOWN, len(images))
    # Points of a picture are a sample of all: the first, whose order is random.
    real, labels = images.__getitems__(range(rows) if images.points else images.different(rows))
    labels = None if method.num_classes is None else labels.tolist()
    dropped = max(getattr(group, "p_uncond", 0) for group in vars(config).values())
    guidable = labels is not None and dropped > 0
    at_once = images_at_once(config)
    subject = Subject(pipeline, to_float(real), steps, labels, images.points, guidable, at_once)
    pictures = families.column("trilemma.eval.pictures", pipeline.family)
    for name, picture in (pictures.PICTURES if pictures else {}).items():
        if figure := picture(subject):
            with written(folder.path / name) as file:
                figure.savefig(file, format="png", dpi=150)
    guidance = pipeline.default_guidance
    guided = "no guidance" if guidance in (None, 1.0) else f"guidance {guidance:g}"
    print(f"{folder.samples}: {pipeline.sampler} in {counted(steps, 'step')}, {guided}")


def report(folder: Path, hub: HubConfig, stop: StopSignal, evaluated: bool) -> None:
    """Write the card and, if the flags ask for it, publish the folder.

    evaluated: whether the flags ask for an evaluation. Without one, the card warns that nothing was measured.
    """
    with Progress("writing the card"):
        card = write_card(folder)
    here = hub.hub_model_id or folder.resolve().parent == Path.cwd()  # the card calls it by its own name
    where = "" if here else f", from a program that is started in {folder.parent}"
    print(f"Saved to {folder}; {card} shows how to load it{where}.", flush=True)
    print(f"To measure it: {to_measure(folder)}", flush=True)
    if hub.push_to_hub:
        with Progress("publishing"):
            url = stop.at_once(
                lambda: publish(
                    folder,
                    hub.hub_model_id or folder.name,
                    private=hub.hub_private_repo,
                    create_pr=hub.hub_create_pr,
                    tag=hub.hub_tag,
                    allow_unevaluated=hub.allow_unevaluated or not evaluated,
                    token=hub.hub_token,
                )
            )
        print(f"Published at {url}", flush=True)
