"""--init_from: which weights of a saved model a new one starts from, also where its classes are others."""

import logging
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin, UNet2DModel
from torch import Tensor

logger = logging.getLogger(__name__)

_CLASSES = "class_embedding.weight"


def saved_config(source: str) -> dict[str, Any]:
    """The configuration of the network of --init_from."""
    try:
        return dict(UNet2DModel.load_config(source, subfolder=network_folder(source)))
    except (OSError, ValueError) as problem:
        raise _no_model(source, problem) from problem


def take_weights(net: ModelMixin, source: str, new_classes: bool = False) -> None:
    """Copy the weights of a saved pipeline's network; ValueError names what does not fit.

    new_classes: its classes may be others, or none; see `answer_as_without_label`.
    """
    kind = type(net)
    try:
        folder = network_folder(source)
        found = kind.load_config(source, subfolder=folder)["_class_name"]
        if found == kind.__name__:
            # Not the whole pipeline: a bundle's would run the code in it.
            theirs = kind.from_pretrained(source, subfolder=folder).state_dict()
    except (OSError, ValueError) as problem:
        raise _no_model(source, problem) from problem
    if found != kind.__name__:
        raise ValueError(f"--init_from {source!r} has a {found}, and this trains a {kind.__name__}")
    ours = net.state_dict()
    if new_classes:
        theirs = answer_as_without_label(theirs, ours)
    wrong = [n for n in ours if n not in theirs or theirs[n].shape != ours[n].shape] + [
        n for n in theirs if n not in ours
    ]
    if wrong:
        first = "class_embedding.weight" if "class_embedding.weight" in wrong else wrong[0]
        there, here = (list(state[first].shape) if first in state else "none" for state in (theirs, ours))
        classes = "other classes: add --init_new_classes to take all but them"
        hint = classes if _CLASSES in first else "leave --net out, or give the flags of its own training"
        raise ValueError(
            f"--init_from {source!r} has another network ({hint}): {len(wrong)} tensors differ, such as "
            f"{first} with {there} there and {here} here"
        )
    net.load_state_dict(theirs)


def answer_as_without_label(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights `theirs` for a network of the names and shapes of `ours`, whose classes are others.

    The class embedding is a row for each class and a last one for no label, and is added to the embedding of
    t. Each new row starts as the old last one: the other weights have learned what to do with it, on images
    of all classes, so that the new network begins by answering every label as the old one answers none. From
    a model without classes the rows start at zero; to one, the old row moves into the bias that it was added
    to.
    """
    names = sorted(name for name in theirs.keys() | ours.keys() if name.endswith(_CLASSES))
    if not names:
        raise ValueError("--init_new_classes has no effect: neither network has a class embedding")
    taken = {name: tensor for name, tensor in theirs.items() if name not in names}
    for name in names:
        old = theirs[name][-1] if name in theirs else None
        if name in ours:
            taken[name] = ours[name].clone().zero_() if old is None else old.expand_as(ours[name]).clone()
            start = "zero" if old is None else "the old row for no label"
            logger.info("new: %s with %d rows, all starting as %s", name, len(taken[name]), start)
            continue
        bias = name.removesuffix(_CLASSES) + "time_embedding.linear_2.bias"
        taken[bias] = theirs[bias] + old
        logger.info("left out: %s; its row for no label is now part of %s", name, bias)
    return taken


def _no_model(source: str, problem: Exception) -> ValueError:
    return ValueError(
        f"--init_from {source!r} is neither a training's output folder nor a model on the Hub: {problem}"
    )


def network_folder(source: str) -> str:
    """The sub-folder of a saved pipeline, or one on the Hub, that holds its network."""
    index = DiffusionPipeline.load_config(source)
    parts = [name for name, value in index.items() if isinstance(value, list | tuple) and name[0] != "_"]
    return next(name for name in parts if name != "scheduler")
