"""Memory: forward passes in parts, and what to lower where it runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SIGNS = ("out of memory", "can't allocate memory", "alloc_failed")
"""How the messages of CUDA, MPS, the CPU, cuBLAS and cuDNN say it, in lower case."""


class OutOfMemory(RuntimeError):
    """Memory ran out; the message says what to lower."""


@contextmanager
def saying_what_to_lower(remedy: str) -> Iterator[None]:
    """Errors of memory in the block become an OutOfMemory of one line that ends with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        text = str(problem)
        full = isinstance(problem, MemoryError) or any(sign in text.lower() for sign in SIGNS)
        if not full or isinstance(problem, OutOfMemory):
            raise
        first = " ".join(". ".join(text.split(". ")[:2]).split()).rstrip(".")
        raise OutOfMemory(f"memory ran out ({first or 'MemoryError'}): {remedy}") from problem


def in_parts(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """The same function of a batch, computed from at most `size` examples at once.

    Tensors with the same number of rows as the first argument are cut; other arguments go to each part whole.
    """

    def of_parts(*arguments: Any) -> Any:
        count = len(arguments[0])
        if count <= size:
            return function(*arguments)
        cut = [isinstance(x, Tensor) and x.ndim > 0 and len(x) == count for x in arguments]
        parts = [
            function(*(x[i : i + size] if c else x for x, c in zip(arguments, cut, strict=True)))
            for i in range(0, count, size)
        ]
        return _joined(parts)

    return of_parts


def _joined(parts: list[Any]) -> Any:
    """Outputs of parts as that of the whole: tensors, tuples of tensors, or diffusers' outputs."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, tuple):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    return type(first)(**{name: _joined([part[name] for part in parts]) for name in first})


@contextmanager
def forward_in_parts(owner: Any, names: tuple[str, ...], size: int) -> Iterator[None]:
    """Inside the block, these functions of `owner` take at most `size` examples at once."""
    whole = {name: getattr(owner, name) for name in names}
    for name, function in whole.items():
        setattr(owner, name, in_parts(function, size))
    try:
        yield
    finally:
        for name, function in whole.items():
            setattr(owner, name, function)
