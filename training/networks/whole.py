"""Whether the weights of a saved network are whole and finite, and settings of parts have the right types."""

import inspect
from pathlib import Path
from typing import Any, get_type_hints

from diffusers import ConfigMixin
from torch import nn

from trilemma.pipelines.files.arrays import tensor_shapes
from trilemma.pipelines.files.reading import FileError, check_types, read_json

AGAIN = "restore it from a copy, or download or save it again"


def check_files(folder: Path) -> None:
    """FileError that names a configuration or a file of weights of a saved pipeline which cannot be read."""
    for path in sorted(folder.glob("*/*.json")):
        read_json(path, remedy=AGAIN)
    for path in sorted(folder.glob("*/*.safetensors")):
        tensor_shapes(path, AGAIN)


def check_part(part: Any, where: Path | str) -> None:
    """FileError unless a loaded part of a pipeline has settings of the right types and whole, finite weights.

    where: its folder. Some wrong settings only fail, or give other images, when the part is used.
    """
    if isinstance(part, ConfigMixin):
        kind = type(part)
        usual = {name: one.default for name, one in inspect.signature(kind.__init__).parameters.items()}
        # Not every default of diffusers has the type that is written beside it.
        given = {name: value for name, value in part.config.items() if value != usual.get(name, ...)}
        try:
            check_types(given, get_type_hints(kind.__init__))
        except ValueError as problem:
            raise FileError(Path(where) / kind.config_name, problem, AGAIN) from problem
    if isinstance(part, nn.Module):
        check_weights(part, where)


def check_weights(net: nn.Module, where: Path | str) -> None:
    """FileError unless every weight of a loaded network was in its file, and all are finite.

    where: the folder with the file. diffusers loads what is there and leaves the others without values.
    """
    for name, value in net.state_dict().items():
        if value.is_meta:
            raise FileError(where, f"lacks the weights {name}", AGAIN)
        if not value.isfinite().all():
            raise FileError(where, f"has weights that are not finite, such as {name}", AGAIN)
