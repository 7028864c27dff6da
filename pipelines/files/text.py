"""Text and paths in a locale that is not UTF-8.

There Python takes a byte outside ASCII, of an argument or of a file's name, for a lone surrogate, and can
open a file only by a name of that form. Everything else needs the characters themselves. In a UTF-8 locale,
both functions return what they get.
"""

import os


def as_path(text: str) -> str:
    """The form of a name in which files are opened."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def as_text(name: str, errors: str = "surrogateescape") -> str:
    """The characters of a name; a byte that is no UTF-8 stays, or becomes U+FFFD with errors="replace"."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", errors)
