"""Networks whose forward pass is compiled, while they learn or while many images are drawn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LARGEST_ERROR, LARGEST_ERROR_OF_HALF = 1e-3, 0.2
"""How far rounding may change gradients, of their length."""


def compiled_forward(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A network's method, compiled for the shape of its first call with gradients and of its first without.

    Other shapes run as ever. To compile for each, such as the last batch, takes longer than to compute it;
    and for shapes that are not known beforehand PyTorch 2.13 cannot compile some of diffusers' networks.
    ValueError where compiling fails, and where compiled gradients are not those of the network.
    """
    shapes: dict[bool, torch.Size] = {}

    @cache
    def fast(device_type: str) -> Callable[..., Any]:
        # With its own layouts PyTorch 2.13 gives gradients of 0 on a CPU, where channels are 8 or 24. Dropout
        # draws what it draws without compiling.
        options = {"layout_optimization": device_type != "cpu", "fallback_random": True}
        return torch.compile(plain, dynamic=False, options=options)

    @wraps(plain)
    def forward(sample: Tensor, *arguments: Any, **options: Any) -> Any:
        learns = torch.is_grad_enabled()
        first = learns not in shapes
        if shapes.setdefault(learns, sample.shape) != sample.shape:
            return plain(sample, *arguments, **options)
        compiled = fast(sample.device.type)
        try:
            if first and learns:
                require_same_gradients(plain, compiled, sample, *arguments, **options)
            return compiled(sample, *arguments, **options)
        except torch._dynamo.exc.TorchDynamoException as problem:  # such as a missing C++ compiler
            reason = str(problem).split("\n")[0]
            raise ValueError(f"--compile is not possible here: {reason}; leave it out") from problem

    forward.shapes = shapes
    return forward


def require_same_gradients(
    plain: Callable[..., Any], fast: Callable[..., Any], *arguments: Any, **options: Any
) -> None:
    """ValueError unless a method and its compiled form have the same gradients by the network's weights."""
    weights = [each for each in plain.__self__.parameters() if each.requires_grad]
    device = weights[0].device
    found = []
    for forward in (plain, fast):
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            outputs = [each for each in tree_leaves(forward(*arguments, **options)) if each.requires_grad]
        loss = sum(each.float().square().mean() for each in outputs)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([each.flatten().float() for each in gradients]))
    off = float((found[0] - found[1]).norm() / found[0].norm())
    half = torch.is_autocast_enabled(device.type)
    if off > (LARGEST_ERROR_OF_HALF if half else LARGEST_ERROR):
        raise ValueError(
            f"--compile: PyTorch {torch.__version__} compiles this network wrongly: its gradients are off by "
            f"{off:.0%}; leave it out"
        )


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
