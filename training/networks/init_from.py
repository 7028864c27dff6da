"""--init_from: starting from the weights of a saved model, which may have other classes."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin, UNet2DModel
from torch import Tensor

from trilemma.pipelines.files import saved
from trilemma.pipelines.files.reading import FileError
from trilemma.training.networks.whole import check_files, check_part

logger = logging.getLogger(__name__)

_CLASSES = "class_embedding.weight"

DATA = {"sample_size", "dropout", "num_class_embeds"}
"""Entries of a network's configuration that depend on data and training, and so may differ."""


def saved_config(source: str) -> dict[str, Any]:
    """The configuration of the network of --init_from."""
    try:
        return dict(UNet2DModel.load_config(source, subfolder=network_folder(source)))
    except (OSError, ValueError) as problem:
        raise _no_model(source, problem) from problem


def take_weights(
    net: ModelMixin, source: str, classes: tuple[str, ...] | None = None, new_classes: bool = False
) -> None:
    """Copy the weights of a saved pipeline's network; ValueError names what does not fit.

    classes: names of the new model's. new_classes: the saved model's may be others; see `for_new_classes`.
    """
    theirs_net = _load(source, type(net))
    theirs, ours = theirs_net.state_dict(), net.state_dict()
    if new_classes:
        their_classes = _class_names(source)
        if their_classes == classes is None and not any(name.endswith(_CLASSES) for name in theirs | ours):
            raise ValueError("--init_new_classes has no effect: neither model has classes")
        theirs = for_new_classes(theirs, ours, _same_names(their_classes or (), classes or ()))
    else:
        check_classes(source, classes)
    _check_shapes(source, theirs, ours)
    if different := unlike(theirs_net.config, net.config):
        raise ValueError(
            f"--init_from {source!r} has weights of these shapes, but they were trained for another network "
            f"(give the flags of its own training): {'; '.join(different)}"
        )
    net.load_state_dict(theirs)


def check_classes(source: str, classes: tuple[str, ...] | None) -> None:
    """ValueError for a saved model of other classes than these, if it says which it has."""
    theirs = _class_names(source)
    if theirs is not None and theirs != (classes or ()):
        raise ValueError(
            f"--init_from {source!r} has {_shown(theirs)}, and this trains a model of {_shown(classes)}: "
            "add --init_new_classes to take all weights but those of the classes"
        )


def _load(source: str, kind: type[ModelMixin]) -> ModelMixin:
    """The network of a saved pipeline; ValueError if it is of another class than `kind`."""
    try:
        if Path(source).is_dir():
            check_files(Path(source))
        folder = network_folder(source)
        name = kind.load_config(source, subfolder=folder)["_class_name"]
        if name == kind.__name__:
            # Not the whole pipeline: a bundle's would run the code in it.
            net = kind.from_pretrained(source, subfolder=folder, use_safetensors=True)
            check_part(net, f"{source}/{folder}")
            return net
    except FileError as fault:
        raise ValueError(f"--init_from: {fault}") from fault
    except Exception as problem:  # what diffusers makes of a damaged folder
        raise _no_model(source, problem) from problem
    raise ValueError(f"--init_from {source!r} has a {name}, and this trains a {kind.__name__}")


def _check_shapes(source: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """ValueError where two state dicts differ in names or shapes."""
    wrong = [n for n in ours if n not in theirs or theirs[n].shape != ours[n].shape] + [
        n for n in theirs if n not in ours
    ]
    if wrong:
        first = _CLASSES if _CLASSES in wrong else wrong[0]
        there, here = (list(state[first].shape) if first in state else "none" for state in (theirs, ours))
        classes = "other classes: add --init_new_classes to take all weights but theirs"
        hint = classes if _CLASSES in first else "give the flags of its own training"
        raise ValueError(
            f"--init_from {source!r} has another network ({hint}): {len(wrong)} tensors differ, such as "
            f"{first} with {there} there and {here} here"
        )


def unlike(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """'name: value there, value here' for entries with which equal weights make different functions."""
    different = []
    for name in sorted(theirs.keys() & ours.keys() - DATA):
        there, here = theirs[name], ours[name]
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            different += unlike(there, here)
        elif name[0] != "_" and _plain(there) != _plain(here):
            different.append(f"{name}: {there} there, {here} here")
    return different


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _same_names(theirs: tuple[str, ...], ours: tuple[str, ...]) -> dict[int, int]:
    """Number of a class here -> its number there, for names that both have."""
    return {k: theirs.index(name) for k, name in enumerate(ours) if name in theirs}


def for_new_classes(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], same: Mapping[int, int]
) -> dict[str, Tensor]:
    """The weights `theirs` for a network with the names and shapes of `ours` but other classes.

    same: number of a class here -> its number there. The class embedding has a row for each class and a last
    one for "no label", and is added to the embedding of t. The row of a class that both have is kept. Each
    other one starts as a copy of the old last row, which the other weights have seen with images of all
    classes: so the new network first answers a new label as the old one answers "no label". From a model
    without classes, the rows start at zero; for a new model without classes, the old last row is added to the
    bias. Where the class is part of a vector with z, there is no embedding: the weights stay as they are.
    """
    names = sorted(name for name in theirs.keys() | ours.keys() if name.endswith(_CLASSES))
    taken = {name: tensor for name, tensor in theirs.items() if name not in names}
    for name in names:
        old = theirs[name][-1] if name in theirs else None
        if name in ours:
            taken[name] = ours[name].clone().zero_() if old is None else old.repeat(len(ours[name]), 1)
            kept = {} if old is None else same
            for here, there in kept.items():
                taken[name][here] = theirs[name][there]
            start = "zero" if old is None else "the old row for no label"
            logger.info(
                "new: %s with %d rows: %d of classes with the same names, the others starting as %s",
                name, len(taken[name]), len(kept), start,
            )  # fmt: skip
            continue
        bias = name.removesuffix(_CLASSES) + "time_embedding.linear_2.bias"
        taken[bias] = theirs[bias] + old
        logger.info("left out: %s; its row for no label is now part of %s", name, bias)
    return taken


def _no_model(source: str, problem: Exception) -> ValueError:
    return ValueError(
        f"--init_from {source!r} is neither a training's output folder nor a model on the Hub: {problem}"
    )


def _class_names(source: str) -> tuple[str, ...] | None:
    """The classes of a saved pipeline, () for none, and None where it does not say."""
    index = DiffusionPipeline.load_config(source)
    if "class_names" not in index:
        return None
    names = index["class_names"] or {}
    return tuple(names[k] for k in sorted(names, key=int))  # JSON has "10" before "2"


def _shown(classes: tuple[str, ...] | None) -> str:
    some = ", ".join(map(repr, (classes or ())[:5])) + (", ..." if len(classes or ()) > 5 else "")
    return f"{len(classes)} classes ({some})" if classes else "no classes"


def network_folder(source: str) -> str:
    """The sub-folder of a saved pipeline, or one on the Hub, that holds its network."""
    path = saved.index_path(source)
    if not path.is_file():
        raise FileNotFoundError(f"it has no {path.name}")
    names = [name for name in saved.parts(saved.read_index(path)) if name != "scheduler"]
    if not names:
        raise FileError(path, "names no network")
    saved.check_weights(path.parent, names[:1])
    return names[0]
