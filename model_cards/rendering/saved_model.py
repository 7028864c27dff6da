"""What the files of a saved pipeline say: its index and the configurations of its parts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trilemma.pipelines.files.arrays import tensor_shapes
from trilemma.pipelines.files.reading import FileError, check_types
from trilemma.pipelines.files.saved import read_configuration
from trilemma.training.output_folder import OutputFolder

NETWORK = {"sample_size": int | tuple[int, int] | None, "in_channels": int, "out_channels": int}
SCHEDULER = {"num_train_timesteps": int}
"""Types of the entries of their configurations that a card shows."""

WEIGHTS = ".safetensors"

FEW = 50
"""The most steps of DDIM that a card recommends."""


class Sampling(NamedTuple):
    """How samples were drawn; None for what a family does not have, or leaves to its default."""

    sampler: str | None
    steps: int | None
    guidance_scale: float | None


@dataclass(frozen=True)
class SavedModel:
    """What the pipeline's own files say: its index, and the configurations of its network and its scheduler.

    `scheduler` is empty for a pipeline without one. network_class, parameters: the network's class, and how
    many numbers its weights are; None where no file says so. best: how the best result was sampled.
    """

    index: Mapping[str, Any]
    network: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    network_has_code: bool
    network_class: str | None = None
    parameters: int | None = None
    best: Sampling | None = None

    @property
    def pipeline(self) -> str:
        """Name of the pipeline's class."""
        return self.index["_class_name"][1] if self.ships_code else self.index["_class_name"]

    @property
    def ships_code(self) -> bool:
        """Whether the pipeline's class comes with the model."""
        return isinstance(self.index["_class_name"], list)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in their order, or None."""
        names = self.index.get("class_names")
        return None if names is None else [names[key] for key in sorted(names, key=int)]

    @property
    def task(self) -> str:
        """What the model does, in the Hub's words; only unconditional models have a task page there."""
        return ("class-conditional" if self.class_names else "unconditional") + "-image-generation"

    @property
    def few_steps(self) -> int | None:
        """The largest number of DDIM steps up to FEW that divides T; None if it is T itself or below 10."""
        total = self.scheduler["num_train_timesteps"]
        steps = max(n for n in range(1, FEW + 1) if total % n == 0)
        return steps if 10 <= steps < total else None


def read_saved_model(folder: OutputFolder, network: str) -> SavedModel:
    """Read the files of a pipeline whose network is the component of this name."""
    index = folder.read_index()
    return SavedModel(
        index,
        _configuration(folder, network, "config.json", NETWORK),
        _configuration(folder, "scheduler", "scheduler_config.json", SCHEDULER),
        network_has_code=isinstance(index.get(network), list) and index[network][0] != "diffusers",
        network_class=index[network][1] if isinstance(index.get(network), list) else None,
        parameters=_parameters(folder.path / network),
    )


def _parameters(component: Path) -> int | None:
    """How many numbers the weights of a component are; None without weights, or with damaged ones."""
    try:
        shapes = [tensor_shapes(file) for file in sorted(component.glob(f"*{WEIGHTS}"))]
    except (ValueError, OSError):
        return None
    return sum(math.prod(shape) for tensors in shapes for shape in tensors.values()) or None


def _configuration(
    folder: OutputFolder, component: str, name: str, types_of: Mapping[str, Any]
) -> Mapping[str, Any]:
    """A component's configuration, as diffusers saves it; {} if there is no such component."""
    path = folder.path / component / name
    values = read_configuration(path) if path.exists() else {}
    try:
        check_types(values, types_of)
        if path.exists() and types_of is SCHEDULER and SCHEDULER.keys() - values.keys():
            raise ValueError(f"lacks {', '.join(SCHEDULER)}")
    except ValueError as problem:
        raise FileError(path, problem) from problem
    return values
