"""What a training step costs: counted of a network, and seconds of it on hardware that has a data sheet.

A step is 3 forward passes of FLOPs: the backward pass has two products for each one of the forward pass (for
inputs and for weights). Attention, convolutions and linear layers are counted, norms and activation functions
are not: they are part of what UTILISATION leaves unused. No step is measured here.
"""

import math
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from trilemma.training.networks.build import build_network
from trilemma.training.networks.rows import NETS

UTILISATION = 0.2
"""Share of the peak. Ho et al. 2020 (arXiv 2006.11239), appendix B: 21 steps a second of 128 images, of the
CIFAR-10 network, on a TPU v3-8: 4 chips of 123 TFLOP/s (cloud.google.com/tpu/docs/v3)."""
PER_OPERATION = 10e-6
"""Seconds of the host for each operation that PyTorch starts, without `torch.compile`. Assumed: 5 to 25e-6 is
what is commonly seen."""
STEP_FORWARDS = 3
STATE_BYTES = {"weights": 4, "gradients": 4, "AdamW": 8, "average": 4}
"""Of a parameter: all are float32, also under autocast."""
UPDATE_BYTES = {"norm of gradients": 4, "clipping": 8, "fused AdamW": 28, "average": 12}
"""Of a parameter: read and written after the backward pass."""
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bytes of gradients that DistributedDataParallel sends together, by default."""
MACHINE = 8
"""GPUs of a machine."""
BASE, RING_LATENCY, TREE_LATENCY, TREE_SHARE = 8.4e-6, (3.4e-6, 14e-6), (4e-6, 14e-6), 0.92
"""NCCL's model of its own time (its src/graph/tuning.cc, protocol Simple; versions differ): seconds of a
call, of a hop within a machine and between machines, and the share of the bandwidth that a tree has."""


class Hardware(NamedTuple):
    """A GPU in machines of 8: FLOP/s without sparsity, and bytes/s in one direction."""

    name: str
    bf16: float
    float32: float
    memory: float
    nvlink: float  # of a GPU
    network: float  # of a machine, all adapters
    source: str


HARDWARE = (
    Hardware(
        "A100 SXM 80 GB", 312e12, 19.5e12, 2.039e12, 300e9, 8 * 25e9,
        "nvidia.com, A100 data sheet; DGX A100 user guide: 8 x 200 Gb/s InfiniBand",
    ),
    Hardware(
        "H100 SXM 80 GB", 989.4e12, 66.9e12, 3.35e12, 450e9, 8 * 50e9,
        "nvidia.com, H100 data sheet; docs.nvidia.com, DGX BasePOD: 8 x 400 Gb/s InfiniBand",
    ),
)  # fmt: skip


class Work(NamedTuple):
    """Of a network, for one image."""

    parameters: int
    forward: int  # FLOPs
    operations: int  # that a forward and a backward pass start, for any number of images
    activations: int  # bytes that the backward pass needs, in float32

    @property
    def gradient_bytes(self) -> int:
        return STATE_BYTES["gradients"] * self.parameters


class _Operations(TorchDispatchMode):
    """Counts operations that compute: a view starts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count(net: str, side: int, channels: int, out_channels: int | None = None) -> Work:
    """A row of `NETS` on images of side x side pixels, on the meta device: nothing is computed or stored."""
    with torch.device("meta"):
        model = build_network(NETS[net], channels=channels, resolution=side, out_channels=out_channels)
        x, t = torch.zeros(1, channels, side, side), torch.zeros(1, dtype=torch.long)
        own = {weight.untyped_storage()._cdata for weight in model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        with FlopCounterMode(display=False) as flops, torch.no_grad():
            model(x, t)
        with _Operations() as operations, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
            model(x, t).sample.sum().backward()
    parameters = sum(weight.numel() for weight in model.parameters())
    activations = sum(storage.nbytes() for storage in kept.values())
    return Work(parameters, flops.get_total_flops(), operations.count, activations)


def buckets(gradient_bytes: int) -> list[int]:
    """Bytes of each all-reduce of a step, the last one last."""
    sizes = [min(FIRST_BUCKET, gradient_bytes)]
    while left := gradient_bytes - sum(sizes):
        sizes.append(min(BUCKET, left))
    return sizes


def ring_volume(processes: int, size: int) -> float:
    """Bytes that each process sends in a ring all-reduce of `size` bytes."""
    return 2 * (processes - 1) / processes * size


def all_reduce(size: int, gpus: int, hardware: Hardware) -> float:
    """Seconds of one all-reduce of `size` bytes: a ring or a tree, whichever is faster."""
    if gpus == 1:
        return 0.0
    machines = math.ceil(gpus / MACHINE)
    # A ring crosses between two machines on all of their adapters at once.
    bandwidth = hardware.nvlink if machines == 1 else min(hardware.nvlink, hardware.network)
    far = 2 * (machines - 1)
    ring = (2 * (gpus - 1) - far) * RING_LATENCY[0] + far * RING_LATENCY[1]
    ring += ring_volume(gpus, size) / bandwidth
    tree = 2 * ((min(gpus, MACHINE) - 1) * TREE_LATENCY[0] + math.log2(machines) * TREE_LATENCY[1])
    tree += 2 * size / (bandwidth * TREE_SHARE)
    return BASE + min(ring, tree)


class Step(NamedTuple):
    """Seconds of a step on every GPU, by what takes them."""

    compute: float
    host: float
    reduce: float  # all-reduce, whether or not the backward pass hides it
    latency: float  # of it, what does not depend on the number of bytes
    exposed: float  # all-reduce that it does not hide
    update: float
    images: int  # of all GPUs

    @property
    def seconds(self) -> float:
        return max(self.compute, self.host) + self.exposed + self.update

    @property
    def limit(self) -> str:
        """What takes the most."""
        parts = {"compute": self.compute, "host": self.host, "all-reduce": self.exposed}
        return max(parts, key=parts.__getitem__)


def step(work: Work, hardware: Hardware, gpus: int, batch: int) -> Step:
    """A step of `batch` images on each of `gpus` GPUs, the network in bf16.

    The GPU computes while the host prepares what follows, so the longer of the two counts. All-reduces run
    beside the backward pass, two thirds of the step, in turn; the last one begins when it ends.
    """
    compute = STEP_FORWARDS * work.forward * batch / (hardware.bf16 * UTILISATION)
    host = work.operations * PER_OPERATION
    each = [all_reduce(size, gpus, hardware) for size in buckets(work.gradient_bytes)]
    backward = max(compute, host) * (STEP_FORWARDS - 1) / STEP_FORWARDS
    latency = all_reduce(0, gpus, hardware) * len(each)
    exposed = max(each[-1], sum(each) - backward)
    update = work.parameters * sum(UPDATE_BYTES.values()) / hardware.memory
    return Step(compute, host, sum(each), latency, exposed, update, batch * gpus)


def sampling(work: Work, hardware: Hardware, samples: int, calls: int) -> float:
    """Seconds of one GPU to draw samples for an evaluation, in float32 as evaluations are."""
    return samples * calls * work.forward / (hardware.float32 * UTILISATION)
