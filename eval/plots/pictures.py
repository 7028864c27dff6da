"""Pictures of a run: sample sheets, the process both ways, noise schedules, loss curves.

Every plot returns a `Figure` (a sheet of samples an image); whoever called saves it.
"""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from diffusers.utils import make_image_grid
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from trilemma.pipelines.vdm import alpha_sigma
from trilemma.training.diffusion.process import SCHEDULES, noise_schedule
from trilemma.training.images.image_set import to_uint8
from trilemma.training.images.points import are_points, picture

_TERM = re.compile("(?!validation_).+_bpd")  # a term of a bound

SHEET_PIXELS = 48
"""Small images are enlarged, pixel by pixel, to about this side."""


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (C, H, W) with one or three channels -> PIL."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def sheet(images: Tensor, columns: int | None = None) -> Image.Image:
    """uint8 (N, C, H, W) as one picture, row by row, the last row filled with black; points as dots."""
    if are_points(images):
        return to_pil(picture(images))
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    scale = max(1, SHEET_PIXELS // images.shape[-1])
    padded = torch.cat([images, images.new_zeros(rows * columns - len(images), *images.shape[1:])])
    large = padded.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    large = torch.nn.functional.pad(large, (1, 1, 1, 1), value=255)
    return make_image_grid([to_pil(image) for image in large], rows, columns)


def process(forward: Tensor, reverse: Tensor, times: Sequence[float]) -> Figure:
    """Noising of real images above the making of new ones.

    forward, reverse: uint8 (images, states, C, H, W), forward from clean to noise, reverse from noise to
    clean; times: t / T of the forward states. All points of a state share one picture.
    """
    if are_points(forward):
        forward, reverse = _pictures(forward), _pictures(reverse)
    rows, states = len(forward) + len(reverse), forward.shape[1]
    figure = Figure(figsize=(states, rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, states, squeeze=False)
    both = [(forward, times), (reverse, list(reversed(times)))]
    row = 0
    for part, (images, labels) in enumerate(both):
        for image in images:
            for axis, state in zip(axes[row], image, strict=True):
                axis.imshow(to_pil(state), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
            row += 1
        first = axes[0 if part == 0 else len(forward)]
        for axis, time in zip(first, labels, strict=True):
            axis.set_title(f"t/T = {time:.2f}", fontsize=7)
        first[0].set_ylabel("forward" if part == 0 else "reverse", fontsize=8)
    return figure


def _pictures(points: Tensor) -> Tensor:
    """uint8 (N, states, 2, 1, 1) -> uint8 (1, states, 1, H, W)."""
    return torch.stack([picture(state) for state in points.transpose(0, 1)])[None]


def process_of(pipeline, x0: Tensor, steps: int, labels: list[int] | None = None) -> Figure:
    """The process of a pipeline: x0 (B, C, H, W) in [-1, 1] noised, and B new images made in `steps`."""
    scheduler = pipeline.scheduler
    last = scheduler.config.num_train_timesteps
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, last, _states(steps)).round().long()  # t in 0..T, of which 0 is the image
    forward = torch.stack(
        [x0 if t == 0 else scheduler.add_noise(x0, noise, (t - 1).expand(len(x0))) for t in times], dim=1
    )
    return _both_ways(pipeline, forward, (times / last).tolist(), steps, labels)


def _states(steps: int, most: int = 9) -> int:
    return min(most, steps + 1)


def _both_ways(
    pipeline, forward: Tensor, times: list[float], steps: int, labels: list[int] | None
) -> Figure:
    """forward (B, states, C, H, W) in [-1, 1] at `times`, and as many states of B images made in `steps`."""
    asked = {} if labels is None else {"class_labels": labels}
    made = pipeline(
        seeds=range(len(forward)),
        num_inference_steps=steps,
        trajectory=len(times),
        output_type="pt",
        **asked,
    )
    reverse = made.trajectory.cpu().transpose(0, 1)
    return process(to_uint8(forward / 2 + 0.5), to_uint8(reverse), times)


def variational_process(pipeline, x0: Tensor, steps: int, labels: list[int] | None = None) -> Figure:
    """The same for a variational diffusion model, whose noise is a function gamma of continuous time."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, _states(steps), dtype=torch.float64)
    gamma = pipeline.unet.gamma(times.to(pipeline.device)).detach().cpu()
    alpha, sigma = alpha_sigma(gamma, x0[None])
    forward = (alpha * x0 + sigma * noise).transpose(0, 1)
    return _both_ways(pipeline, forward, times.tolist(), steps, labels)


def variational_schedules(pipeline, x0: Tensor, steps: int, labels: list[int] | None = None) -> Figure:
    """alpha and log SNR of a variational diffusion model over time, thick, beside the usual schedules."""
    time = torch.arange(1, 1001, dtype=torch.float64) / 1000
    gamma = pipeline.unet.gamma(time.to(pipeline.device)).detach().cpu()
    return _schedules(gamma.neg().sigmoid())


def schedules(pipeline, x0: Tensor, steps: int, labels: list[int] | None = None) -> Figure:
    """sqrt(abar_t) and log SNR of a pipeline's scheduler, thick, beside every schedule that can be had with
    as many steps.
    """
    return _schedules(pipeline.scheduler.alphas_cumprod)


def _schedules(this: Tensor) -> Figure:
    steps = len(this)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    signal, snr = figure.subplots(1, 2)
    curves = {"this model": this}
    for name in SCHEDULES:
        with suppress(ValueError):  # some cannot be had with so few steps
            curves[name] = noise_schedule(name, steps).process().abar[1:]
    time = torch.arange(1, steps + 1) / steps
    for name, abar in curves.items():
        width = 4 if name == "this model" else 1
        signal.plot(time, abar.sqrt(), label=name, linewidth=width)
        snr.plot(time, (abar / (1 - abar)).log(), label=name, linewidth=width)
    signal.set(xlabel="t / T", ylabel=r"$\sqrt{\bar\alpha_t}$", title=f"Signal left, T = {steps}")
    snr.set(xlabel="t / T", ylabel="log SNR", title="Log signal-to-noise ratio")
    signal.legend(fontsize=8)
    return figure


def reconstructions(pipeline, x0: Tensor, steps: int, labels: list[int] | None = None) -> Figure:
    """x0 (B, C, H, W) in [-1, 1] above what an autoencoder makes of it."""
    images = x0 / 2 + 0.5
    made = pipeline.reconstruct(images, output_type="pt").cpu()
    return _rows(torch.stack([images, made]), ["images", "reconstructions"])


def interpolations(pipeline, x0: Tensor, steps: int, labels: list[int] | None = None) -> Figure:
    """From each of x0 (B, C, H, W) in [-1, 1] to the next one, and from the last to the first."""
    images = x0 / 2 + 0.5
    return _rows(pipeline.interpolate(images, images.roll(-1, 0), steps=9, output_type="pt").cpu())


def _rows(images: Tensor, labels: Sequence[str] = ()) -> Figure:
    """images (rows, columns, C, H, W) in [0, 1]."""
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(columns + (0.4 if labels else 0), rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, image in zip(axes.flat, to_uint8(images.flatten(0, 1)), strict=True):
        axis.imshow(to_pil(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(label, fontsize=7)
    return figure


SCHEDULED = {"process.png": process_of, "schedules.png": schedules}
PICTURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "VDMPipeline": {"process.png": variational_process, "schedules.png": variational_schedules},
    "VAEPipeline": {"reconstructions.png": reconstructions, "interpolations.png": interpolations},
}
"""Class of a pipeline without a scheduler -> the pictures of how it works: name of the file -> function of
(pipeline, x0 (B, C, H, W) in [-1, 1], steps of its sampler, labels of B images or None).
"""


def pictures_of(pipeline) -> dict[str, Callable[..., Figure]]:
    """The row of a pipeline."""
    return PICTURES.get(type(pipeline).__name__, SCHEDULED)


def losses(scalars: Sequence[dict[str, float]]) -> Figure:
    """Training and validation loss, and the parts of the former, from lines of `logs/scalars.jsonl`."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    whole, parts = figure.subplots(1, 2)
    names = sorted({name for line in scalars for name in line})
    wholes = [name for name in names if name in ("loss", "validation_loss")]
    pieces = [name for name in names if name.startswith("loss_") or _TERM.fullmatch(name)]
    for axis, wanted in ((whole, wholes), (parts, pieces)):
        for name in wanted:
            points = [(line["step"], line[name]) for line in scalars if name in line]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axis.set(xlabel="optimizer step", yscale="log")
        axis.legend(fontsize=8)
    whole.set(title="Loss")
    parts.set(title="Parts of the training loss")
    return figure


def scores(results: Sequence[dict]) -> Figure:
    """The distances of lines of `results.jsonl` against the images seen in training, with their intervals."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    names = sorted({line["metric"] for line in results if line["metric"].startswith(("fid", "fd_"))})
    for name in names:
        lines = sorted(
            (line for line in results if line["metric"] == name and line["images_seen"] is not None),
            key=lambda line: line["images_seen"],
        )
        seen = [line["images_seen"] for line in lines]
        axis.plot(seen, [line["value"] for line in lines], marker="o", label=name)
        known = [line for line in lines if line["interval"]]
        low, high = ([line["interval"][side] for line in known] for side in (0, 1))
        axis.fill_between([line["images_seen"] for line in known], low, high, alpha=0.2)
    axis.set(xlabel="images seen", yscale="log", title="Distance to the training images (band: 95% interval)")
    axis.legend(fontsize=8)
    return figure
