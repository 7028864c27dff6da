"""What a card says of a class-conditional diffusion model."""

from trilemma.model_cards.rendering.credits import DDPM
from trilemma.model_cards.rendering.facts import SavedModel
from trilemma.model_cards.rendering.snippets import PROCESS, code_beside, loading, two_classes
from trilemma.model_cards.wording import Usage, Wording

GUIDANCE = """@misc{ho2022classifierfree,
  title = {Classifier-Free Diffusion Guidance},
  author = {Jonathan Ho and Tim Salimans},
  year = {2022},
  note = {arXiv:2207.12598}
}"""


def usage(saved: SavedModel, model_id: str) -> Usage:
    """With guidance, and with DDIM where it can take few steps."""
    few, total = saved.few_steps, saved.scheduler["num_train_timesteps"]
    code = loading(model_id, *(["DDIMScheduler"] if few else []))
    if few:
        code += "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)\n"
    code += f"""images = pipeline(
    class_labels=[{two_classes(saved)}], guidance_scale=2.0, num_inference_steps={few or total}, seeds=[0, 1]
).images
images[0].save("sample.png")"""
    return code, (
        "`class_labels` takes names, numbers, or None for an image of any class. `guidance_scale` is that of "
        "diffusers: 1 gives the plain conditional model, and it is w + 1 in the notation of Ho & Salimans. A "
        f"seed gives the same image in any batch. {code_beside(saved)}"
    )


WORDING = Wording(
    "class-conditional diffusion model with classifier-free guidance",
    {"ddpm": DDPM, "guidance": GUIDANCE},
    usage,
    PROCESS,
)
