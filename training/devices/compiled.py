"""A network whose forward pass is compiled while many images are drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def compiled(wanted: bool, network: nn.Module) -> Iterator[None]:
    """Inside the block the forward pass is compiled for the shape of its first call; others run as ever.

    Another shape, such as the last batch, would have to be compiled again, which takes longer than to compute
    it. ValueError where compiling fails, and at the end of a block in which the network was never called: a
    VAE draws by its decoder.
    """
    if not wanted:
        yield
        return
    plain, shapes = network.forward, []
    fast = torch.compile(plain, dynamic=False)

    @wraps(plain)
    def forward(sample: Tensor, *arguments: Any, **options: Any) -> Any:
        if not shapes:
            shapes.append(sample.shape)
        if sample.shape != shapes[0]:
            return plain(sample, *arguments, **options)
        try:
            return fast(sample, *arguments, **options)
        except torch._dynamo.exc.TorchDynamoException as problem:  # such as a missing C++ compiler
            reason = str(problem).split("\n")[0]
            raise ValueError(f"--compile is not possible here: {reason}; leave it out") from problem

    network.forward = forward
    try:
        yield
    finally:
        del network.forward
    if not shapes:
        raise ValueError(
            "--compile has no effect on this model: its images are not drawn by calls of the whole "
            f"{type(network).__name__}; leave it out"
        )
