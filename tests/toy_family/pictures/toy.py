"""What the toy family has learned: the mean of each pixel, beside images."""

import torch

from trilemma.eval.plots.sheets import image_rows


def mean(subject):
    """One row: images, and the mean last."""
    learned = subject.pipeline.net.location.detach().cpu()[None]
    return image_rows(torch.cat([subject.x0, learned])[None] / 2 + 0.5)


PICTURES = {"mean.png": mean}
