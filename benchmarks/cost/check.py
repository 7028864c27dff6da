"""The model beside what a machine without a GPU takes: one process, and two that share it, over gloo.

The run of one process gives FLOP/s; the other rows are predicted from it. Gloo takes the cores that compute,
so nothing is hidden: a step of two processes is predicted as the step of one and the all-reduce, whose
latency and bandwidth are measured with other sizes than the gradients have.
"""

import io
import json
import os
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from speed.harness import machine
from speed.processes import steps_in, torchrun
from speed.steps import SETTINGS

from cost.model import STEP_FORWARDS, Work, buckets, ring_volume
from trilemma.training.images.pixels import open_picture, to_pixels


class Run(NamedTuple):
    """Steps of a training: network of `speed/steps.py`, images of a process, processes, steps."""

    network: str
    images: int
    processes: int
    steps: int


RUNS = (
    Run("digits", 32, 1, 30), Run("digits", 64, 1, 30), Run("digits", 32, 2, 30),
    Run("large", 1, 1, 4), Run("large", 1, 2, 4),
)  # fmt: skip
"""The first run of a network gives the FLOP/s of all others."""
SHAPES = {name: SETTINGS[name][:3] for name in ("digits", "large")}
"""What `speed/steps.py` trains: row of `NETS`, side, channels."""
SIDE, PICTURES = 64, 300


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of a step of every run (median of the rounds, in turn), the link, decoding, and the machine."""
    load, seconds, links = os.getloadavg()[0], [[] for _ in RUNS], []
    for _ in range(rounds):
        for run, row in zip(RUNS, seconds, strict=True):
            total = steps_in(run.processes, 1, run.images * run.processes, run.steps, run.network)
            row.append(total / (run.steps - 1))  # the first step is left out
        links.append(json.loads(torchrun(2, 1, "cost.link")))
    return {
        "machine": machine(),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "rounds": rounds,
        "runs": [[*run[:3], statistics.median(row)] for run, row in zip(RUNS, seconds, strict=True)],
        "latency": statistics.median(link[0] for link in links),
        "bandwidth": statistics.median(link[1] for link in links),
        "decoded": decoded(),
    }


class Compared(NamedTuple):
    """A row of the table: seconds of a step, and the share of them that is all-reduce by the model."""

    network: str
    images: int
    processes: int
    predicted: float | None  # None for the run that gives the FLOP/s
    measured: float
    flops: float  # FLOP/s of a process, as measured
    reduce: float


def compared(here: Mapping[str, Any], works: Mapping[str, Work]) -> list[Compared]:
    """Predicted and measured, for each run of `measure`. works: network -> what it costs."""
    rows, rates = [], {}
    for network, images, processes, measured in here["runs"]:
        work = works[network]
        flops = STEP_FORWARDS * work.forward * images
        first = network not in rates
        rate = rates.setdefault(network, flops / measured)
        reduce = reduced(work, processes, here) if processes > 1 else 0.0
        predicted = None if first else flops / rate + reduce
        share = reduce / predicted if predicted else 0.0
        rows.append(Compared(network, images, processes, predicted, measured, flops / measured, share))
    return rows


def reduced(work: Work, processes: int, here: Mapping[str, Any]) -> float:
    """Seconds of the all-reduces of a step, over the link that was measured."""
    sizes = buckets(work.gradient_bytes)
    volume = sum(ring_volume(processes, size) for size in sizes)
    return len(sizes) * here["latency"] + volume / here["bandwidth"]


def decoded() -> float:
    """Images of 64x64 pixels that a core decodes in a second: PNGs, of a smooth picture with grain."""
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    grain = random.normal(0, 4, (SIDE, SIDE, 3))
    encoded = io.BytesIO()
    Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(encoded, "PNG")
    began = time.process_time()
    for _ in range(PICTURES):
        to_pixels(open_picture({"bytes": encoded.getvalue(), "path": None}), 3, SIDE)
    return PICTURES / (time.process_time() - began)
