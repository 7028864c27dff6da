"""YAML files of options. YAML's own types are not used: a value is text, as on a command line.

So `010`, `1:30`, `1.10`, `0123456` and `no` stay as they are written, and the option converts them.
"""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 1_000_000
"""Bytes; a file of all options has a few thousand."""

NULLS = ("", "~", "null", "Null", "NULL")
"""What stands for no value, without quotes."""

BEFORE = (yaml.StreamStartEvent, yaml.DocumentStartEvent)
KINDS = {yaml.StreamEndEvent: "nothing", yaml.ScalarEvent: "text", yaml.SequenceStartEvent: "a list"}

Value = str | list[str] | None


def read_options(path: str | Path) -> dict[str, Value]:
    """Name of an option -> text, a list of texts, or None for null; ValueError says what else it holds."""
    path = Path(path)
    try:
        return _options(yaml.parse(_decode(path), Loader=yaml.BaseLoader), path)
    except yaml.YAMLError as problem:
        raise _unreadable(path, problem) from problem


def _options(events: Iterator[yaml.Event], path: Path) -> dict[str, Value]:
    """The events of a parser as options; stops at the first that has no place in such a file."""
    first = next(event for event in events if not isinstance(event, BEFORE))
    if not isinstance(first, yaml.MappingStartEvent):
        kind = KINDS.get(type(first), "something else")
        raise ValueError(f"{str(path)!r} must map option names to values; it holds {kind}")
    values: dict[str, Value] = {}
    lines: dict[str, int] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        name, line = _text(key, path), key.start_mark.line + 1
        if name in values:
            raise ValueError(f"{str(path)!r} has {name!r} twice, in lines {lines[name]} and {line}")
        lines[name], value = line, next(events)
        if isinstance(value, yaml.SequenceStartEvent):
            items = takewhile(lambda event: not isinstance(event, yaml.SequenceEndEvent), events)
            values[name] = [_text(item, path) for item in items]
        else:
            values[name] = None if _is_null(value) else _text(value, path)
    if not isinstance(next(events), yaml.DocumentEndEvent) or not isinstance(
        next(events), yaml.StreamEndEvent
    ):
        raise ValueError(f"{str(path)!r} must hold one document; it holds several")
    return values


def read_values(path: str | Path) -> dict[str, Any]:
    """The mapping that a file holds, with the types that YAML gives its values; for files of our own."""
    path = Path(path)
    try:
        values = yaml.safe_load(_decode(path))
    except (yaml.YAMLError, RecursionError) as problem:
        raise _unreadable(path, problem) from problem
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} must map option names to values; it holds {type(values).__name__}")
    return values


def _decode(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    try:
        with path.open("rb") as file:
            encoded = file.read(LARGEST_FILE + 1)
        if len(encoded) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        return encoded.decode("utf-8-sig")
    except (OSError, ValueError) as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: object) -> ValueError:
    return ValueError(f"{str(path)!r} cannot be read: {' '.join(str(problem).split())}")


def _is_null(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.style is None and event.value in NULLS


def _text(event: yaml.Event, path: Path) -> str:
    line = f"line {event.start_mark.line + 1} of {str(path)!r}"
    if not isinstance(event, yaml.ScalarEvent):
        raise ValueError(f"{line}: a value must be one word, number or text, or a list of them")
    if event.tag is not None:
        raise ValueError(f"{line}: tags are not supported; got {event.tag}")
    return event.value
