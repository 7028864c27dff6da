"""Text, JSON and YAML from files that may be damaged or hostile: bounded in size, depth and time.

Whatever is wrong with a file is a FileError, one line that names it. No other file parses JSON or YAML that
was not written a moment ago. Arrays and weights are read by `arrays.py`.
"""

import json
import os
import stat
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

LARGEST_TEXT = 64 * 2**20
"""Bytes of a text file. The largest of ours, the index of a model with a name for each class, has 1 MB."""
LARGEST_YAML = 1_000_000
"""Bytes; a file of all options has a few thousand."""
LARGEST_LINE = 2**20
"""Bytes in a line of a file with an object on each line."""
MOST_NODES = 50_000
"""Values in a YAML file, those that an alias repeats counted again."""
LONGEST_INTEGER = 300
"""Characters."""
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")

KINDS = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}


class FileError(ValueError):
    """A file that cannot be used; the message names it and says what is wrong with it."""

    def __init__(self, place: Path | str, problem: object = "", remedy: str = ""):
        """place: the file, or all that is to be said, where there is no more."""
        words = " ".join(str(problem).split()) or (type(problem).__name__ if problem != "" else "")
        words = words if len(words) <= 500 else f"{words[:500]} ..."
        super().__init__(f"{place} {words}".rstrip() + (f"; {remedy}" if remedy else ""))


def read_text(path: Path | str, limit: int = LARGEST_TEXT) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; FileError says what else it is.

    Every end of a line becomes \\n.
    """
    try:
        encoded = None
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            with open(path, "rb") as file:
                encoded = file.read(limit + 1)
    except (OSError, ValueError) as problem:  # ValueError: a name with a zero byte
        raise FileError(path, f"cannot be read: {problem}") from problem
    if encoded is None:
        raise FileError(path, "cannot be read: it is a pipe, which may never end")
    if len(encoded) > limit:
        raise FileError(path, f"cannot be read: it has more than {limit:,} bytes")
    return _decoded(encoded, path).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(encoded: bytes, place: Path | str, remedy: str = "save it as UTF-8") -> str:
    try:
        return encoded.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        seems = ", but seemingly UTF-16" if encoded.startswith(BYTE_ORDER_MARKS) else ""
        raise FileError(place, f"is not text in UTF-8{seems} ({problem})", remedy) from problem


def read_json(path: Path | str, shape: type[T] = dict, remedy: str = "") -> T:
    """The JSON value in a file, which must be of this type: an object by default."""
    return _parsed(read_text(path), path, shape, remedy)


def read_json_lines(
    path: Path | str,
    remedy: str = "delete the line",
    damaged: Callable[[FileError], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and JSON object of each line that is not blank; none where there is no file.

    damaged: called with the error of a damaged line, which is then left out; by default it is raised.
    """
    if not Path(path).exists():
        return
    try:
        with open(path, "rb") as file:
            number = 0
            while encoded := file.readline(LARGEST_LINE + 1):
                number += 1
                place = f"{path}, line {number}"
                if len(encoded) > LARGEST_LINE:  # the next lines may be of any length, too
                    raise FileError(place, f"has more than {LARGEST_LINE:,} bytes", remedy)
                if not encoded.strip():
                    continue
                try:
                    values = _parsed(_decoded(encoded, place, remedy), place, dict, remedy)
                except FileError as fault:
                    if damaged is None:
                        raise
                    damaged(fault)
                else:
                    yield number, values
    except OSError as problem:
        raise FileError(path, f"cannot be read: {problem}") from problem


def _parsed(text: str, place: Path | str, shape: type[T], remedy: str) -> T:
    try:
        values = json.loads(text, parse_float=_float, parse_int=_int)
    except RecursionError as problem:
        raise FileError(place, "is not JSON: it is nested too deeply", remedy) from problem
    except ValueError as problem:
        raise FileError(place, f"is not JSON: {problem}", remedy) from problem
    if not isinstance(values, shape):
        raise FileError(place, f"must hold {KINDS[shape]} in JSON; it holds {_kind(values)}", remedy)
    return values


def _float(literal: str) -> float:
    if (value := float(literal)) in (float("inf"), float("-inf")):
        raise ValueError(f"the number {literal[:20]} is too large")
    return value


def _int(literal: str) -> int:
    if len(literal) > LONGEST_INTEGER:
        raise ValueError(f"the number {literal[:20]}... has {len(literal)} digits")
    return int(literal)


def _kind(value: object) -> str:
    return KINDS.get(type(value), "a number")


# YAML


class _Loader(yaml.SafeLoader):
    """SafeLoader that counts what a file says, with what its aliases repeat, and stops at MOST_NODES."""

    def __init__(self, text: str):
        super().__init__(text)
        self.nodes, self.sizes = 0, {}

    def compose_node(self, parent, index):
        repeated, before = self.check_event(yaml.AliasEvent), self.nodes
        node = super().compose_node(parent, index)
        if repeated and id(node) not in self.sizes:
            raise yaml.YAMLError("a value contains itself")
        self.nodes += self.sizes[id(node)] if repeated else 1
        if self.nodes > MOST_NODES:
            raise yaml.YAMLError(f"it has more than {MOST_NODES:,} values")
        self.sizes[id(node)] = self.nodes - before
        return node


def _integer(loader: _Loader, node: yaml.Node) -> int:
    """PyYAML's integers take a time that grows with the square of their length."""
    if len(node.value) > LONGEST_INTEGER:
        raise yaml.YAMLError(f"it has an integer of more than {LONGEST_INTEGER} characters")
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_yaml(text: str, path: Path | str) -> Any:
    """The value of a YAML text; path: the file that errors name."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as problem:
        raise FileError(path, "cannot be read: it is nested too deeply") from problem
    except Exception as problem:  # PyYAML's constructors raise anything for values such as `!!timestamp x`
        raise FileError(path, f"cannot be read: {problem}") from problem


def read_yaml(path: Path | str, shape: type[T] = dict) -> T:
    """The YAML value in a file, which must be of this type: a mapping by default."""
    values = parse_yaml(read_text(path, LARGEST_YAML), path)
    if not isinstance(values, shape):
        kind = "nothing" if values is None else _kind(values)
        raise FileError(path, f"must map names to values; it holds {kind}")
    return values


# What the entries of a file must be


def check_types(values: Mapping[str, Any], types_of: Mapping[str, Any]) -> None:
    """ValueError that names the first of these entries that is there and has another type."""
    for name, hint in types_of.items():
        if name in values and not fits(values[name], hint):
            shown = repr(values[name])
            shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
            raise ValueError(f"has {name} {shown}, which is not {_words(hint)}")


def fits(value: object, hint: Any) -> bool:
    """Whether a value as JSON has it is of a type as annotations have it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if parts[1:] == (...,):
            return all(fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(key, parts[0]) and fits(item, parts[1]) for key, item in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    """What a type of these annotations is called in an error."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(map(_words, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (tuple, list):
        return "a list of the right values"
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return words.get(hint, "an object")
