"""What guidance does: images of the same seeds at several guidance scales."""

import torch
from matplotlib.figure import Figure

from trilemma.eval.plots.sheets import Subject, image_rows, short_name
from trilemma.training.sampling import sample

SCALES = (1.0, 1.5, 2.0, 4.0)
"""diffusers' scales, 1 + w of Ho & Salimans 2022; at 1 there is no guidance."""

MOST_CLASSES = 10


def guidance(subject: Subject) -> Figure | None:
    """A row for each scale, a column for each class, up to ten; None for a model that cannot be guided."""
    if not subject.guidable or subject.points:
        return None
    names = subject.pipeline.class_names[:MOST_CLASSES]
    rows = [
        sample(
            subject.pipeline,
            range(len(names)),
            batch_size=max(1, subject.at_once // 2),  # with guidance, an image is two rows
            num_inference_steps=subject.steps,
            class_labels=range(len(names)),
            options={"guidance_scale": scale},
        )
        for scale in SCALES
    ]
    figure = image_rows(torch.stack(rows) / 255, [f"guidance {scale:g}" for scale in SCALES])
    for axis, name in zip(figure.axes, names, strict=False):
        axis.set_title(short_name(name), fontsize=6, parse_math=False)
    return figure
