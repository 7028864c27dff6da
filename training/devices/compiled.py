"""Networks whose forward pass is compiled, while they learn or while many images are drawn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


def compiled_forward(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass, compiled for the shape of its first call with gradients and of its first without.

    Other shapes run as ever. To compile for each, such as the last batch, takes longer than to compute it;
    and for shapes that are not known beforehand PyTorch 2.13 cannot compile some of diffusers' networks.
    ValueError where compiling fails.
    """
    fast, shapes = torch.compile(plain, dynamic=False), {}

    @wraps(plain)
    def forward(sample: Tensor, *arguments: Any, **options: Any) -> Any:
        if shapes.setdefault(torch.is_grad_enabled(), sample.shape) != sample.shape:
            return plain(sample, *arguments, **options)
        try:
            return fast(sample, *arguments, **options)
        except torch._dynamo.exc.TorchDynamoException as problem:  # such as a missing C++ compiler
            reason = str(problem).split("\n")[0]
            raise ValueError(f"--compile is not possible here: {reason}; leave it out") from problem

    forward.shapes = shapes
    return forward


@contextmanager
def compiled(wanted: bool, network: nn.Module) -> Iterator[None]:
    """Inside the block the network's forward pass is compiled.

    ValueError at the end of a block in which the network was never called: a VAE draws by its decoder.
    """
    if not wanted:
        yield
        return
    network.forward = forward = compiled_forward(network.forward)
    try:
        yield
    finally:
        del network.forward
    if not forward.shapes:
        raise ValueError(
            "--compile has no effect on this model: its images are not drawn by calls of the whole "
            f"{type(network).__name__}; leave it out"
        )
