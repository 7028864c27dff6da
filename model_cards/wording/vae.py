"""What a card says of a variational autoencoder."""

from trilemma.model_cards.rendering.saved_model import SavedModel
from trilemma.model_cards.rendering.snippets import code_beside, loading
from trilemma.model_cards.wording import Usage, Wording

VAE = """@inproceedings{kingma2014autoencoding,
  title = {Auto-Encoding Variational {Bayes}},
  author = {Diederik P. Kingma and Max Welling},
  booktitle = {International Conference on Learning Representations},
  year = {2014},
  note = {arXiv:1312.6114}
}"""


def usage(saved: SavedModel, model_id: str) -> Usage:
    """Sample, reconstruct, interpolate."""
    code = f"""{loading(model_id)}images = pipeline(seeds=[0, 1]).images
images[0].save("sample.png")
again = pipeline.reconstruct(images)  # or images of your own, of the same size
between = pipeline.interpolate(images[:1], images[1:], steps=8)[0]"""
    return code, (
        "An image takes one call of the decoder. A seed gives the same image in any batch. "
        f"{code_beside(saved)}"
    )


WORDING = Wording(
    "variational autoencoder",
    {"vae": VAE},
    usage,
    {
        "reconstructions.png": "images, and below them their reconstructions",
        "interpolations.png": "interpolation between the codes of two images",
    },
    network="vae",
)
