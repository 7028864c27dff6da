"""The families, a file each: a family is a column through the floors, with a file of its name on each.

    training/families/<family>.py      its options, its recipes, how its Method is built
    training/objectives/<objective>.py its loss, which families may share
    pipelines/<family>.py              its pipeline
    eval/bounds/<family>.py            its bits per dimension, if it has a bound
    eval/pictures/<family>.py          its pictures of the process
    model_cards/wording/<family>.py    what a card says of it

A new family is new files and no edit: the files are looked up by the family's name. No torch here.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from trilemma.pipelines import LIKE

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trilemma.training.images.image_set import Images
    from trilemma.training.loop.method import Method


class Preset(NamedTuple):
    """A recipe: options by flag name, and the paper or measurement that they come from."""

    options: Mapping[str, Any]
    source: str

    def options_for(self, max_train_steps: int | None) -> dict[str, Any]:
        """The options for a run of this length; None: the recipe's.

        A warm-up longer than half of the run is left out, and then fits its length as if none were given.
        """
        options = dict(self.options)
        if max_train_steps and 2 * options.get("lr_warmup_steps", 0) > max_train_steps:
            options.pop("lr_warmup_steps", None)
        return options


def never(config: Any) -> bool:
    """For a family none of whose models is class-conditional."""
    return False


def always(config: Any, sampler: str) -> bool:
    """For a family all of whose models have all of its samplers."""
    return True


def as_given(config: Any, *facts: Any) -> Any:
    """For a family whose options do not depend on the data."""
    return config


class Family(NamedTuple):
    """What `training/families/<family>.py` gives under the name FAMILY.

    config: a frozen dataclass of groups of options. presets: the first is the one that a command line without
    data stands for. samplers: what --sampler takes; the first is that of sheets and of evaluation during
    training. build(config, images, accelerator, total_steps): the Method; torch is imported inside.
    takes_classes(config): whether a model of these options is class-conditional. can_sample(config, sampler):
    whether a model of these options has this sampler. inherited: flags that the weights have learned, which
    a run from --init_from takes over. from_flow: whether --init_from may be a flow, whose process and target
    are then not taken over. complete(config, given, images, accelerator, folder, build): the
    configuration with the options that depend on the data; those in `given` were typed and stay.
    faster(config): whether a run of these options may choose bf16, or to compile, by itself.
    """

    config: type
    presets: Mapping[str, Preset]
    samplers: tuple[str, ...]
    build: "Callable[[Any, Images, Accelerator, int], Method]"
    takes_classes: Callable[[Any], bool] = never
    can_sample: Callable[[Any, str], bool] = always
    inherited: tuple[str, ...] = ()
    from_flow: bool = False
    complete: Callable[..., Any] = as_given
    faster: Callable[[Any], bool] = never

    def samplers_for(self, config: Any) -> tuple[str, ...]:
        """The samplers of a model of these options."""
        return tuple(name for name in self.samplers if self.can_sample(config, name))


OUTSIDE: dict[str, Family] = {}
"""The families of plug-ins; `pipelines.LIKE` says whose files they use on the other floors."""


def names() -> tuple[str, ...]:
    """The families that there are, by name, in alphabetical order."""
    return tuple(sorted([*OUTSIDE, *(module.name for module in pkgutil.iter_modules(__path__))]))


def family(name: str) -> Family:
    """The row of a family; ValueError lists the families."""
    if name not in names():
        raise ValueError(f"the family must be one of {', '.join(names())}; got {name!r}")
    return OUTSIDE.get(name) or importlib.import_module(f"{__name__}.{name}").FAMILY


def column(floor: str, family: str) -> ModuleType | None:
    """The file of a family on a floor, such as "trilemma.eval.bounds"; None where it has none there."""
    name = f"{floor}.{LIKE.get(family, family)}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
