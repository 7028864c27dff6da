"""How dataclasses become options: fields of groups, their types and bounds, their YAML.

`training/options/groups.py` holds the options themselves. Precedence: default < `--preset` or `--config` <
command line. Nothing here imports torch, so `--help` and a mistyped flag answer at once.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from trilemma.pipelines.files.text import as_text

if TYPE_CHECKING:
    from trilemma.training.options.groups import (
        DataConfig,
        EMAConfig,
        EvalConfig,
        HubConfig,
        LogConfig,
        OptimConfig,
        RunConfig,
        SheetConfig,
    )

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PLUGIN = "Python file that adds metrics, networks or families (docs/extending.md); may be repeated"
PLACES = (
    "dataset_name", "train_data_dir", "cache_dir", "model_config_name_or_path", "output_dir", "logging_dir",
    "resume_from_checkpoint", "init_from",
)  # fmt: skip
"""Flags that may hold a path."""

SECRET = ("hub_token",)
"""Flags that are never written to a file."""

IN_DATA = ("classes", "image_column", "label_column", "train_split", "validation_split")
"""Flags that hold names which the data have."""

NO_EFFECT_IN_DIFFUSERS = (
    "dataset_config_name", "lr_warmup_steps", "hub_token", "hub_model_id", "hub_private_repo",
)  # fmt: skip
"""Flags that diffusers' script accepts where they have no effect: here a line says so, and it is no error."""

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""What a file has for a flag that takes no value on the command line."""


class Config(Protocol):
    """The groups that every family's configuration has."""

    data: "DataConfig"
    optim: "OptimConfig"
    ema: "EMAConfig"
    run: "RunConfig"
    log: "LogConfig"
    sheet: "SheetConfig"
    evaluation: "EvalConfig"
    hub: "HubConfig"


def option(default, help, *, usual=None, free=False, low=None, needs=None, choices=None):
    """A dataclass field that is also a flag.

    usual: of an option whose default, None, is resolved when the run begins: what it usually becomes.
    free: may change when a run is resumed, since it does not change the trained weights.
    low: the smallest allowed value, or the smallest and the largest one; a float is exclusive: `low=0.0`
        means positive, and `low=(0, 1.0)` from 0 to below 1.
    needs: (option, values); without one of these values the flag has no effect. `...`: any but None.
    choices: a function that gives them, where plug-ins may add some; so may help be.
    """
    facts = dict(help=help, usual=usual, free=free, low=low, needs=needs, choices=choices)
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Flag:
    """One option: its name, its group in the family's configuration, its type and its field."""

    name: str
    group: str
    kind: Any
    choices: tuple | None
    many: bool
    field: dataclasses.Field
    default: Any

    @property
    def meta(self):
        return self.field.metadata

    @property
    def help(self) -> str:
        """What `--help` says of it."""
        return self.meta["help"]() if callable(self.meta["help"]) else self.meta["help"]


def _flag(group: str, field: dataclasses.Field, annotation) -> Flag:
    many, choices = False, None
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        many, annotation = True, typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        annotation = type(choices[0])
    if field.metadata["choices"]:
        choices = field.metadata["choices"]()
    default = field.default if field.metadata["usual"] is None else field.metadata["usual"]
    return Flag(field.name, group, annotation, choices, many, field, default)


def flags_of(family: type) -> dict[str, Flag]:
    """Every flag of a family's configuration, by name, in the order of its groups."""
    flags = {}
    for group, group_type in typing.get_type_hints(family).items():
        hints = typing.get_type_hints(group_type)
        for f in dataclasses.fields(group_type):
            flags[f.name] = _flag(group, f, hints[f.name])
    return flags


def flatten(config) -> dict[str, Any]:
    """{flag: value} of a configuration, secrets left out; what config.yaml holds."""
    return {
        name: getattr(getattr(config, flag.group), name)
        for name, flag in flags_of(type(config)).items()
        if name not in SECRET
    }


def build(family: type, values: dict[str, Any]):
    """A family's configuration from flat values; the other options keep their defaults."""
    groups: dict[str, dict] = {}
    for name, flag in flags_of(family).items():
        if name in values:
            value = values[name]
            groups.setdefault(flag.group, {})[name] = tuple(value) if isinstance(value, list) else value
    hints = typing.get_type_hints(family)
    return family(**{group: hints[group](**groups.get(group, {})) for group in hints})


def to_yaml(config) -> str:
    """The resolved configuration as YAML that `--config` reads back."""
    return dump(flatten(config))


def dump(values: Mapping[str, Any]) -> str:
    """Flat values as YAML that `--config` reads back."""
    plain = {name: _plain(value) for name, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return as_text(value) if isinstance(value, str) else value


def public_name(place: str) -> str:
    """A Hub id as it is; only the last part of a path on this machine."""
    return place if HUB_ID.fullmatch(place) else re.split(r"[\\/]", place.rstrip("\\/"))[-1]


def public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values without the paths of this machine, for files that are published."""
    files = [public_name(file) for file in values.get("plugin") or ()]
    places = {name: public_name(values[name]) for name in PLACES if values.get(name)}
    return {**values, **places, **({"plugin": files} if files else {})}


def nearest(word: str, names: Iterable[str]) -> str:
    """' Did you mean ...?' for a mistyped name, or ''."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""
