"""Names from data, flags and folders on a public page: they come from anywhere and may hold anything."""

import html
import json
import re

MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~!$])")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def escape(text: object) -> str:
    """One line that Markdown and HTML show as it is, in a table cell too."""
    return html.escape(MARKDOWN.sub(r"\\\1", " ".join(str(text).split())), quote=False)


def literal(text: str) -> str:
    """A string literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def public_name(place: str) -> str:
    """A Hub id as it is; of a path on this machine the last part only."""
    return place if HUB_ID.fullmatch(place) else re.split(r"[\\/]", place.rstrip("\\/"))[-1]
