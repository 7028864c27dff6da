"""Drawings of the models for the page: the same seeds in few and in many calls of the network."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from diffusers import DiffusionPipeline

from trilemma.eval.plots.sheets import to_pil
from trilemma.eval.report.pictures import Drawn, Frames, sheet, side_by_side
from trilemma.eval.scoring.model_images import load_model
from trilemma.eval.studies.models import Model
from trilemma.training.devices.precision import plain_float32
from trilemma.training.images.points import draws_points, picture
from trilemma.training.output_folder import own_sampling
from trilemma.training.progress import Progress, counted
from trilemma.training.sampling import every_class, sample

STEPS = (1, 2, 5, 10, 20, 50, 100)
"""Steps that are tried, below the model's usual number. They divide the usual T: some samplers need that."""
MOST_STEPS = 100
"""A model whose usual number is larger is drawn in this number of steps, if its sampler allows it."""


def draw(models: Sequence[Model], count: int) -> dict[str, Drawn]:
    """Name of a model -> its images of the seeds 0 to count - 1, a sheet for each number of steps."""
    with Progress("drawing for the page", len(models), "model") as progress:
        drawn = {}
        for model in models:
            drawn[model.name] = _draw(model, count)
            progress.update(1)
    return drawn


def _draw(model: Model, count: int) -> Drawn:
    if model.run.get("parameters") is None:
        return Drawn(None, "its folder has no weights to draw with")
    cpu = torch.device("cpu")
    pipeline = load_model(str(model.folder.path), cpu)
    name, usual = own_sampling(model.config)
    if name in pipeline.samplers():
        pipeline = pipeline.with_sampler(name)
        pipeline.set_progress_bar_config(disable=True)
    names, guidance = pipeline.class_names, pipeline.default_guidance
    labels = every_class(None if names is None else len(names), count)
    sheets = {}
    for steps in steps_of(pipeline, usual):
        with plain_float32(cpu):
            images = sample(
                pipeline, range(count), batch_size=count, num_inference_steps=steps, class_labels=labels
            )
        calls = pipeline.calls(steps, guidance not in (None, 1.0))
        sheets[calls] = to_pil(picture(images)) if draws_points(pipeline) else sheet(_as_arrays(images))
    labels_of = tuple(counted(calls, "call") for calls in sheets)
    guided = "" if guidance in (None, 1.0) else f", guidance {guidance:g}"
    return Drawn(
        Frames(side_by_side(list(sheets.values())), labels_of, tuple(sheets)),
        f"seeds 0 to {count - 1}, {pipeline.sampler}{guided}",
    )


def steps_of(pipeline: DiffusionPipeline, usual: int | None) -> list[int]:
    """The numbers of steps for a pipeline's drawings: those of STEPS that it allows, and its usual one."""
    usual = pipeline.steps(usual)
    possible = []
    for wanted in (*(steps for steps in STEPS if steps < usual), min(usual, MOST_STEPS)):
        with suppress(ValueError):
            possible.append(pipeline.steps(wanted))
    return list(dict.fromkeys(possible)) or [usual]


def _as_arrays(images: torch.Tensor):
    arrays = images.permute(0, 2, 3, 1).numpy()
    return arrays[..., 0] if arrays.shape[-1] == 1 else arrays
