"""A process that trains: `python -m speed.steps ours|theirs <steps> digits|small|large [batch]`."""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch


class Setting(NamedTuple):
    """A network, the side and channels of its images, images in a batch."""

    net: str
    side: int
    channels: int
    batch: int


SETTINGS = {
    "digits": Setting("unet_8", 8, 1, 32),
    "small": Setting("unet_28_small", 28, 1, 32),
    "large": Setting("unet_cifar10", 32, 3, 8),
}


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
    setting = SETTINGS[network]
    setting = setting._replace(batch=batch or setting.batch)
    with tempfile.TemporaryDirectory() as folder:
        loop = (ours if whose == "ours" else theirs)(setting, Path(folder), threads)
        loop.step()
        began = time.perf_counter()
        for _ in range(steps - 1):
            loop.step()
        return time.perf_counter() - began


def ours(setting: Setting, folder: Path, threads: int):
    """Our training, over the digits."""
    from speed.ours import OurLoop

    flags = {
        "dataset_name": "digits", "net": setting.net, "resolution": setting.side, "max_train_steps": 10_000,
        "channels": setting.channels, "train_batch_size": setting.batch,
    }  # fmt: skip
    return OurLoop([f"--{name}={value}" for name, value in flags.items()], folder, threads=threads)


def theirs(setting: Setting, folder: Path, _threads: int):
    """diffusers' example, over the same images."""
    from diffusers import UNet2DModel

    from speed.diffusers_example import DiffusersLoop, as_dataset, enlarged
    from trilemma.training.networks.rows import NETS

    net, side, channels, batch = setting
    config = {key: value for key, value in NETS[net].items() if key != "_class_name"}
    model = UNet2DModel(sample_size=side, in_channels=channels, out_channels=channels, **config)
    pictures = enlarged(side, "RGB" if channels == 3 else "L")
    return DiffusersLoop(model, as_dataset(pictures), folder, batch=batch)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
