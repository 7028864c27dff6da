"""Names from data, flags and folders on a public page: they come from anywhere and may hold anything."""

import html
import json
import re

MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~!$])")


def escape(text: object) -> str:
    """One line that Markdown and HTML show as it is, in a table cell too."""
    return html.escape(MARKDOWN.sub(r"\\\1", " ".join(str(text).split())), quote=False)


def literal(text: str) -> str:
    """A string literal of Python."""
    return json.dumps(text, ensure_ascii=False)
