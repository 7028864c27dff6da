"""Whether the weights of a saved network are whole and finite, and its settings have the right types."""

from pathlib import Path
from typing import get_type_hints

from diffusers import ModelMixin
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


def check_weights(net: nn.Module, where: Path | str) -> None:
    """FileError unless every weight of a loaded network was in its file, and all are finite.

    Its settings must have the types that its class says; some wrong ones only fail when it is called.
    where: the folder with the file. diffusers loads what is there and leaves the others without values.
    """
    if isinstance(net, ModelMixin):
        try:
            check_types(net.config, get_type_hints(type(net).__init__))
        except ValueError as problem:
            raise FileError(Path(where) / "config.json", problem, AGAIN) from problem
    for name, value in net.state_dict().items():
        if value.is_meta:
            raise FileError(where, f"lacks the weights {name}", AGAIN)
        if not value.isfinite().all():
            raise FileError(where, f"has weights that are not finite, such as {name}", AGAIN)
