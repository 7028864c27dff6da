"""What a card says of each kind of pipeline: how a stranger runs it, its name, whom to cite. A row each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trilemma.model_cards.rendering.facts import Saved
from trilemma.model_cards.rendering.text import literal

Usage = tuple[str, str]
"""The lines of code, and what is to be said about them."""


class Family(NamedTuple):
    """`entry`: the pipeline is made by `training/train_<entry>.py`. The rest is for the card."""

    entry: str | None
    what: str
    papers: Sequence[str]
    usage: Callable[[Saved, str], Usage]


def _stock(saved: Saved, model_id: str) -> Usage:
    total, few = saved.scheduler["num_train_timesteps"], saved.few_steps
    # Stock DDIM does not take the variance that some networks learn beside the noise.
    plain = saved.network["out_channels"] == saved.network["in_channels"]
    pipeline, steps = ("DDIMPipeline", few) if few and plain else ("DDPMPipeline", total)
    trust = "" if saved.index["unet"][0] == "diffusers" else ", trust_remote_code=True"
    # Otherwise stock DDIM keeps the noise of an x_0 that it has clipped.
    clipped = ", use_clipped_model_output=True" if pipeline == "DDIMPipeline" else ""
    code = f"""from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained({literal(model_id)}{trust})
images = pipeline(batch_size=4, num_inference_steps={steps}{clipped}).images
images[0].save("sample.png")"""
    said = "Plain diffusers loads this model; `generator=torch.manual_seed(0)` gives the same images again."
    if pipeline == "DDIMPipeline":
        said += (
            f" For fewer than {total} steps use DDIM, as here, with a number that divides {total}. "
            f"`DDPMPipeline` is for all {total}: with fewer it leaves noise of its last step in the image."
        )
    else:
        said += f" `DDPMPipeline` is to run all {total} steps: with fewer, it leaves noise in the image."
    return code, said


def _class_conditional(saved: Saved, model_id: str) -> Usage:
    few, total = saved.few_steps, saved.scheduler["num_train_timesteps"]
    code = f"""from diffusers import {"DDIMScheduler, " if few else ""}DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({literal(model_id)}, trust_remote_code=True)
"""
    if few:
        code += "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)\n"
    code += f"""images = pipeline(
    class_labels=[{_two_classes(saved)}], guidance_scale=2.0, num_inference_steps={few or total}, seeds=[0, 1]
).images
images[0].save("sample.png")"""
    return code, (
        "`class_labels` takes names, numbers, or None for an image of any class. `guidance_scale` is "
        "diffusers': 1 is the plain conditional model, and w + 1 in the notation of Ho & Salimans. A seed "
        "stands for the same image in any batch. The code that loads is the one Python file beside this page."
    )


def _two_classes(saved: Saved) -> str:
    names = saved.class_names
    return "0, 1" if names is None or len(names) < 2 else ", ".join(map(literal, names[:2]))


def _seeded(saved: Saved, model_id: str) -> Usage:
    labels = "" if saved.class_names is None else f"class_labels=[{_two_classes(saved)}], "
    code = f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({literal(model_id)}, trust_remote_code=True)
images = pipeline({labels}seeds=[0, 1]).images
images[0].save("sample.png")"""
    return code, (
        "A seed stands for the same image in any batch. The code that loads is the one Python file beside "
        "this page."
    )


def _autoencoder(saved: Saved, model_id: str) -> Usage:
    code = f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({literal(model_id)}, trust_remote_code=True)
images = pipeline(seeds=[0, 1]).images
images[0].save("sample.png")
again = pipeline.reconstruct(images)  # or images of your own, of the same size
between = pipeline.interpolate(images[:1], images[1:], steps=8)[0]"""
    return code, (
        "An image is one call of the decoder, and a seed stands for the same image in any batch. The code "
        "that loads is the Python file beside this page and the one beside the weights."
    )


FAMILIES = {
    "DDPMPipeline": Family("unconditional", "unconditional diffusion model", ["ddpm"], _stock),
    "ClassConditionalPipeline": Family(
        "class_conditional",
        "class-conditional diffusion model with classifier-free guidance",
        ["ddpm", "guidance"],
        _class_conditional,
    ),
    "DDGANPipeline": Family("ddgan", "denoising-diffusion GAN", ["ddgan"], _seeded),
    "VDMPipeline": Family("vdm", "variational diffusion model", ["vdm"], _seeded),
    "VAEPipeline": Family("vae", "variational autoencoder", ["vae"], _autoencoder),
}
"""Class of the saved pipeline -> what is said of it."""

OTHER = Family(None, "image generator", [], _seeded)
