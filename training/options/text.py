"""Text and paths in a locale that is not UTF-8, and words of files of options.

There Python takes a byte outside ASCII, of an argument or of a file's name, for a lone surrogate, and can
open a file only by a name of that form. Everything else needs the characters themselves. In a UTF-8 locale,
`as_path` and `as_text` return what they get.
"""

import difflib
import os
from collections.abc import Iterable

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""What a file has for a flag that takes no value on the command line."""


def as_path(text: str) -> str:
    """The form of a name in which files are opened."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def as_text(name: str, errors: str = "surrogateescape") -> str:
    """The characters of a name; a byte that is no UTF-8 stays, or becomes U+FFFD with errors="replace"."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", errors)


def read_bool(word: str) -> bool:
    """A boolean as a file has it; ValueError for other words."""
    if word.lower() not in BOOLEANS:
        raise ValueError(f"must be one of {', '.join(BOOLEANS)}; got {word!r}")
    return BOOLEANS[word.lower()]


def shown(text: str | list[str] | None) -> str:
    """A value of a file in an error."""
    return "null" if text is None else repr(text)


def nearest(word: str, names: Iterable[str]) -> str:
    """' Did you mean ...?' for a mistyped name, or ''."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""
