"""How dataclasses become a command line: types, bounds, precedence and the wording of every error.

`training/options/groups.py` holds the options themselves. Precedence: default < `--preset` or `--config` <
command line. Nothing here imports torch, so `--help` and a mistyped flag answer at once.
"""

import argparse
import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PLACES = (
    "dataset_name", "train_data_dir", "cache_dir", "model_config_name_or_path", "output_dir", "logging_dir",
    "resume_from_checkpoint", "init_from",
)  # fmt: skip
"""Flags that may hold a path."""


def option(default, help, *, free=False, secret=False, low=None, needs=None):
    """A dataclass field that is also a flag.

    free: may change when a run is resumed, since it does not change the trained weights.
    secret: never written to a file.
    low: the smallest allowed value; a float bound is exclusive (`low=0.0` means positive).
    needs: (option, values); without one of these values the flag has no effect. `...`: any but None.
    """
    return field(default=default, metadata=dict(help=help, free=free, secret=secret, low=low, needs=needs))


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


def _flag(group: str, field: dataclasses.Field, annotation) -> Flag:
    many, choices = False, None
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        many, annotation = True, typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        annotation = type(choices[0])
    return Flag(field.name, group, annotation, choices, many, field, field.default)


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
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(config).items()}
    return yaml.safe_dump(plain, sort_keys=False)


def public_name(place: str) -> str:
    """A Hub id as it is; only the last part of a path on this machine."""
    return place if HUB_ID.fullmatch(place) else re.split(r"[\\/]", place.rstrip("\\/"))[-1]


def public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values without the paths of this machine, for files that are published."""
    return {**values, **{name: public_name(values[name]) for name in PLACES if values.get(name)}}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping of names to values that a YAML file holds; ValueError if it holds something else."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as problem:
        raise ValueError(f"{str(path)!r} cannot be read: {problem}") from problem
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} must map option names to values; it holds {type(values).__name__}")
    return values


def nearest(word: str, names: Iterable[str]) -> str:
    """' Did you mean ...?' for a mistyped name, or ''."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


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
        for flag in self.flags.values():
            if flag.group not in sections:
                sections[flag.group] = self.add_argument_group(flag.group)
            self._add(sections[flag.group], flag)

    def _add(self, section, flag: Flag) -> None:
        help = flag.meta["help"].replace("%", "%%")
        keywords: dict[str, Any] = dict(default=argparse.SUPPRESS)
        if flag.kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            # Choices are checked by `check`, whose errors suggest the nearest one.
            listed = "{" + ",".join(map(str, flag.choices or ())) + "}"
            keywords.update(type=flag.kind, nargs="+" if flag.many else None)
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
        return vars(values)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{Path(sys.argv[0]).name}: error: {message}\n")

    def read_file(self, path: str) -> dict[str, Any]:
        """Flat values of a YAML file, each checked like one on the command line."""
        try:
            values = read_yaml(path)
        except ValueError as problem:
            self.error(f"--config {problem}")
        for name, value in values.items():
            if name not in self.flags:
                self.error(f"--config {path!r}: unknown option {name!r}.{nearest(str(name), self.flags)}")
            values[name] = self.check_type(name, value, f"--config {path!r}: {name}")
        return values

    def check_type(self, name: str, value, where: str):
        """A value from YAML, converted as argparse would convert it, or an error that names its place."""
        flag = self.flags[name]
        if value is None:
            return None
        if flag.many != isinstance(value, list) or (flag.kind is bool) != isinstance(value, bool):
            self.error(
                f"{where} must be {'a list of ' if flag.many else ''}{flag.kind.__name__}; got {value!r}"
            )
        try:
            converted = [flag.kind(v) for v in value] if flag.many else flag.kind(value)
        except (TypeError, ValueError):
            self.error(f"{where} must be {flag.kind.__name__}; got {value!r}")
        self._check_choices(flag, converted, where)
        return tuple(converted) if flag.many else converted

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
        """Exit where a flag has no effect, since the other option has none of the allowed values."""
        actual = values.get(other, self.flags[other].default)
        if (actual in (None, False)) if allowed is ... else (actual not in allowed):
            words = "" if allowed in (..., (True,)) else " " + " or ".join(map(str, allowed))
            self.error(f"--{name} has no effect without --{other}{words} (--{other} is {actual})")


def parse_flags(family: type, description: str, argv: list[str]):
    """A configuration from the command line alone, for entry points without presets; exits on errors."""
    parser = Parser(family, description)
    values = parser.parse(argv)
    parser.check(values, set(values))
    try:
        return build(family, values)
    except ValueError as problem:
        parser.error(str(problem))
