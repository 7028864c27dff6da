"""What a card says of the toy family."""

from trilemma.model_cards.rendering.snippets import seeded
from trilemma.model_cards.wording import Wording

WORDING = Wording(
    "toy model of independent pixels",
    {"independence": "@misc{toy,\n  title = {Independent pixels}\n}"},
    seeded,
    {"mean.png": "images, and the mean of each pixel"},
    network="net",
)
