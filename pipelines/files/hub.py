"""Patience with a Hub that does not answer: its client would wait for ever."""

from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 60.0
"""Seconds without any answer to a request; the client tries some requests up to six times."""


@contextmanager
def patience() -> Iterator[None]:
    """Requests of huggingface_hub inside the block end after PATIENCE without an answer."""
    from huggingface_hub.utils import get_session

    session = get_session()
    before, session.timeout = session.timeout, PATIENCE
    try:
        yield
    finally:
        session.timeout = before
