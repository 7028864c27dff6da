"""Parts of the code that cards show, which several families share."""

from trilemma.model_cards.rendering.saved_model import Sampling, SavedModel
from trilemma.model_cards.rendering.text import literal
from trilemma.pipelines.samplers import SAMPLERS

PROCESS = {"process.png": "the process both ways: images noised, and images made from noise"}
"""The picture of every family that makes images from noise step by step."""

GUIDED = {**PROCESS, "guidance.png": "the same seeds and classes at several guidance scales"}
"""Those of families whose models may be guided."""


def loading(model_id: str, *imports: str) -> str:
    """Load a model that brings its own code; `imports` are further classes of diffusers."""
    return f"""from diffusers import {", ".join([*imports, "DiffusionPipeline"])}

pipeline = DiffusionPipeline.from_pretrained({literal(model_id)}, trust_remote_code=True)
"""


def loading_with_steps(saved: SavedModel, model_id: str) -> tuple[str, int]:
    """Load a model that brings its own code and has a scheduler, and the number of steps: those of the best
    result, or else DDIM where it can take few steps.
    """
    best = saved.best
    if best and best.steps and best.sampler in SAMPLERS and best.sampler != "ddim":
        sampler = f"pipeline = pipeline.with_sampler({literal(best.sampler)})\n"
        return loading(model_id) + sampler, best.steps
    few = best.steps if best and best.steps and best.sampler == "ddim" else saved.few_steps
    code = loading(model_id, *(["DDIMScheduler"] if few else []))
    if few:
        code += "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)\n"
    return code, few or saved.scheduler["num_train_timesteps"]


def code_beside(saved: SavedModel) -> str:
    """Which code `trust_remote_code` runs."""
    more = " and the one beside the weights" if saved.network_has_code else ""
    return f"`trust_remote_code=True` runs the Python file beside this page{more}."


def two_classes(saved: SavedModel) -> str:
    """Two of the model's classes, as arguments of a call."""
    names = saved.class_names
    return "0, 1" if names is None or len(names) < 2 else ", ".join(map(literal, names[:2]))


def seeded(saved: SavedModel, model_id: str) -> tuple[str, str]:
    """Usage of a pipeline that takes seeds, and class labels if it has classes."""
    labels = "" if saved.class_names is None else f"class_labels=[{two_classes(saved)}], "
    best = saved.best or Sampling(None, None, None)
    steps = f"num_inference_steps={best.steps}, " if best.steps else ""
    if labels and best.guidance_scale is not None and best.guidance_scale != 1:
        steps = f"guidance_scale={best.guidance_scale:g}, {steps}"
    code = f"""{loading(model_id)}images = pipeline({labels}{steps}seeds=[0, 1]).images
images[0].save("sample.png")"""
    return code, f"A seed gives the same image in any batch. {code_beside(saved)}"


def load_only(saved: SavedModel, model_id: str) -> tuple[str, str]:
    """Usage of a pipeline that is not of this toolkit: how it is called depends on its class."""
    trust = ", trust_remote_code=True" if saved.ships_code else ""
    code = f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({literal(model_id)}{trust})"""
    return code, f"See the documentation of its class, `{saved.pipeline}`, for how to call it."
