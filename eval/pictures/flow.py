"""The process both ways, guidance, and the noise schedule of a flow."""

import torch
from matplotlib.figure import Figure

from trilemma.eval.plots.curves import schedules
from trilemma.eval.plots.guidance import guidance
from trilemma.eval.plots.process import both_ways, states_shown
from trilemma.eval.plots.sheets import Pictures, Subject
from trilemma.training.diffusion.flow import TIME_STEPS, between


def flow_process(subject: Subject) -> Figure:
    """Images on the straight path to noise, and new images on the way from it."""
    x0 = subject.x0
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, states_shown(subject.steps), dtype=torch.float64)
    forward = torch.stack([between(x0, noise, s.expand(len(x0))) for s in times], dim=1)
    return both_ways(subject, forward, times.tolist())


def flow_schedules(subject: Subject) -> Figure:
    """The path, thick, beside the usual schedules: all scaled to signal^2 + noise^2 = 1."""
    s = torch.arange(1, TIME_STEPS + 1, dtype=torch.float64) / TIME_STEPS
    return schedules((1 - s).square() / ((1 - s).square() + s.square()))


PICTURES: Pictures = {
    "process.png": flow_process,
    "guidance.png": guidance,
    "schedules.png": flow_schedules,
}
