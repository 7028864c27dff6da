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

SAMPLES = (
    "Samples of each training with the first seed, in its own `samples.png`, drawn at its end with its own "
    "sampler (name, steps of training, seed):"
)
BOUND = "The bound while training. Thin: training images. Thick: test images, on the average weights."
OF_DDPM = (
    " A DDPM's thin line lies higher for two reasons: it is on the weights of the moment, and without "
    "clipping."
)


def trainings(cells: Sequence[Planned]) -> dict[str, OutputFolder]:
    """The trainings of these cells with the first seed, by the names of their folders."""
    jobs = [of_arm[0] for planned in cells for of_arm in planned.jobs.values()]
    return {job.folder.name: OutputFolder(job.folder) for job in jobs}


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


def write_figures(study: str, cells: Sequence[Planned], folder: Path) -> list[dict[str, str]]:
    """Write the figures of a study's cells that are done; the caption, the alternative text and the file,
    from the page's folder on, of each."""
    figures = []
    if drawn := {name: run for name, run in trainings(cells).items() if run.samples.is_file()}:
        figures.append(("samples", samples(drawn), SAMPLES))
    if bounded := [each for each in cells if each.cell.bound]:
        logs = {name: run.read_scalars() for name, run in trainings(bounded).items()}
        families = {arm.family for each in bounded for arm in each.cell.arms.values()}
        figures.append(("bound", elbo(logs), BOUND + (OF_DDPM if "unconditional" in families else "")))
    told = []
    for kind, figure, caption in figures:
        file = Path("images") / f"reproduce-{study}-{kind}.png"
        (folder / file).parent.mkdir(exist_ok=True)
        with written(folder / file) as opened:
            figure.savefig(opened, format="png", dpi=100)
        text = f"{kind} of the trainings of {study}"
        told.append({"caption": caption, "text": text, "file": file.as_posix()})
    return told
