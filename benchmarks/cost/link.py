"""A process of `torchrun`: writes seconds of a small all-reduce and bytes/s of a large to $SECONDS_FILE."""

import json
import os
import time
from pathlib import Path

import torch

SIZES = ((4, 50), (64 * 2**20, 5))
"""Bytes of an all-reduce, and how often it is repeated: one for the latency, one for the bandwidth."""


def measure() -> tuple[float, float]:
    """Seconds of a small all-reduce, bytes a second of a large one; each of two processes must call it."""
    taken = []
    for size, repeated in SIZES:
        numbers = torch.zeros(size // 4)
        torch.distributed.all_reduce(numbers)
        began = time.perf_counter()
        for _ in range(repeated):
            torch.distributed.all_reduce(numbers)
        taken.append((time.perf_counter() - began) / repeated)
    return taken[0], SIZES[1][0] / (taken[1] - taken[0])


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    try:
        found = measure()
        if torch.distributed.get_rank() == 0:
            Path(os.environ["SECONDS_FILE"]).write_text(json.dumps(found), encoding="utf-8")
    finally:
        torch.distributed.destroy_process_group()
