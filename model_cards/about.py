"""What a model's owner says of it on the card: `about.yaml` of the output folder.

All entries are optional. `description` (paragraphs of text), `intended_use`, `contact`, `data_source`: any
text. `license` (or `licence`): an id of the Hub, such as mit or cc-by-4.0, or the name of another licence.
`language`: a code such as en, or a list of codes. Anyone may have written them: each is shown as plain text.
"""

import re
from collections.abc import Mapping
from typing import Any

from trilemma.model_cards.rendering.text import escape, two_columns

About = Mapping[str, str | list[str]]
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


def about_of(about: About) -> str:
    """The part of the page that the owner has written; "" for nothing."""
    paragraphs = re.split(r"\n\s*\n", str(about.get("description", "")))
    parts = [escape(paragraph) for paragraph in paragraphs if paragraph.strip()]
    rows = {
        "intended use": about.get("intended_use"),
        "licence": licence_of(about),
        "language": ", ".join(languages_of(about)),
        "contact": about.get("contact"),
    }
    if rows := {name: value for name, value in rows.items() if value}:
        parts.append(two_columns("about", "", rows))
    return "".join(f"{part}\n\n" for part in parts)


def licence_of(about: About) -> str | None:
    """The licence of the model."""
    return about.get("license") or about.get("licence")


def languages_of(about: About) -> list[str]:
    """Languages, one or several."""
    languages = about.get("language") or []
    return [languages] if isinstance(languages, str) else list(languages)


def front_matter_of(about: About, kept: str | None) -> dict[str, Any]:
    """Licence and languages as the Hub reads them; kept: the card's licence, if about.yaml has none."""
    licence, codes = licence_of(about), languages_of(about)
    languages = {"language": codes} if codes and all(map(LANGUAGE_CODE.fullmatch, codes)) else {}
    if licence is None or LICENCE_ID.fullmatch(licence):
        return {"license": licence or kept, **languages}
    return {"license": "other", "license_name": licence, **languages}
