"""Where the time of a step goes (`--profile N`): a trace of N steps, and the share of each part in one line.

The parts are ranges that the code marks with `record_function`, or PyTorch itself, as the host sees them: on
a GPU, what it computes while the host goes on shows in the trace alone.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trilemma.pipelines.files.writing import aside_of, naming

STEP, EMA = "step", "EMA"
PARTS = {
    "forward": ("forward",),
    "backward": ("backward",),
    "optimizer": ("Optimizer.step#", "Optimizer.zero_grad#"),
    EMA: (EMA,),
    "data": ("data",),
    "waiting": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}
"""What the line says -> how the names of its ranges begin."""

UNTIMED = 3
"""Steps before: the first ones reserve memory and choose kernels."""


class Profile:
    """The profile of this many steps, written to `trace` for chrome://tracing; none of 0."""

    def __init__(self, trace: Path, steps: int):
        self.trace, self.steps, self.seen = trace, steps, 0
        self.profiler: profile | None = None

    def tick(self) -> str | None:
        """One step is done; after the last one the line."""
        self.seen += 1
        if self.steps and self.seen == UNTIMED:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.profiler = profile(activities=[ProfilerActivity.CPU, *gpu])
            self.profiler.start()
        elif self.profiler and self.seen == UNTIMED + self.steps:
            return self.close()
        return None

    def close(self) -> str | None:
        """Write the trace of the steps so far, if there are any; the line."""
        profiler, self.profiler = self.profiler, None
        if profiler is None:
            return None
        profiler.stop()
        aside = aside_of(self.trace)
        with naming(self.trace):
            profiler.export_chrome_trace(str(aside))
            aside.replace(self.trace)
        events = profiler.key_averages()
        steps = sum(event.count for event in events if event.key == STEP)
        return f"{summary({e.key: e.cpu_time_total for e in events}, steps)}; trace: {self.trace}"


def summary(microseconds: Mapping[str, float], steps: int) -> str:
    """The line, from the total time of each name; what is in no part is "other"."""
    total = max(microseconds.get(STEP, 0.0), 1e-9)
    shares = {
        part: sum(time for name, time in microseconds.items() if name.startswith(starts)) / total
        for part, starts in PARTS.items()
    }
    shares["other"] = max(0.0, 1 - sum(shares.values()))
    parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    return f"Profile of {steps} steps of {total / max(steps, 1) / 1000:.1f} ms: {parts}"
