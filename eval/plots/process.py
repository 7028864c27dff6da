"""The process both ways: real images noised step by step, and new images on the way from noise."""

from collections.abc import Sequence
from itertools import chain

import torch
from matplotlib.figure import Figure
from torch import Tensor

from trilemma.eval.plots.sheets import Subject, short_name, to_pil
from trilemma.training.images.image_set import to_uint8
from trilemma.training.images.points import picture

MOST_STATES = 11


def process(
    forward: Tensor,
    reverse: Tensor,
    times: Sequence[float],
    points: bool = False,
    names: Sequence[str] = (),
) -> Figure:
    """Noising of real images above the generation of new ones.

    forward, reverse: uint8 (images, states, C, H, W), forward from clean to noise, reverse from noise to
    clean; times: t / T of the forward states. All points of a state share one picture. names: of the classes
    of the images, the same in both parts.
    """
    if points:
        forward, reverse = _pictures(forward), _pictures(reverse)
    rows, states = len(forward) + len(reverse), forward.shape[1]
    figure = Figure(figsize=(states, rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, states, squeeze=False)
    for axis, state in zip(axes.flat, chain(forward.flatten(0, 1), reverse.flatten(0, 1)), strict=True):
        axis.imshow(to_pil(state), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    both = ("forward", forward, times, 0), ("reverse", reverse, list(reversed(times)), len(forward))
    for way, images, labels, first in both:
        for axis, time in zip(axes[first], labels, strict=True):
            axis.set_title(f"t/T = {time:.3g}", fontsize=7)
        for row in range(len(images)):
            words = [way if row == 0 else "", "" if points or not names else short_name(names[row])]
            axes[first + row][0].set_ylabel("\n".join(words).strip(), fontsize=8, parse_math=False)
    return figure


def _pictures(points: Tensor) -> Tensor:
    """uint8 (N, states, 2, 1, 1) -> uint8 (1, states, 1, H, W)."""
    return torch.stack([picture(state) for state in points.transpose(0, 1)])[None]


def states_shown(steps: int) -> int:
    """How many states of a process of this many steps a picture shows."""
    return min(MOST_STATES, steps + 1)


def both_ways(subject: Subject, forward: Tensor, times: list[float]) -> Figure:
    """forward (B, states, C, H, W) in [-1, 1] at `times`, above B new images in the same number of states."""
    labels = {} if subject.labels is None else {"class_labels": subject.labels}
    names = subject.pipeline.class_names or ()
    names = [names[label] for label in subject.labels] if names and subject.labels else ()
    output = subject.pipeline(
        seeds=range(len(forward)),
        num_inference_steps=subject.steps,
        trajectory=len(times),
        output_type="pt",
        **labels,
    )
    reverse = output.trajectory.cpu().transpose(0, 1)
    return process(to_uint8(forward / 2 + 0.5), to_uint8(reverse), times, subject.points, names)


def scheduled_process(subject: Subject) -> Figure:
    """The process of a pipeline with a scheduler: its images noised, and new images in its steps."""
    # Not by `add_noise` of the sampler's scheduler, which may know no other times than those of its steps.
    abar, x0 = subject.pipeline.scheduler.alphas_cumprod.cpu(), subject.x0
    abar = torch.cat([torch.ones(1), abar])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, len(abar) - 1, states_shown(subject.steps)).round().long()
    forward = torch.stack([abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * noise for t in times], dim=1)
    return both_ways(subject, forward, (times / times[-1]).tolist())
