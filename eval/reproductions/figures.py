"""Figures of a study: samples of its trainings at their end and on the way, their processes, their bounds."""

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

COLUMNS, INCHES = 4, 2.4
"""Sheets in a row, and the width of each."""

SAMPLES = (
    "Samples of each training with the first seed, in its own `samples.png`, drawn at its end with its own "
    "sampler (name, steps of training, seed):"
)
EPOCHS = (
    "Samples while training, with the study's recipes (name, step). The study shows {epochs}; here are the "
    "sheets nearest to the same shares of this budget's steps."
)
PROCESS = "The process both ways, of trainings with the first seed, in the `process.png` of each."
BOUND = "The bound while training. Thin: training images. Thick: test images, on the average weights."
OF_DDPM = (
    " A DDPM's thin line lies higher for two reasons: it is on the weights of the moment, and without "
    "clipping."
)


def trainings(cells: Sequence[Planned]) -> dict[str, OutputFolder]:
    """The trainings of these cells with the first seed, by the names of their folders."""
    jobs = [of_arm[0] for planned in cells for of_arm in planned.jobs.values()]
    return {job.folder.name: OutputFolder(job.folder) for job in jobs}


def pictures_of(cells: Sequence[Planned], name: str) -> dict[str, Path]:
    """The pictures of this name in the folders of their trainings."""
    files = {training: run.path / name for training, run in trainings(cells).items()}
    return {training: file for training, file in files.items() if file.is_file()}


def side_by_side(pictures: Mapping[str, Path], columns: int = COLUMNS, inches: float = INCHES) -> Figure:
    """Pictures in rows, each under its name and of this width."""
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    pixels = {name: np.asarray(Image.open(file)) for name, file in pictures.items()}
    height = inches * max(picture.shape[0] / picture.shape[1] for picture in pixels.values())
    figure = Figure(figsize=(inches * columns, (height + 0.2) * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, picture) in zip(axes, pixels.items(), strict=False):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(name, fontsize=9, parse_math=False)
    return figure


def on_the_way(planned: Planned) -> dict[str, Path]:
    """The sheets of the study's recipe that are nearest to its epochs, by name and step; {} without any."""
    job, cell = planned.jobs["study"][0], planned.cell
    run = OutputFolder(job.folder)
    steps = {int(path.stem.removeprefix("step-")): path for path in run.sheets.glob("step-*.png")}
    if not steps:
        return {}
    wanted = [epoch / cell.all_epochs * run.read_run()["steps"] for epoch in cell.epochs]
    nearest = [min(steps, key=lambda step, near=near: abs(step - near)) for near in wanted]
    return {f"{job.folder.name}, step {step}": steps[step] for step in nearest}


def epochs_shown(cells: Sequence[Planned]) -> str:
    """'epochs 5, 9, 12 of 12 (mnist)', for each of the data."""
    of_data = {each.cell.data: each.cell for each in cells}
    return "; ".join(
        f"epochs {', '.join(map(str, cell.epochs))} of {cell.all_epochs} ({data})"
        for data, cell in of_data.items()
    )


def write_figures(study: str, cells: Sequence[Planned], folder: Path) -> list[dict[str, str]]:
    """Write the figures of a study's cells that are done; the caption, the alternative text and the file,
    from the page's folder on, of each."""
    figures = []
    if drawn := pictures_of(cells, "samples.png"):
        figures.append(("samples", side_by_side(drawn), SAMPLES))
    watched = [each for each in cells if each.cell.epochs]
    if sheets := {name: file for each in watched for name, file in on_the_way(each).items()}:
        columns = max(len(each.cell.epochs) for each in watched)
        caption = EPOCHS.format(epochs=epochs_shown(watched))
        figures.append(("epochs", side_by_side(sheets, columns), caption))
    if processes := pictures_of([each for each in cells if each.cell.process], "process.png"):
        figures.append(("process", side_by_side(processes, 2, 3 * INCHES), PROCESS))
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
