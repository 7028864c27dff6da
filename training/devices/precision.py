"""Where precision matters: updates that fp16 skips, plain float32 where numbers are compared, and the network
alone in half precision where images are drawn faster than that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32, is_bf16_available
from torch import Tensor, nn

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""The values of --mixed_precision but "no", and the type that the network then computes in."""

MOST_SKIPPED = 50
"""Consecutive overflows that end a run: a loss scale of 65536 is then below 1e-10."""


class Updates:
    """The updates of one optimizer, and how many of them fp16's loss scaler skipped.

    PyTorch's scaler leaves it to a fused optimizer to skip an update whose gradient is not finite, and
    accelerate does not notice (its issue 4242). The scale shows it, since it falls. It is compared on the
    device, and read when the count is needed, which is before the next update: by then the device has work to
    do while the host waits.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None):
        self.optimizer, self.scaler = optimizer, scaler
        self.skipped, self._done, self._on_end = 0, 0, 0
        self._last: Tensor | None = None

    def step(self, device: torch.device) -> Tensor | None:
        """Update; whether it was skipped, a bool () on the device, or None where nothing is ever skipped."""
        if self.scaler is None:
            self.optimizer.step()
            self._done += 1
            return None
        self.done()
        one = torch.ones((), device=device)
        before = self.scaler.scale(one)
        self.optimizer.step()
        self._last = self.scaler.scale(one) < before
        return self._last

    def done(self) -> int:
        """Updates that were not skipped; FloatingPointError after `MOST_SKIPPED` consecutive overflows."""
        if self._last is not None:
            skipped, self._last = bool(self._last), None
            self.skipped, self._done = self.skipped + skipped, self._done + (not skipped)
            self._on_end = self._on_end + 1 if skipped else 0
        if self._on_end >= MOST_SKIPPED:
            raise FloatingPointError(
                f"fp16 overflowed in {MOST_SKIPPED} consecutive updates, however small the loss scale: use "
                "--mixed_precision bf16, or lower --learning_rate"
            )
        return self._done

    def expected(self) -> int:
        """`done`, if the last update was not skipped; does not wait for the device."""
        return self._done + (self._last is not None)

    def restore(self, done: int, skipped: int) -> None:
        """Go on from these counts."""
        self._done, self.skipped, self._on_end, self._last = done, skipped, 0, None


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """float32 as it is, for numbers that are compared: no autocast, and no TF32 in cuDNN and cuBLAS."""
    products = torch.get_float32_matmul_precision()
    with (
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(products)


def check_half(precision: str | None, device: torch.device, option: str = "--mixed_precision") -> None:
    """ValueError where this device has no such half precision."""
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(f"{option} fp16 needs a GPU; on a CPU take bf16 or no")
    if precision == "bf16" and device.type != "cpu" and not is_bf16_available():
        raise ValueError(f"{option} bf16 is not possible on this {device.type} device; take fp16 or no")


@contextmanager
def network_in(precision: str | None, network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block the network computes in half precision (autocast) and returns float32.

    What calls it, such as a sampler with its state, stays float32. precision: None and "no" change nothing.
    ValueError at the end of a block in which the network was never called, so that the option had no effect
    (a VAE draws by its decoder alone).
    """
    if precision not in HALF:
        yield
        return
    own, calls = vars(network).get("forward"), 0  # a compiled network has a forward of its own
    half = torch.autocast(device.type, dtype=HALF[precision])(network.forward)

    @wraps(network.forward)
    def forward(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return in_float32(*arguments, **options)

    in_float32 = convert_outputs_to_fp32(half)
    network.forward = forward
    try:
        yield
    finally:
        del network.forward
        if own is not None:
            network.forward = own
    if not calls:
        raise ValueError(
            f"--mixed_precision {precision} has no effect on this model: its images are not drawn by calls "
            f"of the whole {type(network).__name__}; leave it out"
        )
