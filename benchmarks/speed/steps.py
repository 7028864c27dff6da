"""A process that trains a few steps: `python -m speed.steps ours|theirs <steps> digits|large [batch]`."""

import os
import sys
import tempfile
import time
from pathlib import Path

import torch

NETS = {"digits": ("unet_8", 32), "large": ("unet_cifar10", 8)}


def main(whose: str, steps: int, network: str, batch: int | None = None) -> None:
    """Train; writes the seconds of the steps, the first left out, to $SECONDS_FILE if there is one."""
    from trilemma.training.loop.machine import closing_groups

    with closing_groups():
        seconds = timed(whose, steps, network, batch)
    if "SECONDS_FILE" in os.environ and int(os.environ.get("RANK", 0)) == 0:
        Path(os.environ["SECONDS_FILE"]).write_text(str(seconds), encoding="utf-8")


def timed(whose: str, steps: int, network: str, batch: int | None) -> float:
    """Seconds of all steps but the first."""
    threads = int(os.environ.get("CPU_THREADS", 1))
    torch.set_num_threads(threads)
    net, usual = NETS[network]
    with tempfile.TemporaryDirectory() as folder:
        loop = (ours if whose == "ours" else theirs)(net, batch or usual, Path(folder), threads)
        loop.step()
        began = time.perf_counter()
        for _ in range(steps - 1):
            loop.step()
        return time.perf_counter() - began


def ours(net: str, batch: int, folder: Path, threads: int):
    """Our training, over the digits."""
    from speed.ours import OurLoop

    data = [] if net == "unet_8" else ["--dataset_name", "digits", "--resolution", "32", "--channels", "3"]
    flags = ["--dataset_name", "digits", "--net", net, "--train_batch_size", str(batch), *data]
    return OurLoop([*flags, "--max_train_steps", "10000"], folder, threads=threads)


def theirs(net: str, batch: int, folder: Path, _threads: int):
    """diffusers' example, over the same images."""
    from diffusers import UNet2DModel

    from speed.diffusers_example import DiffusersLoop, as_dataset
    from speed.pictures import enlarged
    from trilemma.training.networks.rows import NETS as ROWS

    side, mode, channels = (8, "L", 1) if net == "unet_8" else (32, "RGB", 3)
    config = {key: value for key, value in ROWS[net].items() if key != "_class_name"}
    model = UNet2DModel(sample_size=side, in_channels=channels, out_channels=channels, **config)
    return DiffusersLoop(model, as_dataset(enlarged(side, mode)), folder, batch=batch)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
