"""The entry points' shared body: parse, build, train, score, card, publish.

The one place below the entry points that may look upward, to what draws, scores and publishes.
"""

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    set_seed,
)
from diffusers import DiffusionPipeline, ModelMixin

from trilemma.eval.plots import pictures as plots
from trilemma.eval.scoring import results
from trilemma.eval.scoring.while_training import Evaluation
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.hub.upload import PublishError, publish
from trilemma.model_cards.rendering.figures import shown
from trilemma.model_cards.rendering.render import write_card
from trilemma.training.images.image_set import Images, batches, hold_out, load_images, to_float
from trilemma.training.loop.loop import Data, draw, sampling_pipeline, sheet_steps, train
from trilemma.training.loop.machine import PROCESS_GROUP, closing_groups, set_cpu_threads
from trilemma.training.loop.method import GradientDescent, Method, Objective
from trilemma.training.networks.build import build_network, load_network_config
from trilemma.training.networks.init_from import saved_config, take_weights
from trilemma.training.networks.rows import NETS, net_for
from trilemma.training.output_folder import own_folder
from trilemma.training.sampling import every_class

logger = logging.getLogger(__name__)

MakeObjective = Callable[[Any, Images], Objective]
MakeMethod = Callable[[Any, Images, Accelerator, int], Method]

POINTS_SHOWN = 500
"""Points of the plane in the pictures of the process, where images are shown in rows of their own."""

def run(config, make_objective: MakeObjective) -> None:
    """Train an Objective by gradient descent and publish it."""

    def make_method(config, images: Images, accelerator: Accelerator, total_steps: int) -> Method:
        objective = make_objective(config, images)
        if config.run.compile:
            objective.compile()
        return GradientDescent(objective, accelerator, config.optim, total_steps)

    run_method(config, make_method)


def run_method(config, make_method: MakeMethod) -> None:
    """Train a Method and publish it; errors in what the user asked for end the program with one line."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if _is_main() else logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with closing_groups():
            _run_method(config, make_method)
    except (ValueError, OSError, FloatingPointError, PublishError) as problem:
        raise SystemExit(f"error: {problem}") from problem


def _run_method(config, make_method: MakeMethod) -> None:
    accelerator = make_accelerator(config)
    with own_folder(config.run, accelerator):
        train_and_save(config, make_method, accelerator)


def train_and_save(config, make_method: MakeMethod, accelerator: Accelerator) -> None:
    """Fill the output folder."""
    folder = Path(config.run.output_dir)
    images, held_out = load_data(config, accelerator)
    optim, world = config.optim, accelerator.num_processes
    per_step = optim.train_batch_size * optim.gradient_accumulation_steps * world
    epoch = math.ceil(len(images) / per_step)
    total = config.run.max_train_steps or config.run.num_epochs * epoch
    check_publishable(config, total)

    set_seed(config.run.seed)
    method = make_method(config, images, accelerator, total)
    set_seed(config.run.seed, device_specific=True)  # from here on each rank has its own noise
    count = sum(p.numel() for p in method.net.parameters())
    accelerator.print(
        f"{len(images):,} images of {images.name}, {count:,} parameters, {total:,} steps of {per_step:,} "
        f"images on {world} x {accelerator.device.type}"
    )

    def stream(start: int):
        return batches(
            images,
            batch_size=optim.train_batch_size,
            seed=config.run.seed,
            device=accelerator.device,
            rank=accelerator.process_index,
            world=world,
            start=start,
            num_workers=config.data.dataloader_num_workers,
            random_flip=config.data.random_flip,
        )

    def save(pipeline: DiffusionPipeline, where: Path = folder) -> None:
        if accelerator.is_main_process:
            save_bundle(pipeline, where)
        accelerator.wait_for_everyone()

    evaluate = (
        Evaluation(config, images, held_out, accelerator, save) if config.evaluation.eval_steps else None
    )
    if evaluate:
        evaluate.prepare()  # what is mistyped or missing is an error now, not at the first evaluation
    pipeline = train(
        method, Data(stream, held_out, epoch, images.fingerprint), accelerator, config, total, save, evaluate
    )
    save(pipeline)
    draw_pictures(method, images, config, accelerator)
    if accelerator.is_main_process:
        card = write_card(folder)
        print(f"Saved to {folder}; {card} shows how to load it.", flush=True)
        if config.hub.push_to_hub:
            hub = config.hub
            url = publish(
                folder,
                hub.hub_model_id or folder.name,
                private=hub.hub_private_repo,
                create_pr=hub.hub_create_pr,
                tag=hub.hub_tag,
                allow_unevaluated=hub.allow_unevaluated,
                token=hub.hub_token,
            )
            print(f"Published at {url}", flush=True)


def load_data(config, accelerator: Accelerator) -> tuple[Images, Images | None]:
    """Images to train on and, if asked for, others to validate on; decoded by one process a machine."""
    data = config.data
    with accelerator.local_main_process_first():
        images = load_images(data)
        if not data.validation_size:
            return images, None
        if data.validation_split is None:
            return hold_out(images, data.validation_size, config.run.seed)
        alike = replace(data, channels=images.channels, resolution=images.resolution)
        others = load_images(alike, data.validation_split)
        return images, others.subset(range(min(data.validation_size, len(others))))


def make_accelerator(config) -> Accelerator:
    """accelerate's view of this process: precision, accumulation, trackers; all of a CPU's cores if it is
    alone there.
    """
    run = config.run
    known = [str(tracker) for tracker in get_available_trackers()]
    if config.log.logger not in ("all", *known):
        raise ValueError(
            f"--logger {config.log.logger!r} is not installed; what is: {', '.join(known) or 'no tracker'}"
        )
    if run.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(run.local_rank))
    logs = Path(run.output_dir) / config.log.logging_dir
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision,
        gradient_accumulation_steps=config.optim.gradient_accumulation_steps,
        log_with=config.log.logger,
        project_config=ProjectConfiguration(project_dir=run.output_dir, logging_dir=str(logs)),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            PROCESS_GROUP,
        ],
    )
    set_cpu_threads(accelerator, run.cpu_threads)
    return accelerator


def check_publishable(config, total_steps: int) -> None:
    """ValueError, before the training, where --push_to_hub would be refused after it for want of results."""
    hub, folder = config.hub, Path(config.run.output_dir)
    measured = config.evaluation.eval_steps or shown(results.read(folder / results.RESULTS), total_steps)
    if hub.push_to_hub and not (measured or hub.allow_unevaluated):
        raise ValueError(
            "--push_to_hub publishes results with the model: measure it with --eval_steps, or give "
            "--allow_unevaluated"
        )


def make_net(
    config,
    images: Images,
    *,
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    classes: tuple[str, ...] | None = None,
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    build: Callable[..., ModelMixin] = build_network,
) -> ModelMixin:
    """The network of the flags for images of this size, with Ho et al.'s initialisation or the weights of
    --init_from, whose classes must be `classes` unless others are asked for; `adapt` changes its
    configuration to what the family needs, and `build` makes it, with the arguments of `build_network`.
    """
    net = config.net
    if net.model_config_name_or_path:
        row = load_network_config(net.model_config_name_or_path)
    elif config.run.init_from and not net.net:
        row = saved_config(config.run.init_from)
    else:
        row = NETS[net.net or net_for(images.resolution)]
    model = build(
        adapt({key: value for key, value in row.items() if key != "num_class_embeds"}),  # the data's, not its
        channels=images.channels,
        resolution=images.resolution,
        out_channels=out_channels,
        num_class_embeds=num_class_embeds,
        dropout=net.dropout,
    )
    if net.enable_xformers_memory_efficient_attention:
        try:
            model.enable_xformers_memory_efficient_attention()
        except (ModuleNotFoundError, ValueError) as problem:
            raise ValueError(f"--enable_xformers_memory_efficient_attention: {problem}") from problem
    if config.run.init_from:
        take_weights(model, config.run.init_from, classes, config.run.init_new_classes)
    return model


def draw_pictures(method: Method, images: Images, config, accelerator: Accelerator) -> None:
    """The pictures of the finished model; every rank draws its share of the samples."""
    log, folder = config.log, Path(config.run.output_dir)
    sheet = draw(method, accelerator, log)
    if not accelerator.is_main_process:
        return
    plots.sheet(sheet, columns=method.num_classes).save(folder / "samples.png")
    lines = (folder / log.logging_dir / "scalars.jsonl").read_text().splitlines()
    plots.losses([json.loads(line) for line in lines]).savefig(folder / "loss.png")
    scores = results.read(folder / results.RESULTS)
    if len({line["step"] for line in scores}) > 1:
        plots.scores(scores).savefig(folder / "scores.png")
    pipeline = sampling_pipeline(method, log)
    rows = 4 if images.resolution > 1 else min(POINTS_SHOWN, len(images))
    real, _ = images.__getitems__(range(rows))
    labels = every_class(method.num_classes, len(real))
    for name, picture in plots.pictures_of(pipeline).items():
        figure = picture(pipeline, to_float(real), sheet_steps(method, log), labels)
        figure.savefig(folder / name, dpi=150)


def _is_main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0
