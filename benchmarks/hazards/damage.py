"""Ways to damage a file, each drawn from a random generator."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, [], {}, [[]], "", " ", "\x00", "../../victim", "/etc/passwd", "a/b", "$(touch X)", "`id`",
    "' \"", "\u202e\ud7ff", "é", "x" * 5000, -1, 0, 0.5, 10**25, -(2**63), "nan", "1e400", "2.7",
    "010", "1:30", "no",
)  # fmt: skip
"""Values that no reader may trust."""

TYPED = (
    "", " ", "abc", "-1", "0", "-0.0", "2.7", "1e400", "-1e400", "nan", "inf", "1e-400", "010", "1_000",
    "1:30", "0x10", "1.10", "no", "true", "None", "null", "~", "[]", "{}", "9" * 30, "é", "\u0661", "a b",
    "*x", "&x", "!!int 3", "../..", "/dev/null", "$(touch X)", "'", '"', "#", "%", "@", "`", "1,000", "--",
    "-",
)  # fmt: skip
"""Words that somebody may type for a value."""


def truncated(data: bytes, rng: random.Random) -> bytes:
    """The file ends early."""
    return data[: rng.randrange(len(data))] if data else data


def empty(data: bytes, rng: random.Random) -> bytes:
    """The file has no bytes."""
    return b""


def garbage(data: bytes, rng: random.Random) -> bytes:
    """Random bytes."""
    return rng.randbytes(max(16, min(len(data), 4096)))


def one_bit_flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit is another."""
    place, changed = rng.randrange(len(data)), bytearray(data)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def hole(data: bytes, rng: random.Random) -> bytes:
    """A block of zeros, as a disk that lost power leaves it."""
    start = rng.randrange(len(data))
    length = rng.randint(1, max(1, len(data) // 3))
    return (data[:start] + bytes(length) + data[start + length :])[: len(data)]


def appended(data: bytes, rng: random.Random) -> bytes:
    """Random bytes follow."""
    return data + rng.randbytes(rng.randint(1, 64))


def without_a_part(data: bytes, rng: random.Random) -> bytes:
    """Some bytes within are gone."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 32) :]


def in_utf_16(data: bytes, rng: random.Random) -> bytes:
    """The text in another encoding."""
    return data.decode("utf-8", "replace").encode("utf-16")


def no_text(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are no UTF-8."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + b"\xff\xfe\xc3" + data[start:]


def deep(data: bytes, rng: random.Random) -> bytes:
    """Lists in lists, 100,000 deep."""
    return b"[" * 100_000 + b"]" * 100_000


def another_shape(data: bytes, rng: random.Random) -> bytes:
    """Valid, or nearly, and of another shape."""
    return rng.choice((b"[]", b"null", b"3", b'"text"', b"{}", b"\n\n", b"{", b"true"))


def a_hostile_value(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with one value, somewhere in it, replaced; also where a file has an object on each line."""
    lines = data.decode().splitlines() if is_lines(data) else [data.decode()]
    place = rng.randrange(len(lines))
    values = json.loads(lines[place])
    holders = list(_holders(values))
    holder, key = rng.choice(holders)
    if rng.random() < 0.2 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = rng.choice(HOSTILE)
    lines[place] = json.dumps(values)
    return "\n".join([*lines, ""]).encode()


def a_huge_number(data: bytes, rng: random.Random) -> bytes:
    """One number becomes 1 with 400 zeros."""
    numbers = list(re.finditer(rb"(?<=[ :\[,])-?\d[\d.e+-]*", data))
    if not numbers:
        return data
    spot = rng.choice(numbers)
    return data[: spot.start()] + b"1" + b"0" * 400 + data[spot.end() :]


def is_lines(data: bytes) -> bool:
    """Whether this is a file of JSON lines: each line an object of its own."""
    return data.startswith(b"{") and not data.startswith(b"{\n")


def _holders(values: Any):
    """(container, key) of each value in a JSON value."""
    keys = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        yield values, key
        yield from _holders(values[key])


def another_file(data: bytes, rng: random.Random) -> bytes:
    """A line of a metadata file names another picture, or none."""
    return data.replace(b"07.png", rng.choice((b"../07.png", b"/etc/passwd", b"none.png", b"", b"08.png")))


def lines_missing(data: bytes, rng: random.Random) -> bytes:
    """The file ends after some whole line."""
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: rng.randrange(1, len(lines))])


def torn_end(data: bytes, rng: random.Random) -> bytes:
    """The last line is cut, as by a kill."""
    return data[: -rng.randint(2, 40)]


def promises_much(data: bytes, rng: random.Random) -> bytes:
    """The header of an .npy promises more than the file has."""
    return data.replace(b"(16, 8, 8, 1), ", b"(1600000, 80, 80, 1), ")[: len(data)]


def twice(data: bytes, rng: random.Random) -> bytes:
    """One line stands there twice."""
    lines = data.splitlines(keepends=True)
    return b"".join([*lines, rng.choice(lines)])


def unknown_key(data: bytes, rng: random.Random) -> bytes:
    """A key that is no flag."""
    return data + b"no_such_flag: 1\n"


def aliases(data: bytes, rng: random.Random) -> bytes:
    """A few lines of YAML that stand for 9 to the power of 29 values."""
    rows = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 30):
        rows.append(b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)))
    return data + b"\n".join(rows) + b"\n"


def other_value(data: bytes, rng: random.Random) -> bytes:
    """One key has another value."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = lines[place].partition(b":")[0] + b": " + rng.choice(TYPED).encode("utf-8", "replace")
    return b"\n".join([*lines, b""])


def tabs(data: bytes, rng: random.Random) -> bytes:
    """Tabs in place of spaces."""
    return data.replace(b": ", b":\t", 1).replace(b"\n", b"\n\t", 1)


Damage = Callable[[bytes, random.Random], bytes]

STRUCTURE: tuple[Damage, ...] = (truncated, empty, garbage, hole, appended, without_a_part)
"""For any file; what is left is not what was written."""
BITS: tuple[Damage, ...] = (*STRUCTURE, one_bit_flipped, one_bit_flipped)
TEXT: tuple[Damage, ...] = (truncated, empty, garbage, in_utf_16, no_text, without_a_part)
JSON: tuple[Damage, ...] = (
    *TEXT, deep, another_shape, a_huge_number, a_hostile_value, a_hostile_value, a_hostile_value,
)  # fmt: skip
YAML: tuple[Damage, ...] = (*TEXT, twice, unknown_key, aliases, tabs, *[other_value] * 6)


def damage(path: Path, ways: tuple[Damage, ...], rng: random.Random) -> str:
    """Damage a file in one of the ways, and return the way's name. What does not change it is drawn again."""
    data = path.read_bytes()
    while True:
        way = rng.choice(ways)
        if (changed := way(data, rng)) != data:
            path.write_bytes(changed)
            return way.__name__
