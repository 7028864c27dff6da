"""Names from data, flags and folders on a public page: they come from anywhere and may hold anything."""

import html
import re
import shlex
from collections.abc import Mapping

from trilemma.pipelines.files.text import as_text
from trilemma.training.options.flags import HUB_ID

MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~!$])")

NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
"""What ends a line, steers a terminal or turns the direction of writing."""

NO_UTF8 = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that stand for no byte of a name."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def characters(text: str) -> str:
    """The text as UTF-8 has it, with U+FFFD for what it has not."""
    return as_text(NO_UTF8.sub(UNKNOWN, text), "replace")


def visible(text: str) -> str:
    """One line, of characters that are shown as they are."""
    return NOT_SHOWN.sub(UNKNOWN, characters(text))


def escape(text: object) -> str:
    """One line that Markdown and HTML show as it is, in a table cell too."""
    line = visible(" ".join(str(text).split()))
    return html.escape(MARKDOWN.sub(r"\\\1", line), quote=False)


def literal(text: str) -> str:
    """A string literal of Python, on one line."""
    plain = characters(text).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + NOT_SHOWN.sub(lambda match: match[0].encode("unicode_escape").decode(), plain) + '"'


def shell_word(text: str) -> str:
    """A word of a command line. Ids of the Hub are in double quotes, as cards have always had them."""
    return f'"{text}"' if HUB_ID.fullmatch(text) else shlex.quote(visible(text))


def two_columns(left: str, right: str, rows: Mapping[str, str]) -> str:
    """A table in Markdown of names, as they are, and values, as plain text."""
    body = [f"| {name} | {escape(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {left} | {right} |", "| --- | --- |", *body])
