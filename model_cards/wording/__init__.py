"""What a card says of a family, one file each: `model_cards/wording/<family>.py` gives a WORDING.

A new family is a new file here and no edit. Code that several snippets share is in `rendering/snippets.py`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from trilemma.model_cards.rendering.saved_model import SavedModel
from trilemma.model_cards.rendering.snippets import load_only
from trilemma.training import families

Usage = tuple[str, str]
"""Python code that samples from the model, and remarks on it."""


class Wording(NamedTuple):
    """What a card says of a family.

    what: the kind of model, as in "A denoising-diffusion GAN". papers: BibTeX by key; the keys become tags of
    the model on the Hub. usage: of the saved model and its Hub id. pictures: name of a file in the output
    folder -> its caption; files that are not there are not shown. network: the pipeline's component that is
    its network.
    """

    what: str
    papers: Mapping[str, str]
    usage: Callable[[SavedModel, str], Usage]
    pictures: Mapping[str, str]
    network: str = "unet"


OTHER = Wording("image generator", {}, load_only, {})
"""For a pipeline that is not of this toolkit."""


def wording(family: str | None) -> Wording:
    """The wording of a family; that of any image generator for None."""
    if family is None:
        return OTHER
    module = families.column(__name__, family)
    if module is None:
        raise ValueError(f"the family {family} has no file model_cards/wording/{family}.py")
    return module.WORDING
