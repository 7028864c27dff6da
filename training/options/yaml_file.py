"""YAML files of options. YAML's own types are not used: a value is text, as on a command line.

So `010`, `1:30`, `1.10`, `0123456` and `no` stay as they are written, and the option converts them.
"""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import yaml

from trilemma.pipelines.files.reading import LARGEST_YAML, FileError, read_text

NULLS = ("", "~", "null", "Null", "NULL")
"""What stands for no value, without quotes."""

BEFORE = (yaml.StreamStartEvent, yaml.DocumentStartEvent)
KINDS = {yaml.StreamEndEvent: "nothing", yaml.ScalarEvent: "text", yaml.SequenceStartEvent: "a list"}

Value = str | list[str] | None


def read_options(path: str | Path) -> dict[str, Value]:
    """Name of an option -> text, a list of texts, or None for null; FileError says what else it holds."""
    events = _events(path)
    first = next(event for event in events if not isinstance(event, BEFORE))
    if not isinstance(first, yaml.MappingStartEvent):
        kind = KINDS.get(type(first), "something else")
        raise FileError(path, f"must map option names to values; it holds {kind}")
    values: dict[str, Value] = {}
    lines: dict[str, int] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        name, line = _text(key, path), key.start_mark.line + 1
        if name in values:
            raise FileError(path, f"has {name!r} twice, in lines {lines[name]} and {line}")
        lines[name], value = line, next(events)
        if isinstance(value, yaml.SequenceStartEvent):
            items = takewhile(lambda event: not isinstance(event, yaml.SequenceEndEvent), events)
            values[name] = [_text(item, path) for item in items]
        else:
            values[name] = None if _is_null(value) else _text(value, path)
    if not isinstance(next(events), yaml.DocumentEndEvent) or not isinstance(
        next(events), yaml.StreamEndEvent
    ):
        raise FileError(path, "must hold one document; it holds several")
    return values


def _events(path: str | Path) -> Iterator[yaml.Event]:
    """What a parser sees in a file. It reads on only as it is asked to, so the first wrong event ends it."""
    text = read_text(path, LARGEST_YAML)
    try:
        yield from yaml.parse(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as problem:
        raise FileError(path, f"cannot be read: {problem}") from problem


def _is_null(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.style is None and event.value in NULLS


def _text(event: yaml.Event, path: str | Path) -> str:
    place = f"{path}, line {event.start_mark.line + 1}"
    if not isinstance(event, yaml.ScalarEvent):
        raise FileError(place, "cannot be read: a value must be one word, number or text, or a list of them")
    if event.tag is not None:
        raise FileError(place, f"has the tag {event.tag}; tags are not supported")
    return event.value
