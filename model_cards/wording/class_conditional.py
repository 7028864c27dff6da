"""What a card says of a class-conditional diffusion model."""

from trilemma.model_cards.rendering.credits import DDPM
from trilemma.model_cards.rendering.saved_model import SavedModel
from trilemma.model_cards.rendering.snippets import GUIDED, code_beside, loading_with_steps, two_classes
from trilemma.model_cards.wording import Usage, Wording

GUIDANCE = """@misc{ho2022classifierfree,
  title = {Classifier-Free Diffusion Guidance},
  author = {Jonathan Ho and Tim Salimans},
  year = {2022},
  note = {arXiv:2207.12598}
}"""


def usage(saved: SavedModel, model_id: str) -> Usage:
    """With the sampler and the guidance of the best result; without results, with guidance and few steps."""
    code, steps = loading_with_steps(saved, model_id)
    best = saved.best
    guidance = 2.0 if best is None or best.guidance_scale is None else best.guidance_scale
    code += f"""images = pipeline(
    class_labels=[{two_classes(saved)}], guidance_scale={guidance}, num_inference_steps={steps}, seeds=[0, 1]
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
    GUIDED,
)
