"""How much bf16 and a second thread change a training step: ratios, measured in turns.

`python benchmarks/threads_and_precision.py` prints a Markdown table. Each round takes a step each way, in an
order that is reversed every round, and gives one ratio; the table has the median and the quartiles. bf16 is
compared by CPU time on one thread, threads by wall-clock time, which depends on what else runs.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as a training has it; read when torch is imported

import torch
from accelerate import Accelerator

from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.devices.chosen import work
from trilemma.training.loop.method import GradientDescent
from trilemma.training.networks.build import build_network
from trilemma.training.networks.rows import NETS
from trilemma.training.objectives.ddpm import DDPM, schedule_of
from trilemma.training.options.ddpm import DDPMConfig, ProcessConfig
from trilemma.training.options.groups import OptimConfig

CASES = (
    ("unet_8", 8, 1, 32),
    ("unet_8", 8, 1, 128),
    ("unet_8", 16, 1, 32),
    ("unet_28_small", 28, 1, 32),
    ("unet_16", 16, 3, 64),
)
"""Network, side of the images, channels, images of a batch."""


def method_of(net: str, side: int, channels: int, batch: int) -> GradientDescent:
    """Gradient descent on Ho et al.'s loss with a network of `NETS`."""
    torch.manual_seed(0)
    network = build_network(NETS[net], channels=channels, resolution=side)
    objective = DDPM(network, schedule_of(ProcessConfig()), DDPMConfig(), UnconditionalPipeline)
    return GradientDescent(
        objective, Accelerator(cpu=True), OptimConfig(train_batch_size=batch, lr_warmup_steps=0), 10_000
    )


def seconds(method: GradientDescent, x0: torch.Tensor, way: str, clock) -> float:
    """Seconds of one step with these threads or in this precision."""
    torch.set_num_threads(int(way) if way.isdigit() else 1)
    method.accelerator.native_amp = way == "bf16"
    method.accelerator.state._mixed_precision = "bf16" if way == "bf16" else "no"
    began = clock()
    method.step(x0, None)
    return clock() - began


def ratios(method: GradientDescent, x0: torch.Tensor, ways: tuple[str, str], rounds: int, clock) -> str:
    """The first's seconds over the second's: how many times as fast the second is."""
    found = []
    for k in range(rounds + 2):
        order = ways if k % 2 else ways[::-1]
        taken = {way: seconds(method, x0, way, clock) for way in order}
        found.append(taken[ways[0]] / taken[ways[1]])
    low, middle, high = statistics.quantiles(found[2:], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print the table, a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print("| network | images | weights x pixels | of a batch | bf16, CPU time | two threads, wall clock |")
    print("|---|---|---|---|---|---|")
    for net, side, channels, batch in CASES:
        method = method_of(net, side, channels, batch)
        x0 = torch.rand(batch, channels, side, side) * 2 - 1
        size = work(method.net, side * side)
        bf16 = ratios(method, x0, ("no", "bf16"), rounds, time.process_time)
        threads = ratios(method, x0, ("1", "2"), rounds, time.perf_counter)
        print(
            f"| `{net}` | {channels}x{side}x{side}, batch {batch} | {size:.2g} | {size * batch:.2g} | {bf16} "
            f"| {threads} |",
            flush=True,
        )
    print(f"\n{rounds} rounds, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
