"""Patience with a Hub that does not answer: its client would wait for ever."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 60.0
"""Seconds without any answer to a request; the client tries some requests up to six times."""


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
