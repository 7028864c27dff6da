"""Networks whose forward pass is compiled, while they learn or while many images are drawn."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from trilemma.training.devices.randomness import randomness_kept

logger = logging.getLogger(__name__)

LARGEST_ERROR, LARGEST_ROUNDING = 1e-3, 0.2
"""How far compiling may change gradients, relative to their length: in float32 on a CPU, where 1e-6 was
measured, and elsewhere (half precision, TF32), where 0.01 was measured in bf16 on a CPU."""


class NotCompiled(ValueError):
    """Compiling failed, or what came of it is wrong."""


def compiled_forward(plain: Callable[..., Any], required: bool = True) -> Callable[..., Any]:
    """A network's method, compiled for the shape of its first call with gradients and of its first without.

    Other shapes run as ever. To compile for each, such as the last batch, takes longer than to compute it;
    and for shapes that are not known beforehand PyTorch 2.13 cannot compile some of diffusers' networks.
    Where compiling fails, and where compiled gradients are not those of the network: NotCompiled, or, if it
    is not required, a warning, and the method runs as ever.
    """
    shapes: dict[bool, torch.Size] = {}
    problems: list[NotCompiled] = []

    @cache
    def fast(device_type: str) -> Callable[..., Any]:
        # Where PyTorch 2.13 chooses the layout of convolutions itself, gradients are 0 on a CPU for 8 or 24
        # channels. Dropout draws what it draws without compiling.
        options = {"layout_optimization": device_type != "cpu", "fallback_random": True}
        return torch.compile(plain, dynamic=False, options=options)

    @wraps(plain)
    def forward(sample: Tensor, *arguments: Any, **options: Any) -> Any:
        learns = torch.is_grad_enabled()
        first = learns not in shapes
        if problems or shapes.setdefault(learns, sample.shape) != sample.shape:
            return plain(sample, *arguments, **options)
        compiled = fast(sample.device.type)
        try:
            if first and learns:
                require_same_gradients(plain, compiled, sample, *arguments, **options)
            return compiled(sample, *arguments, **options)
        except (torch._dynamo.exc.TorchDynamoException, OSError) as problem:  # no compiler, a full disk
            reason = (str(problem) or type(problem).__name__).split("\n")[0]
            problems.append(NotCompiled(f"compiling is not possible here: {reason}"))
        except NotCompiled as problem:
            problems.append(problem)
        if required:
            raise NotCompiled(f"--compile: {problems[0]}; leave it out, or add --no-compile") from problems[0]
        logger.warning("The network is not compiled, and trains as it is: %s", problems[0])
        return plain(sample, *arguments, **options)

    forward.shapes = shapes
    return forward


def require_same_gradients(
    plain: Callable[..., Any], fast: Callable[..., Any], *arguments: Any, **options: Any
) -> None:
    """NotCompiled unless a method and its compiled form have the same gradients by the network's weights."""
    weights = [each for each in plain.__self__.parameters() if each.requires_grad]
    if not weights:
        return
    device, found = weights[0].device, []
    # Apart from what computed them, but with or without a gradient as they are: that is compiled in.
    arguments, options = tree_map_only(
        Tensor, lambda each: each.detach().requires_grad_(each.requires_grad), (arguments, options)
    )
    for forward in (plain, fast):
        with randomness_kept(device):
            outputs = [each for each in tree_leaves(forward(*arguments, **options)) if each.requires_grad]
        loss = sum(each.float().square().sum() for each in outputs) / len(arguments[0])
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([each.flatten().float() for each in gradients]))
    # Where fp16 overflows without the loss scale of a training, there is nothing to compare.
    length, error = (float(each.norm()) for each in (found[0], found[0] - found[1]))
    exact = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if math.isfinite(length) and not error <= (LARGEST_ERROR if exact else LARGEST_ROUNDING) * length:
        raise NotCompiled(
            f"PyTorch {torch.__version__} compiles this network wrongly: the error of its "
            f"gradients is {error:.2g}, their length {length:.2g}"
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
