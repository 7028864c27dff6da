"""Training steps: ours against the loop of diffusers' example, with the same network and batch."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import set_seed

from speed.diffusers_example import DiffusersLoop, as_dataset, enlarged, folder_of
from speed.harness import Case, Skipped
from speed.lucidrains import NAME, SMALLEST_BATCH, LucidrainsLoop
from speed.ours import OurLoop, fresh_state, quietly
from trilemma.training.networks.build import make_net
from trilemma.training.options.command_line import parse

GROUP = "training step"
BASELINE = "diffusers' example"


class Setting(NamedTuple):
    """A network, the size of its images and of a batch, and how many steps are one measurement."""

    title: str
    net: str
    side: int
    mode: str
    batch: int
    steps: int
    rounds: int


QUICK = (
    Setting("digits, unet_8, batch 32", "unet_8", 8, "L", 32, 10, 7),
    Setting("28x28, unet_28_small, batch 32", "unet_28_small", 28, "L", 32, 2, 7),
)
FULL = (*QUICK, Setting("32x32 RGB, unet_cifar10 (35.7M), batch 8", "unet_cifar10", 32, "RGB", 8, 1, 5))


def cases(full: bool, folder: Path) -> Iterator[Case | Skipped]:
    """One case for each setting."""
    for setting in FULL if full else QUICK:
        yield one_case(setting, full, folder / setting.net)
    if find_spec("denoising_diffusion_pytorch") is None:
        yield Skipped(GROUP, f"{NAME}'s trainer", "the package is not installed")


def one_case(setting: Setting, full: bool, folder: Path) -> Case:
    """Diffusers' loop, and ours in float32, bf16 and, in the full benchmark, compiled."""
    pictures = enlarged(setting.side, setting.mode)
    images = folder_of(pictures, folder / "images")
    cache = str(folder / "cache")
    flags = [
        "--train_data_dir", str(images), "--net", setting.net, "--train_batch_size", str(setting.batch),
        "--max_train_steps", "100000", "--cache_dir", cache, "--checkpointing_steps", "100000",
    ]  # fmt: skip

    def ours(name: str, *more: str) -> Callable[[], object]:
        with quietly():
            fresh_state()
            loop = OurLoop([*flags, *more], folder / name)
        return lambda: [loop.step() for _ in range(setting.steps)]

    rows = {BASELINE: None, "ours": ours("no", "--mixed_precision", "no")}
    rows["ours, bf16"] = ours("bf16", "--mixed_precision", "bf16")
    if full and setting.net != "unet_cifar10":
        for precision in ("no", "bf16"):
            name = "ours, compiled" if precision == "no" else "ours, bf16, compiled"
            rows[name] = ours(f"compiled-{precision}", "--mixed_precision", precision, "--compile")
    net = _same_net(flags, folder)
    set_seed(0)
    fresh_state()
    theirs = DiffusersLoop(net, as_dataset(pictures), folder / "theirs", batch=setting.batch)
    rows[BASELINE] = lambda: [theirs.step() for _ in range(setting.steps)]
    if find_spec("denoising_diffusion_pytorch") and setting.batch >= SMALLEST_BATCH:
        other = LucidrainsLoop(_same_net(flags, folder), images, setting.batch, folder / "lucidrains")
        rows[NAME] = lambda: [other.step() for _ in range(setting.steps)]
    return Case(GROUP, setting.title, rows, setting.rounds)


def _same_net(flags: list[str], folder: Path) -> torch.nn.Module:
    """The network of these flags, with new weights."""
    from trilemma.training.images.image_set import load_images

    config = parse("unconditional", "", [*flags, "--output_dir", str(folder / "unused")])
    images = load_images(config.data)
    return make_net(config, images, out_channels=images.channels)
