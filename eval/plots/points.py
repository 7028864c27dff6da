"""Pictures of models of the plane: samples over data, the learned field, the paths of points.

Every plot returns a `Figure`. Points are (N, 2, 1, 1) as in `training/images/points.py`: uint8, or float
with the data in [-1, 1].
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.training.images.image_set import to_float

ARROWS = 25
"""Arrows along each side of a field."""


def scatters(panels: Mapping[str, Tensor], data: Tensor) -> Figure:
    """Title -> points, each over the data, which is grey."""
    figure, axes = _row(len(panels))
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        _dots(axis, data, "0.8")
        _dots(axis, points, "C0")
        axis.set(title=title, xlim=(-1, 1), ylim=(-1, 1))
    return figure


def fields(noise: Mapping[str, Callable[[Tensor], Tensor]], data: Tensor, reach: float = 1.5) -> Figure:
    """Where points move: the score's direction at each place of the plane, and its strength as a colour.

    noise: title, such as a noise level -> function of x_t (N, 2, 1, 1) that predicts its noise, which is
    -sigma times the score. The colour is the length of that noise.
    """
    figure, axes = _row(len(noise))
    side = torch.linspace(-reach, reach, ARROWS)
    x_t = torch.cartesian_prod(side, side).view(-1, 2, 1, 1)
    for axis, (title, predict) in zip(axes, noise.items(), strict=True):
        _dots(axis, data, "0.8")
        downhill = -predict(x_t).detach().flatten(1).double()
        length = downhill.norm(dim=1)
        x, y = x_t.flatten(1).T.numpy()
        u, v = (downhill / length.clamp(min=1e-9)[:, None]).T.numpy()
        arrows = axis.quiver(x, y, u, v, length.numpy(), cmap="viridis", pivot="mid", width=0.004)
        figure.colorbar(arrows, ax=axis, shrink=0.6)
        axis.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach))
    return figure


def ways(panels: Mapping[str, Tensor], data: Tensor, shown: int = 60, reach: float = 2.5) -> Figure:
    """Title -> states (S, N, 2, 1, 1) of a chain from noise to points, such as `chain` gives: a line for each
    of the first `shown` points, and dots where all of them end.
    """
    figure, axes = _row(len(panels))
    for axis, (title, states) in zip(axes, panels.items(), strict=True):
        _dots(axis, data, "0.8")
        for x, y in states[:, :shown].flatten(2).permute(1, 2, 0).cpu().numpy():
            axis.plot(x, y, linewidth=0.4, color="C1", alpha=0.7)
        _dots(axis, states[-1], "C0")
        axis.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach))
    return figure


@torch.no_grad()
def chain(pipeline: DiffusionPipeline, seeds: Sequence[int], num_inference_steps: int) -> Tensor:
    """Inputs of the network on the way to these seeds' points, then the points: (S + 1, N, 2, 1, 1).

    Unlike the pipeline's own `trajectory` it is not clipped, and noise of the plane lies beyond [-1, 1].
    """
    states: list[Tensor] = []
    network = pipeline.network
    watch = network.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0].float().cpu()))
    try:
        made = pipeline(seeds=seeds, num_inference_steps=num_inference_steps, output_type="pt").images
    finally:
        watch.remove()
    return torch.stack([*states, made.cpu() * 2 - 1])


def _row(count: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(3.4 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.set(aspect="equal")
        axis.tick_params(labelsize=7)
    return figure, axes


def _dots(axis: Axes, points: Tensor, colour: str) -> None:
    points = to_float(points) if points.dtype == torch.uint8 else points
    x, y = points.flatten(1).cpu().T.numpy()
    axis.plot(x, y, ".", markersize=1.5, color=colour)
