"""How dataclasses become a command line: types, bounds, precedence and the wording of every error.

`training/options/groups.py` holds the options themselves. Precedence: default < `--preset` or `--config` <
command line. Nothing here imports torch, so `--help` and a mistyped flag answer at once.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from trilemma.training.options import plugins
from trilemma.training.options.text import as_path, as_text, nearest, read_bool, shown
from trilemma.training.options.yaml_file import read_options

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PLUGIN = "Python file that adds metrics, networks or families (docs/extending.md); may be repeated"
PLACES = (
    "dataset_name", "train_data_dir", "cache_dir", "model_config_name_or_path", "output_dir", "logging_dir",
    "resume_from_checkpoint", "init_from",
)  # fmt: skip
"""Flags that may hold a path."""

IN_DATA = ("classes", "image_column", "label_column", "train_split", "validation_split")
"""Flags that hold names which the data have."""

NO_EFFECT_IN_DIFFUSERS = (
    "dataset_config_name", "lr_warmup_steps", "hub_token", "hub_model_id", "hub_private_repo",
)  # fmt: skip
"""Flags that diffusers' script accepts where they have no effect: here a line says so, and it is no error."""


def option(default, help, *, usual=None, free=False, secret=False, low=None, needs=None, choices=None):
    """A dataclass field that is also a flag.

    usual: of an option whose default, None, is resolved when the run begins: what it usually becomes.
    free: may change when a run is resumed, since it does not change the trained weights.
    secret: never written to a file.
    low: the smallest allowed value; a float bound is exclusive (`low=0.0` means positive).
    needs: (option, values); without one of these values the flag has no effect. `...`: any but None.
    choices: a function that gives them, where plug-ins may add some; so may help be.
    """
    facts = dict(help=help, usual=usual, free=free, secret=secret, low=low, needs=needs, choices=choices)
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
        if not flag.meta["secret"]
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


class Parser(argparse.ArgumentParser):
    """argparse that names the nearest flag, or the entry point that a foreign flag belongs to."""

    def __init__(
        self,
        family: type,
        description: str,
        owners: Callable[[str], Sequence[str]] = lambda flag: (),
        choices: Mapping[str, tuple[str, ...]] = types.MappingProxyType({}),
    ):
        """owners(flag): the entry points that a flag of others belongs to.

        choices: of flags whose choices depend on more than their field; the first is the default.
        """
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self.owners = owners
        self.flags = flags_of(family)
        for name, names in choices.items():
            self.flags[name] = replace(self.flags[name], choices=names, default=names[0])
        sections: dict[str, Any] = {}
        if "plugin" not in self.flags:
            self.add_argument("--plugin", nargs="+", action="extend", metavar="FILE", help=PLUGIN)
        for flag in self.flags.values():
            if flag.group not in sections:
                sections[flag.group] = self.add_argument_group(flag.group)
            self._add(sections[flag.group], flag)

    def _add(self, section, flag: Flag) -> None:
        help = flag.help.replace("%", "%%")
        keywords: dict[str, Any] = dict(default=argparse.SUPPRESS)
        if flag.kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            # Choices are checked by `check`, whose errors suggest the nearest one.
            listed = "{" + ",".join(map(str, flag.choices or ())) + "}"
            keywords.update(type=flag.kind, nargs="+" if flag.many else None)
            if flag.name == "plugin":
                keywords["action"] = "extend"  # each adds to those before it
            keywords["metavar"] = listed if flag.choices else flag.kind.__name__.upper()
        section.add_argument(f"--{flag.name}", help=f"{help} (default: {flag.default})", **keywords)

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """Flat values of the flags on the command line."""
        values, unknown = self.parse_known_args(argv)
        for word in unknown:
            name = word.split("=")[0].lstrip("-")
            if not word.startswith("--"):
                self.error(f"unexpected argument {word!r}")
            if scripts := self.owners(name):
                self.error(f"--{name} does not apply here; it is a flag of {', '.join(scripts)}")
            self.error(f"unknown option --{name}.{nearest('--' + name, ['--' + f for f in self.flags])}")
        return {name: self._in_locale(name, value) for name, value in vars(values).items()}

    def _in_locale(self, name: str, value: Any) -> Any:
        """Names in the data with their characters, and other text as this locale opens files."""
        if isinstance(value, list | tuple):
            return type(value)(self._in_locale(name, one) for one in value)
        return (as_text if name in IN_DATA else as_path)(value) if isinstance(value, str) else value

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{Path(sys.argv[0]).name}: error: {message}\n")

    def read_file(self, path: str) -> dict[str, Any]:
        """Flat values of a YAML file, each read and checked as if it stood on the command line."""
        try:
            texts = read_options(path)
        except ValueError as problem:
            self.error(f"--config {problem}")
        values = {}
        for name, text in texts.items():
            if name not in self.flags:
                self.error(f"--config {path!r}: unknown option {name!r}.{nearest(name, self.flags)}")
            value = self.convert(self.flags[name], text, f"--config {path!r}: {name}")
            values[name] = self._in_locale(name, value)
        return values

    def convert(self, flag: Flag, text: str | list[str] | None, where: str) -> Any:
        """A value from a file, converted as argparse would; exits with an error that names its place."""
        kind = flag.kind.__name__
        if text is None and flag.field.default is None:
            return None
        if text is None or flag.many != isinstance(text, list) or text == []:
            self.error(f"{where} must be {f'a list of {kind}' if flag.many else kind}; got {shown(text)}")
        try:
            read = read_bool if flag.kind is bool else flag.kind
            converted = tuple(read(word) for word in text) if flag.many else read(text)
        except ValueError:
            self.error(f"{where} must be {kind}; got {shown(text)}")
        self._check_choices(flag, converted, where)
        return converted

    def _check_choices(self, flag: Flag, value: Any, where: str) -> None:
        for one in value if flag.many else [value]:
            if flag.choices and one not in flag.choices:
                names = [str(choice) for choice in flag.choices]
                hint = nearest(str(one), names)
                self.error(f"{where} must be one of {', '.join(names)}; got {one!r}.{hint}")

    def check(self, values: dict[str, Any], typed: set[str]) -> None:
        """Choices and bounds of every value, and flags on the command line that would have no effect."""
        for name, flag in self.flags.items():
            value, low, needs = values.get(name, flag.default), flag.meta["low"], flag.meta["needs"]
            if value is not None:
                self._check_choices(flag, value, f"--{name}")
            if isinstance(value, float) and not math.isfinite(value):
                self.error(f"--{name} must be a finite number; got {value}")
            if low is not None and value is not None:
                exclusive = isinstance(low, float)
                if value < low or (exclusive and value == low):
                    self.error(
                        f"--{name} must be {'greater than' if exclusive else 'at least'} {low:g}; got {value}"
                    )
            if needs and name in typed and value not in (None, False):
                self._check_effect(name, *needs, values)

    def _check_effect(self, name: str, other: str, allowed: Any, values: dict[str, Any]) -> None:
        """Exit, or say so, where a flag has no effect: the other option has none of the allowed values."""
        if values.get(other) is None and self.flags[other].meta["usual"] is not None:
            return  # the other one is resolved when the run begins
        actual = values.get(other, self.flags[other].default)
        if (actual in (None, False)) if allowed is ... else (actual not in allowed):
            words = "" if allowed in (..., (True,)) else " " + " or ".join(map(str, allowed))
            remark = f"--{name} has no effect without --{other}{words} (--{other} is {actual})"
            if name not in NO_EFFECT_IN_DIFFUSERS:
                self.error(remark)
            if int(os.environ.get("RANK", 0)) == 0:
                print(f"{Path(sys.argv[0]).name}: {remark}", file=sys.stderr)


def parse_flags(family: type, description: str, argv: list[str]):
    """A configuration from the command line alone, for entry points without presets; exits on errors."""
    try:
        plugins.load_from(argv)
    except ValueError as problem:
        Parser(family, description).error(str(problem))
    parser = Parser(family, description)
    values = parser.parse(argv)
    parser.check(values, set(values))
    try:
        return build(family, values)
    except ValueError as problem:
        parser.error(str(problem))
