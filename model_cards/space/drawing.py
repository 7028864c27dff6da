"""What the page offers for a model, and the images that it draws. Gradio is not needed here.

The Space gets this code without the toolkit (`files.py`), so it uses only the members of a pipeline that all
families have: `samplers`, `with_sampler`, `steps`, `calls`, `class_names`, `default_guidance`; and called.
"""

import re
import time
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

MOST_IMAGES = 64
MOST_STATES = 21
AT_ONCE = 16
"""Images of one drawing, states of its process, and images that the network takes at a time."""

LARGEST_SEED = 2**63 - 1
EACH_CLASS = -1
"""Stands for one image of each class in turn."""

USUAL_STEPS = (1, 2, 3, 4, 5, 8, 10, 16, 20, 25, 32, 40, 50, 64, 100, 200, 250, 500, 1000)
FAST = (("dpmsolver++", 20), ("ddim", 50))
"""If a model's own sampler takes more steps than one of these, the page begins with that one."""

IN_WORDS = {
    "--num_inference_steps": "Steps",
    "--sampler": "Sampler",
    "guidance_scale": "Guidance",
    "seeds": "Seeds",
}
"""Names of options in messages of a pipeline -> what the page calls them."""


class Settings(NamedTuple):
    """How images are drawn; None stands for the model's default, or for an option that it does not have."""

    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None


class Drawn(NamedTuple):
    """states: from noise to the images, B pictures each. seeds: B. summary: a line about them."""

    states: list[list[Image.Image]]
    seeds: list[int]
    summary: str


def starting(pipeline: DiffusionPipeline, known: Settings | None = None) -> Settings:
    """The page's first settings: those that `known` gives, and else a sampler with few steps.

    ValueError for a sampler or steps that the model does not have, and for a model of points of the plane.
    """
    if pipeline.network.config.in_channels not in (1, 3):
        raise ValueError(
            "the page can only show pictures of one or three channels, which this model does not draw; "
            "use eval/generate.py --output points.png"
        )
    known = known or Settings()
    if known.sampler is not None:
        steps = sampled_by(pipeline, known.sampler).steps(known.steps)
        return known._replace(steps=steps, guidance=_guidance(pipeline, known))
    usual = Settings(pipeline.sampler, pipeline.steps(known.steps), _guidance(pipeline, known))
    for name, steps in FAST:
        if known.steps is None and usual.steps > steps and name in pipeline.samplers():
            with suppress(ValueError):  # this sampler cannot take so many
                return usual._replace(sampler=name, steps=sampled_by(pipeline, name).steps(steps))
    return usual


def _guidance(pipeline: DiffusionPipeline, known: Settings) -> float | None:
    if not has_guidance(pipeline):
        return None
    return pipeline.default_guidance if known.guidance is None else known.guidance


def has_guidance(pipeline: DiffusionPipeline) -> bool:
    """Whether a scale of guidance changes what the model draws."""
    return bool(pipeline.class_names) and pipeline.default_guidance is not None


def sampled_by(pipeline: DiffusionPipeline, name: str) -> DiffusionPipeline:
    """The pipeline with the sampler of this name; ValueError lists the choices."""
    other = pipeline if name == pipeline.sampler else pipeline.with_sampler(name)
    other.set_progress_bar_config(disable=True)
    return other


def step_choices(pipeline: DiffusionPipeline, *more: int) -> list[int]:
    """Numbers of steps that this sampler can take: usual ones, its own, and those of `more` that it can."""
    choices = {pipeline.steps(None)}
    for steps in {*USUAL_STEPS, *more}:
        with suppress(ValueError):
            choices.add(pipeline.steps(steps))
    return sorted(choices)


def has_process(pipeline: DiffusionPipeline) -> bool:
    """Whether there are states between noise and image; False if a model can only take one step."""
    return step_choices(pipeline) != [1]


def read_seeds(text: str) -> list[int]:
    """Seeds from text such as '0-15' or '3, 7, 20-24'; ValueError for other text, or for too many."""
    seeds: list[int] = []
    parts = [part for part in re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", str(text).strip())) if part]
    for part in parts:
        match = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= LARGEST_SEED:
            raise ValueError(
                f"Seeds must be whole numbers below 2^63 or ranges of them, such as 0-15 or 3, 7, 20-24; "
                f"got {part[:40]!r}"
            )
        if len(seeds) + last - first >= MOST_IMAGES:
            raise ValueError(f"Seeds: at most {MOST_IMAGES} images can be drawn at once; got {text[:40]!r}")
        seeds += range(first, last + 1)
    if not seeds:
        raise ValueError("Seeds must name at least one image, such as 0 or 0-15; got nothing")
    return seeds


def following(text: str) -> str:
    """The next seeds after the largest that `text` names, the same number of them."""
    seeds = read_seeds(text)
    first = max(seeds) + 1
    first = first if first + len(seeds) <= LARGEST_SEED else 0
    return f"{first}-{first + len(seeds) - 1}" if len(seeds) > 1 else str(first)


def draw(pipeline: DiffusionPipeline, seeds: str, settings: Settings, label: int = EACH_CLASS) -> Drawn:
    """The images of these seeds, and the states on the way to them where the family has any.

    label: a class for all images, or EACH_CLASS; models without classes ignore it. ValueError, in the words
    of the page, for settings that the model does not support.
    """
    began, numbers = time.perf_counter(), read_seeds(seeds)
    try:
        pipeline = sampled_by(pipeline, settings.sampler or pipeline.sampler)
        steps = pipeline.steps(_whole(settings.steps))
        options: dict[str, Any] = {"num_inference_steps": steps, "output_type": "np"}
        if has_process(pipeline):
            options["trajectory"] = min(MOST_STATES, steps + 1)
        if has_guidance(pipeline) and settings.guidance is not None:
            options["guidance_scale"] = settings.guidance
        labels = _labels(pipeline, label, len(numbers))
        parts = []
        for start in range(0, len(numbers), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            classes = {} if labels is None else {"class_labels": labels[rows]}
            output = pipeline(seeds=numbers[rows], **classes, **options)
            parts.append(output.images[None] if output.get("trajectory") is None else output.trajectory)
    except ValueError as problem:
        raise ValueError(in_words(str(problem))) from problem
    states = np.concatenate(parts, axis=1)
    _check_finite(states[-1], numbers)
    pictures = [DiffusionPipeline.numpy_to_pil(np.nan_to_num(state)) for state in states]
    guided = options.get("guidance_scale", 1) != 1
    seconds = time.perf_counter() - began
    return Drawn(pictures, numbers, _summary(pipeline, len(numbers), steps, guided, seconds))


def in_words(message: str) -> str:
    """A pipeline's message, with the names that the page has for its options."""
    for option, name in IN_WORDS.items():
        message = re.sub(rf"(?<![\w-]){re.escape(option)}\b", name, message)
    return message


def _whole(steps: Any) -> int | None:
    """Steps as a page gives them: a number, or what was typed."""
    if steps is None or (isinstance(steps, int) and not isinstance(steps, bool)):
        return steps
    if not re.fullmatch(r"\d{1,9}", str(steps).strip(), re.ASCII):
        raise ValueError(f"Steps must be a whole number; got {str(steps)[:40]!r}")
    return int(steps)


def _labels(pipeline: DiffusionPipeline, label: Any, count: int) -> list[int] | None:
    names = pipeline.class_names
    if not names:
        return None
    if label not in range(EACH_CLASS, len(names)):
        raise ValueError(f"Class must be one of {', '.join(names[:100])}, or each in turn; got {label!r:.40}")
    return [i % len(names) if label == EACH_CLASS else label for i in range(count)]


def _check_finite(images: np.ndarray, seeds: list[int]) -> None:
    """images (B, H, W, C)"""
    bad = ~np.isfinite(images).reshape(len(images), -1).all(1)
    if bad.any():
        raise ValueError(
            f"the image of seed {seeds[int(bad.argmax())]} has values that are not numbers: choose another "
            "sampler, more steps or less guidance; if that does not help, the training has diverged"
        )


def _summary(pipeline: DiffusionPipeline, count: int, steps: int, guided: bool, seconds: float) -> str:
    calls = pipeline.calls(steps, guided)
    images, each = (
        "1 image" if count == 1 else f"{count} images",
        "1 call" if calls == 1 else f"{calls} calls",
    )
    return f"{images} in {seconds:.1f} seconds, by {pipeline.sampler}: {each} of the network for each image."
