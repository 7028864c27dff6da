"""Checks before the Hub is asked, and a time limit if it does not answer: its client would wait for ever."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds without any answer to a request; the client tries some requests up to six times."""


def check_place(place: str, option: str) -> None:
    """ValueError for a folder that does not exist, so that the Hub is not asked for a model of that name.

    place: a folder or the id of a model. It must be a folder if it begins with . or / or ~, has more than one
    slash, or if what stands before its slash is a folder here.
    """
    first, *others = place.split("/")
    outside = place.startswith((".", "~")) or Path(place).is_absolute() or len(others) > 1
    if Path(place).exists() or not (outside or (others and Path(first).is_dir())):
        return
    hint = "" if outside else f" ({first!r} is a folder here; for a model of the Hub, start elsewhere)"
    raise ValueError(f"{option} {place!r}: there is no such folder{hint}")


@contextmanager
def patience() -> Iterator[None]:
    """Requests of huggingface_hub inside the block end after PATIENCE without an answer."""
    from huggingface_hub.utils import get_session

    session = get_session()
    hooks, before = session.event_hooks, session.timeout
    session.timeout = PATIENCE
    session.event_hooks = {**hooks, "request": [*hooks["request"], _bound]}
    try:
        yield
    finally:
        session.timeout, session.event_hooks = before, hooks


def _bound(request: Any) -> None:
    """Some requests ask for no limit, whatever the session's."""
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        name: PATIENCE if limits.get(name) is None else limits[name]
        for name in ("connect", "read", "write", "pool")
    }
