"""The command line of an entry point: argparse over the options of `flags.py` and the words of its errors."""

import argparse
import math
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from trilemma.pipelines.files.text import as_path, as_text
from trilemma.training.options import plugins
from trilemma.training.options.flags import (
    BOOLEANS,
    IN_DATA,
    NO_EFFECT_IN_DIFFUSERS,
    PLUGIN,
    Flag,
    build,
    flags_of,
    nearest,
)
from trilemma.training.options.yaml_file import read_options


def read_bool(word: str) -> bool:
    """A boolean as a file has it; ValueError for other words."""
    if word.lower() not in BOOLEANS:
        raise ValueError(f"must be one of {', '.join(BOOLEANS)}; got {word!r}")
    return BOOLEANS[word.lower()]


def shown(text: str | list[str] | None) -> str:
    """A value of a file in an error."""
    return "null" if text is None else repr(text)


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
            self.add_argument(
                "--plugin", nargs="+", action="extend", default=argparse.SUPPRESS, metavar="FILE", help=PLUGIN
            )
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
        for name, value in vars(values).items():  # argparse drops the second "--" of "--steps=--"
            if value == []:
                self.error(f"--{name} has no value")
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
            value, needs = values.get(name, flag.default), flag.meta["needs"]
            if value is not None:
                self._check_choices(flag, value, f"--{name}")
            if "" in (value if flag.many and value else [value]):  # a shell variable that is not set
                self.error(f"--{name} must not be empty; leave the flag out for its default")
            if isinstance(value, float) and not math.isfinite(value):
                self.error(f"--{name} must be a finite number; got {value}")
            if value is not None and flag.meta["low"] is not None:
                self._check_bounds(name, value, flag.meta["low"])
            if needs and name in typed and value not in (None, False):
                self._check_effect(name, *needs, values)

    def _check_bounds(self, name: str, value: float, bounds: float | tuple[float, float]) -> None:
        """bounds: see `option`."""
        low, high = bounds if isinstance(bounds, tuple) else (bounds, math.inf)
        allowed = [low < value < high, isinstance(low, int) and value == low]
        allowed += [isinstance(high, int) and value == high]
        if not any(allowed):
            words = f"{'greater than' if isinstance(low, float) else 'at least'} {low:g}"
            if high < math.inf:
                words += f" and {'less than' if isinstance(high, float) else 'at most'} {high:g}"
            self.error(f"--{name} must be {words}; got {value}")

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
