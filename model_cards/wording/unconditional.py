"""What a card says of an unconditional diffusion model. Plain diffusers loads it if its network is stock."""

from trilemma.model_cards.rendering.credits import DDPM
from trilemma.model_cards.rendering.saved_model import SavedModel
from trilemma.model_cards.rendering.snippets import PROCESS, code_beside, loading_with_steps
from trilemma.model_cards.rendering.text import literal
from trilemma.model_cards.wording import Usage, Wording


def usage(saved: SavedModel, model_id: str) -> Usage:
    """With a stock pipeline: DDIM where it can take few steps, else DDPM with all of them."""
    if saved.ships_code:
        return _with_code(saved, model_id)
    total, few, best = saved.scheduler["num_train_timesteps"], saved.few_steps, saved.best
    if best and best.sampler == "ddim" and best.steps and total % best.steps == 0:
        few = best.steps
    elif best and best.sampler == "ddpm" and best.steps == total:
        few = None
    # Stock DDIM does not take the variance that some networks learn beside the noise.
    plain = saved.network["out_channels"] == saved.network["in_channels"]
    pipeline, steps = ("DDIMPipeline", few) if few and plain else ("DDPMPipeline", total)
    trust = ", trust_remote_code=True" if saved.network_has_code else ""
    # Otherwise stock DDIM keeps the noise of an x_0 that it has clipped.
    clipped = ", use_clipped_model_output=True" if pipeline == "DDIMPipeline" else ""
    code = f"""from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained({literal(model_id)}{trust})
images = pipeline(batch_size=4, num_inference_steps={steps}{clipped}).images
images[0].save("sample.png")"""
    remarks = (
        "Plain diffusers loads this model. `generator=torch.manual_seed(0)` gives the same images each time."
    )
    if pipeline == "DDIMPipeline":
        remarks += (
            f" For fewer than {total} steps, use DDIM as shown here, with a number of steps that divides "
            f"{total}."
        )
    return code, remarks + (
        f" Use `DDPMPipeline` with all {total} steps only: with fewer, it leaves the noise of its last step "
        "in the image."
    )


def _with_code(saved: SavedModel, model_id: str) -> Usage:
    """With the pipeline that a network of the toolkit brings."""
    code, steps = loading_with_steps(saved, model_id)
    code += f"""images = pipeline(num_inference_steps={steps}, seeds=[0, 1]).images
images[0].save("sample.png")"""
    return code, f"A seed gives the same image in any batch. {code_beside(saved)}"


WORDING = Wording("unconditional diffusion model", {"ddpm": DDPM}, usage, PROCESS)
