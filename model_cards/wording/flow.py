"""What a card says of a flow. Plain diffusers loads it if it has no classes and its network is stock."""

from trilemma.model_cards.rendering.saved_model import SavedModel
from trilemma.model_cards.rendering.snippets import GUIDED, code_beside, loading, two_classes
from trilemma.model_cards.rendering.text import literal
from trilemma.model_cards.wording import Usage, Wording
from trilemma.pipelines.samplers import FLOW_SAMPLERS

LIPMAN = """@inproceedings{lipman2023flow,
  title = {Flow Matching for Generative Modeling},
  author = {Yaron Lipman and Ricky T. Q. Chen and Heli Ben-Hamu and Maximilian Nickel and Matt Le},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  note = {arXiv:2210.02747}
}"""

LIU = """@inproceedings{liu2023flow,
  title = {Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow},
  author = {Xingchao Liu and Chengyue Gong and Qiang Liu},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  note = {arXiv:2209.03003}
}"""

STEPS = 50
"""Where no result says how many."""


def usage(saved: SavedModel, model_id: str) -> Usage:
    """With the sampler, steps and guidance of the best result; with a stock pipeline if the model is one."""
    best = saved.best
    steps = best.steps if best and best.steps else STEPS
    sampler = best.sampler if best and best.sampler in FLOW_SAMPLERS else "euler"
    if not saved.ships_code:
        return _stock(saved, model_id, sampler, steps)
    chosen = f"pipeline = pipeline.with_sampler({literal(sampler)})\n" if sampler != "euler" else ""
    arguments = f"num_inference_steps={steps}, seeds=[0, 1]"
    remark = f"A seed gives the same image in any batch. {code_beside(saved)}"
    if saved.class_names:
        guidance = 2.0 if best is None or best.guidance_scale is None else best.guidance_scale
        arguments = f"\n    class_labels=[{two_classes(saved)}], guidance_scale={guidance}, {arguments}\n"
        remark = (
            "`class_labels` takes names, numbers, or None for an image of any class. `guidance_scale` is "
            f"that of diffusers: 1 gives the plain conditional model. {remark}"
        )
    code = f"""{loading(model_id)}{chosen}images = pipeline({arguments}).images
images[0].save("sample.png")"""
    return code, remark


def _stock(saved: SavedModel, model_id: str, sampler: str, steps: int) -> Usage:
    """With a stock pipeline, whose scheduler is replaced where another sampler was the best."""
    row = FLOW_SAMPLERS[sampler]
    imports = "DDPMPipeline" if sampler == "euler" else f"DDPMPipeline, {row.scheduler}"
    options = "".join(f", {name}={value!r}" for name, value in row.options.items())
    chosen = f"""pipeline.scheduler = {row.scheduler}.from_config(
    pipeline.scheduler.config{options}
)
"""
    trust = ", trust_remote_code=True" if saved.network_has_code else ""
    code = f"""from diffusers import {imports}

pipeline = DDPMPipeline.from_pretrained({literal(model_id)}{trust})
{"" if sampler == "euler" else chosen}images = pipeline(batch_size=4, num_inference_steps={steps}).images
images[0].save("sample.png")"""
    return code, (
        "Plain diffusers loads this model. `generator=torch.manual_seed(0)` gives the same images each time. "
        f"Without `num_inference_steps` the pipeline takes {saved.scheduler['num_train_timesteps']} steps; "
        "far fewer are enough."
    )


WORDING = Wording("flow matching model", {"flow-matching": LIPMAN, "rectified-flow": LIU}, usage, GUIDED)
