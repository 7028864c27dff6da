"""Passes of a network that draw the same random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def randomness_kept(device: torch.device) -> Iterator[None]:
    """After the block, random numbers are those of before it again: the next pass drops the same units."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        yield
    # Autocast keeps the weights that it has cast, without a gradient if the block had none.
    torch.clear_autocast_cache()
