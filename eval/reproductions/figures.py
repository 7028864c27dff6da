"""Figures of a study: samples of its trainings side by side, and the course of their bounds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from trilemma.eval.plots.charts import elbo
from trilemma.eval.reproductions.plan import Planned
from trilemma.pipelines.files.writing import written
from trilemma.training.output_folder import OutputFolder

COLUMNS = 4

CAPTIONS = {
    "samples": "Samples of each training, in its own `samples.png`, drawn at its end with its own sampler:",
    "bound": "The bound while training. Thin: training images. Thick: test images. A DDPM's thin line lies "
    "higher because it is on the weights of the moment, not on their average, and without clipping:",
}
"""What the page says above a figure, by the end of the name of its file."""


def trainings(cells: Sequence[Planned]) -> dict[str, OutputFolder]:
    """The trainings of these cells with the first seed, by the names of their recipes."""
    return {
        arm.name: OutputFolder(planned.jobs[name][0].folder)
        for planned in cells
        for name, arm in planned.cell.arms.items()
    }


def samples(folders: Mapping[str, OutputFolder]) -> Figure:
    """The sheet of samples of each training."""
    columns = min(COLUMNS, len(folders))
    rows = math.ceil(len(folders) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, folder) in zip(axes, folders.items(), strict=False):
        with Image.open(folder.samples) as sheet:
            axis.imshow(np.asarray(sheet), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(name, fontsize=9, parse_math=False)
    return figure


def write_figures(study: str, cells: Sequence[Planned], folder: Path) -> list[tuple[str, str]]:
    """Write the figures of a study's cells that are done; (caption, file from the page's folder) of each."""
    figures = {}
    if drawn := {name: run for name, run in trainings(cells).items() if run.samples.is_file()}:
        figures["samples"] = samples(drawn)
    if bounds := trainings([each for each in cells if each.cell.bound]):
        figures["bound"] = elbo({name: run.read_scalars() for name, run in bounds.items()})
    told = []
    for kind, figure in figures.items():
        file = Path("images") / f"reproduce-{study}-{kind}.png"
        (folder / file).parent.mkdir(exist_ok=True)
        with written(folder / file) as opened:
            figure.savefig(opened, format="png", dpi=100)
        told.append((CAPTIONS[kind], file.as_posix()))
    return told
