"""The process both ways, guidance and the noise schedule of a variational diffusion model, from its gamma."""

import torch
from matplotlib.figure import Figure

from trilemma.eval.plots.curves import schedules
from trilemma.eval.plots.guidance import guidance
from trilemma.eval.plots.process import both_ways, states_shown
from trilemma.eval.plots.sheets import Pictures, Subject
from trilemma.pipelines.vdm import alpha_sigma


def variational_process(subject: Subject) -> Figure:
    """The process, whose noise is a function gamma of continuous time."""
    pipeline, x0 = subject.pipeline, subject.x0
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, states_shown(subject.steps), dtype=torch.float64)
    gamma = pipeline.unet.gamma(times).detach().cpu()
    alpha, sigma = alpha_sigma(gamma, x0[None])
    forward = (alpha * x0 + sigma * noise).transpose(0, 1)
    return both_ways(subject, forward, times.tolist())


def variational_schedules(subject: Subject) -> Figure:
    """alpha and log SNR over time, thick, beside the usual schedules."""
    time = torch.arange(1, 1001, dtype=torch.float64) / 1000
    gamma = subject.pipeline.unet.gamma(time).detach().cpu()
    return schedules(gamma.neg().sigmoid())


PICTURES: Pictures = {
    "process.png": variational_process,
    "guidance.png": guidance,
    "schedules.png": variational_schedules,
}
