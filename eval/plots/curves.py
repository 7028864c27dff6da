"""Curves of one run: noise schedules, losses, distances while it trained."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.eval.plots.sheets import Subject
from trilemma.eval.scoring.results import ResultLine
from trilemma.training.diffusion.process import SCHEDULES, noise_schedule

_TERM = re.compile("(?!validation_).+_bpd")  # a term of a bound


def scheduled_schedules(subject: Subject) -> Figure:
    """sqrt(abar_t) and log SNR of a pipeline's scheduler, thick, beside all other schedules of T steps."""
    return schedules(subject.pipeline.scheduler.alphas_cumprod)


def schedules(abar: Tensor) -> Figure:
    """A model's abar_1..abar_T (T,), thick, beside every schedule that exists with T steps."""
    steps = len(abar)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    signal, snr = figure.subplots(1, 2)
    curves = {"this model": abar}
    for name in SCHEDULES:
        with suppress(ValueError):  # some do not exist with so few steps
            curves[name] = noise_schedule(name, steps).process().abar[1:]
    time = torch.arange(1, steps + 1) / steps
    for name, values in curves.items():
        width = 4 if name == "this model" else 1
        signal.plot(time, values.sqrt(), label=name, linewidth=width)
        snr.plot(time, (values / (1 - values)).log(), label=name, linewidth=width)
    signal.set(xlabel="t / T", ylabel=r"$\sqrt{\bar\alpha_t}$", title=f"Signal left, T = {steps}")
    snr.set(xlabel="t / T", ylabel="log SNR", title="Log signal-to-noise ratio")
    signal.legend(fontsize=8)
    return figure


def losses(scalars: Sequence[Mapping[str, float]]) -> Figure:
    """Training and validation loss, and the parts of the former, from lines of `scalars.jsonl`."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    whole, parts = figure.subplots(1, 2)
    names = sorted({name for line in scalars for name in line})
    wholes = [name for name in names if name in ("loss", "validation_loss")]
    pieces = [name for name in names if name.startswith("loss_") or _TERM.fullmatch(name)]
    for axis, shown in ((whole, wholes), (parts, pieces)):
        for name in shown:
            points = [(line["step"], line[name]) for line in scalars if name in line]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axis.set(xlabel="optimizer step", yscale="log")
        axis.legend(fontsize=8)
    whole.set(title="Loss")
    parts.set(title="Parts of the training loss")
    return figure


def scores(results: Sequence[ResultLine]) -> Figure:
    """The Frechet distances among results against the images seen in training, with their intervals."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for name in sorted({line.metric for line in results if line.measure == "fd"}):
        lines = sorted(
            (line for line in results if line.metric == name and line.images_seen is not None),
            key=lambda line: line.images_seen,
        )
        seen = [line.images_seen for line in lines]
        axis.plot(seen, [line.value for line in lines], marker="o", label=name)
        banded = [line for line in lines if line.interval]
        low, high = ([line.interval[side] for line in banded] for side in (0, 1))
        axis.fill_between([line.images_seen for line in banded], low, high, alpha=0.2)
    axis.set(xlabel="images seen", yscale="log", title="Distance to the training images (band: 95% interval)")
    axis.legend(fontsize=8)
    return figure
