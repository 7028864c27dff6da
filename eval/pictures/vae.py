"""What an autoencoder makes of images, and what lies between their codes."""

import torch
from matplotlib.figure import Figure

from trilemma.eval.plots.sheets import Pictures, Subject, image_rows


def reconstructions(subject: Subject) -> Figure:
    """Images above their reconstructions."""
    images = subject.x0 / 2 + 0.5
    made = subject.pipeline.reconstruct(images, output_type="pt").cpu()
    return image_rows(torch.stack([images, made]), ["images", "reconstructions"])


def interpolations(subject: Subject) -> Figure:
    """From each image to the next one, and from the last to the first."""
    images = subject.x0 / 2 + 0.5
    made = subject.pipeline.interpolate(images, images.roll(-1, 0), steps=9, output_type="pt")
    return image_rows(made.cpu())


PICTURES: Pictures = {"reconstructions.png": reconstructions, "interpolations.png": interpolations}
