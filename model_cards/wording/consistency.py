"""What a card says of a consistency model. Plain diffusers loads it if it has no classes."""

from trilemma.model_cards.rendering.saved_model import SavedModel
from trilemma.model_cards.rendering.snippets import PROCESS, seeded
from trilemma.model_cards.rendering.text import literal
from trilemma.model_cards.wording import Usage, Wording

CONSISTENCY = """@inproceedings{song2023consistency,
  title = {Consistency Models},
  author = {Yang Song and Prafulla Dhariwal and Mark Chen and Ilya Sutskever},
  booktitle = {International Conference on Machine Learning},
  year = {2023},
  note = {arXiv:2303.01469}
}"""

TUNING = """@inproceedings{geng2025consistency,
  title = {Consistency Models Made Easy},
  author = {Zhengyang Geng and Ashwini Pokle and William Luo and Justin Lin and J. Zico Kolter},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
  note = {arXiv:2406.14548}
}"""


def usage(saved: SavedModel, model_id: str) -> Usage:
    """With a stock pipeline, or with the code that a model with classes brings; in the steps of the best
    result, or two.
    """
    if saved.ships_code:
        return seeded(saved, model_id)
    steps = saved.best.steps if saved.best and saved.best.steps else 2
    code = f"""from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained({literal(model_id)})
images = pipeline(batch_size=4, num_inference_steps={steps}).images
images[0].save("sample.png")"""
    return code, (
        "Plain diffusers loads this model. Always pass `num_inference_steps`, such as 1, 2 or 4: the default "
        "of `DDPMPipeline` is 1000. `generator=torch.manual_seed(0)` gives the same images each time."
    )


WORDING = Wording("consistency model", {"consistency": CONSISTENCY, "tuning": TUNING}, usage, PROCESS)
