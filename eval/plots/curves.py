"""Curves of one run: noise schedules, losses, distances while it trained."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.eval.plots.axes import beside, drawn, legend_beside, own_legend, plain_axis
from trilemma.eval.plots.sheets import Subject
from trilemma.eval.scoring.results import ResultLine
from trilemma.training.diffusion.process import SCHEDULES, noise_schedule

_TERM = re.compile("(?!validation_).+_bpd")  # a term of a bound

NAMES = {
    "loss": "training images",
    "validation_loss": "held-out images",
    "loss_q1": "t/T up to 0.25 (least noise)",
    "loss_q2": "t/T 0.25 to 0.5",
    "loss_q3": "t/T 0.5 to 0.75",
    "loss_q4": "t/T above 0.75 (most noise)",
}
"""What the curves of these numbers in `scalars.jsonl` are called; others by their own names, as words."""


def scheduled_schedules(subject: Subject) -> Figure:
    """sqrt(abar_t) and log SNR of a pipeline's scheduler, thick, beside all other schedules of T steps."""
    return schedules(subject.pipeline.scheduler.alphas_cumprod)


def schedules(abar: Tensor) -> Figure:
    """A model's abar_1..abar_T (T,), thick, beside every schedule that exists with T steps."""
    steps = len(abar)
    figure = Figure(figsize=(10.5, 3.5), layout="constrained")
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
    legend_beside(figure, [signal])
    return figure


def losses(scalars: Sequence[Mapping[str, float]]) -> Figure:
    """Training and validation loss, and the parts of the former, from lines of `scalars.jsonl`."""
    names = sorted({name for line in scalars for name in line})
    wholes = [name for name in names if name in ("loss", "validation_loss")]
    pieces = [name for name in names if name.startswith("loss_") or _TERM.fullmatch(name)]
    panels = {"Loss": wholes, "Parts of the training loss": pieces}
    if pieces and set(pieces) <= NAMES.keys():
        panels = {"Loss": wholes, "Training loss by noise level": pieces}
    panels = {title: shown for title, shown in panels.items() if shown} or {"Loss": []}
    figure = Figure(figsize=(6 * len(panels), 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, shown) in zip(axes, panels.items(), strict=True):
        places: list[float] = []
        values: list[float] = []
        for name in shown:
            points = [(line["step"], line[name]) for line in scalars if name in line]
            few = "o" if len(points) < 3 else None  # a line through one point cannot be seen
            axis.plot(*zip(*points, strict=True), label=curve_name(name), linewidth=1, marker=few)
            places += [place for place, _ in points]
            values += [value for _, value in points]
        of_bound = any(_TERM.fullmatch(name) for name in shown)
        axis.set(xlabel="optimizer step", ylabel="bits per dimension" if of_bound else "loss", title=title)
        plain_axis(axis, "x", [0, *places], whole=True)  # from 0 on: never logarithmic
        plain_axis(axis, "y", values)
        own_legend(axis)
    return figure


def curve_name(name: str) -> str:
    """What a number of `scalars.jsonl` is called in a legend."""
    if name in NAMES:
        return NAMES[name]
    words = name.removeprefix("loss_").removesuffix("_bpd").replace("_", " ")
    return "bound (bits per dimension)" if name == "bpd" else words


def scores(results: Sequence[ResultLine]) -> Figure:
    """The Frechet distances among results against the images seen in training, with their intervals."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axis = figure.subplots()
    lines = [line for line in results if line.measure == "fd" and line.images_seen is not None]
    lines.sort(key=lambda line: line.images_seen)
    everywhere = [line.images_seen for line in lines] or [0]
    names = sorted({line.metric for line in lines})
    for color, name in enumerate(names):
        own = [line for line in lines if line.metric == name]
        seen = beside([line.images_seen for line in own], color, len(names), everywhere)
        axis.plot(seen, [line.estimate for line in own], "o-", color=f"C{color}", label=name)
        intervals = [line.interval or [line.estimate] * 2 for line in own]
        axis.vlines(seen, *zip(*intervals, strict=True), color=f"C{color}")
    title = "Distance to the training images (bars: 95% intervals)"
    axis.set(xlabel="images seen", ylabel="Frechet distance", title=title)
    plain_axis(axis, "x", [0, *everywhere], whole=True)
    plain_axis(axis, "y", drawn(lines))
    legend_beside(figure, [axis])
    return figure
