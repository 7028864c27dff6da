"""The page in Gradio: what `drawing.py` offers for a model, as controls."""

import html
from typing import Any

import gradio as gr
from diffusers import DiffusionPipeline
from PIL import Image

from trilemma.model_cards.space.drawing import (
    EACH_CLASS,
    Drawn,
    Settings,
    draw,
    following,
    has_guidance,
    has_process,
    sampled_by,
    starting,
    step_choices,
)

CSS = """
#images .grid-wrap { max-height: none; overflow: visible; padding-top: 1.5rem; }
#images .grid-container { grid-template-columns: repeat(auto-fill, minmax(max(76px, 14%), 1fr)); }
#images .caption-label { position: static; max-width: none; border: 0; font-size: 11px; }
#images .thumbnail-item { height: auto; }
#images img { image-rendering: pixelated; }
"""
"""Shows all images without scrolling. The number of columns fits the width; small images are enlarged."""

FIRST_SEEDS = "0-15"
MOST_GUIDANCE = 8.0
EACH = "each class in turn"


def page(pipeline: DiffusionPipeline, name: str, known: Settings | None = None) -> gr.Blocks:
    """The page of a model of this name; known: how it is usually sampled. ValueError: see `starting`."""
    start = starting(pipeline, known)
    with gr.Blocks(title=f"{name}: demo", analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{html.escape(name)}</h1>")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                controls = _controls(pipeline, start)
                others = gr.Button("Other seeds")
                button = gr.Button("Draw", variant="primary")
            with gr.Column(scale=2, min_width=280):
                images = gr.Gallery(
                    label="Images",
                    format="png",
                    columns=4,
                    object_fit="contain",
                    elem_id="images",
                    height="auto",
                    buttons=["download", "download_all", "fullscreen"],
                )
                process = gr.Slider(
                    0, 1, 1, step=1, label="Process, from noise (0) to the images", visible=False,
                    elem_id="process",
                )  # fmt: skip
                summary = gr.Markdown(elem_id="summary")
        states = gr.State([])
        outcome = [states, images, process, summary]
        drawing = {"fn": lambda *values: _drawn(pipeline, *values), "inputs": controls, "outputs": outcome}
        button.click(**drawing, api_name="draw")
        others.click(_answering(following), controls[0], controls[0], api_visibility="private").success(
            **drawing, api_visibility="private"
        )
        controls[1].change(
            lambda *values: _steps(pipeline, *values), controls[1:3], controls[2], api_visibility="private"
        )
        process.input(
            _state, [states, process], images, api_visibility="private", trigger_mode="always_last",
            show_progress="hidden",
        )  # fmt: skip
        blocks.load(**drawing, api_visibility="private")
    return blocks


def _controls(pipeline: DiffusionPipeline, start: Settings) -> list[Any]:
    """Seeds, sampler, steps, class, guidance; controls that the family does not have are not shown."""
    names, samplers = pipeline.class_names or (), pipeline.samplers()
    steps = step_choices(sampled_by(pipeline, start.sampler), start.steps)
    classes = [(EACH, EACH_CLASS), *((name, number) for number, name in enumerate(names))]
    guided = has_guidance(pipeline)
    return [
        gr.Textbox(FIRST_SEEDS, label="Seeds", info="such as 0-15 or 3, 7, 20-24"),
        gr.Dropdown(list(samplers), value=start.sampler, label="Sampler", visible=len(samplers) > 1),
        gr.Dropdown(
            _words(steps), value=str(start.steps), label="Steps", info="more steps take longer",
            visible=len(steps) > 1, allow_custom_value=True,
        ),
        gr.Dropdown(classes, value=EACH_CLASS, label="Class", visible=bool(names)),
        gr.Slider(
            0, MOST_GUIDANCE, start.guidance if guided else 1, step=0.25, label="Guidance",
            info="1: no guidance; other values need twice the calls", visible=guided,
        ),
    ]  # fmt: skip


def _words(steps: list[int]) -> list[str]:
    return [str(number) for number in steps]


def _steps(pipeline: DiffusionPipeline, sampler: str, steps: str) -> Any:
    """The numbers of steps of another sampler; the chosen one stays if this sampler has it."""
    choices = step_choices(sampled_by(pipeline, sampler), *([int(steps)] if str(steps).isdigit() else []))
    kept = steps if steps in _words(choices) else str(min(choices, key=lambda n: abs(n - 20)))
    return gr.Dropdown(_words(choices), value=kept, visible=len(choices) > 1)


def _answering(function: Any) -> Any:
    """The function with its ValueErrors shown on the page."""

    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except ValueError as problem:
            raise gr.Error(html.escape(str(problem)), duration=None, print_exception=False) from problem

    return call


def _drawn(pipeline: DiffusionPipeline, *values: Any) -> tuple:
    """What the page shows once the images are drawn; values: of the controls."""
    seeds, sampler, steps, label, guidance = values
    settings = Settings(sampler, steps, guidance if has_guidance(pipeline) else None)
    drawn: Drawn = _answering(draw)(pipeline, seeds, settings, label)
    frames = [_captioned(state, drawn.seeds) for state in drawn.states]
    last = len(frames) - 1
    slider = gr.Slider(0, max(1, last), last, visible=has_process(pipeline))
    return frames, frames[-1], slider, drawn.summary


def _captioned(images: list[Image.Image], seeds: list[int]) -> list[tuple[Image.Image, str]]:
    return [(image, f"seed {seed}") for image, seed in zip(images, seeds, strict=True)]


def _state(frames: list, number: int) -> list:
    return frames[int(number)] if frames else []
