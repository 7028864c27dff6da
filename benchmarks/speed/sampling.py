"""Drawing images: ours against diffusers' own pipelines, with the same network, scheduler and calls."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

from speed.harness import Case
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.devices.compiled import compiled_forward
from trilemma.training.devices.precision import network_in
from trilemma.training.networks.rows import NETS
from trilemma.training.sampling import sample

GROUP = "sampling"
NETWORKS = (("unet_8", 8, 1, 64), ("unet_28_small", 28, 1, 64))
LARGE = ("unet_cifar10", 32, 3, 8)
"""Network, side, channels, images of a batch."""


def cases(full: bool, _folder: Path) -> Iterator[Case]:
    """Few steps of DDIM and of DPM-Solver++, and ancestral ones."""
    for name, side, channels, batch in (*NETWORKS, LARGE) if full else NETWORKS:
        config = {key: value for key, value in NETS[name].items() if key != "_class_name"}
        net = UNet2DModel(sample_size=side, in_channels=channels, out_channels=channels, **config).eval()
        rounds = 5 if name == LARGE[0] else 7
        for sampler, steps in (("ddim", 20), ("dpmsolver++", 10), *((("ddpm", 1000),) if full else ())):
            if sampler == "ddpm" and name != "unet_8":
                continue
            rows = {THEIRS[sampler]: partial(theirs(net, sampler), batch, steps)}
            for row, (precision, compile_it) in WAYS.items():
                if not compile_it or (sampler != "ddpm" and name != LARGE[0]):
                    rows[row] = ours(net, sampler, batch, steps, precision, compile_it)
            title = f"{name}, {steps} calls of {sampler}, batch {batch}"
            yield Case(GROUP, title, rows, 3 if sampler == "ddpm" else rounds, warm=1)


WAYS = {
    "ours": (None, False), "ours, compiled": (None, True), "ours, bf16": ("bf16", False),
    "ours, bf16, compiled": ("bf16", True),
}  # fmt: skip
"""Half precision, and whether the network is compiled; compiling is not timed."""


THEIRS = {
    "ddim": "DDIMPipeline", "dpmsolver++": "DDPMPipeline with its DPM-Solver++", "ddpm": "DDPMPipeline",
}  # fmt: skip
BASE = dict(num_train_timesteps=1000, timestep_spacing="trailing")


def theirs(net: UNet2DModel, sampler: str) -> Callable[[int, int], object]:
    """diffusers' pipeline; (batch, steps) -> arrays."""
    if sampler == "ddim":
        pipeline = DDIMPipeline(net, DDIMScheduler(**BASE))
    elif sampler == "ddpm":
        pipeline = DDPMPipeline(net, DDPMScheduler(**BASE))
    else:
        pipeline = DDPMPipeline(net, DPMSolverMultistepScheduler(**BASE, solver_order=2))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return lambda batch, steps: pipeline(
        batch, generator=generator, num_inference_steps=steps, output_type="np"
    )


def ours(
    net: UNet2DModel, sampler: str, batch: int, steps: int, precision: str | None, compile_it: bool
) -> Callable[[], object]:
    """A seed for each image, as evaluation draws them."""
    net = deepcopy(net)  # the other ways do not compile theirs
    pipeline = UnconditionalPipeline(net, DDPMScheduler(**BASE)).with_sampler(sampler)
    pipeline.set_progress_bar_config(disable=True)
    if compile_it:  # in the first, untimed call
        net.forward = compiled_forward(net.forward)

    def draw() -> None:
        with network_in(precision, net, torch.device("cpu")):
            sample(pipeline, range(batch), batch_size=batch, num_inference_steps=steps)

    return draw
