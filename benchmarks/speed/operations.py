"""Operations of a training step on a CPU outside the network: beside its layers and the backward pass.

Counted, so that neither the machine nor its load matters. Views are counted too. The baseline's optimizer
goes through the weights one by one, as PyTorch's does on a CPU; "with a GPU's optimizer" takes them at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.nn.modules import module
from torch.utils._python_dispatch import TorchDispatchMode

from speed.diffusers_example import DiffusersLoop, as_dataset, as_pil
from speed.harness import Case
from speed.ours import OurLoop, fresh_state, quietly
from trilemma.training.images.image_set import load_images
from trilemma.training.networks.build import make_net
from trilemma.training.options.command_line import parse

FAMILIES = ("unconditional", "class_conditional", "flow", "consistency", "ddgan", "vdm")
STEPS = 15
"""As many as a GAN has between two penalties of its discriminator; the count is their mean."""
FLAGS = ["--preset", "digits", "--mixed_precision", "no"]


class Outside(TorchDispatchMode):
    """Counts operations that are neither in a layer's forward pass nor in a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.count += not self.inside
        return operation(*arguments, **options or {})

    def enter(self, part: nn.Module, *_: object) -> None:
        self.inside += is_layer(part)

    def leave(self, part: nn.Module, *_: object) -> None:
        self.inside -= is_layer(part)


def is_layer(part: nn.Module) -> bool:
    """Whether a module is a part of a network, and not of an objective."""
    return not type(part).__module__.startswith("trilemma.training.objectives.")


@contextmanager
def counting() -> Iterator[Outside]:
    """Inside the block operations are counted."""
    outside, backward = Outside(), torch.autograd.backward
    before = module.register_module_forward_pre_hook(outside.enter)
    after = module.register_module_forward_hook(outside.leave)

    def all_inside(*arguments, **options):
        outside.inside += 1
        try:
            return backward(*arguments, **options)
        finally:
            outside.inside -= 1

    torch.autograd.backward = all_inside
    try:
        with outside:
            yield outside
    finally:
        torch.autograd.backward = backward
        before.remove()
        after.remove()


def operations(step: Callable[[], object]) -> float:
    """Operations outside the network, a step."""
    with counting() as outside:
        for _ in range(STEPS):
            step()
    return outside.count / STEPS


def cases(_full: bool, folder: Path) -> Iterator[Case]:
    """Each family on the digits, against diffusers' example with the same network."""
    config = parse("unconditional", "", [*FLAGS, "--output_dir", "unused"])
    images = load_images(config.data)
    set_seed(0)
    net = make_net(config, images, out_channels=images.channels)
    rows = {}
    for name in ("diffusers' example", "the example with a GPU's optimizer"):
        fresh_state()
        theirs = DiffusersLoop(net, as_dataset(as_pil(images)), folder / name, batch=32)
        theirs.optimizer.param_groups[0]["foreach"] = name != "diffusers' example"
        rows[name] = partial(operations, theirs.step)
    for family in FAMILIES:
        with quietly():
            fresh_state()
            loop = OurLoop(FLAGS, folder / family, family)
        rows[f"ours, {family}"] = partial(operations, loop.step)
    yield Case("operations outside the network", "a step on the digits", rows, 1, "operations", warm=1)
