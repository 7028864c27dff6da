"""Few-step GAN against diffusion: `python benchmarks/few_steps.py <ddgan folder> <diffusion folder>`.

Scores the denoising-diffusion GAN with its T steps, and a diffusion model with 1,000 ancestral steps and with
50 and 4 steps of DDIM, under the classifier, against one data set. Both models may be class-conditional;
labels then have the frequencies of the data. Then compares the time of the GAN's images with that of T bare
forward passes of its network on the same batch (interleaved, medians).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.after_training import load_images_of
from trilemma.eval.scoring.model_images import Drawing, labels_like, load_model
from trilemma.eval.scoring.yardsticks import score, yardsticks
from trilemma.pipelines.ddgan import latent_width
from trilemma.training.images.image_set import cache_folder
from trilemma.training.options.groups import DataConfig

METRICS = ("fd", "prdc", "modes")
SHOWN = ("fd", "coverage", "recall", "modes", "confident_share")
ROUNDS = 9


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ddgan", help="folder of a denoising-diffusion GAN")
    parser.add_argument("ddpm", help="folder of a diffusion model")
    parser.add_argument("--reference", default="digits", help="'digits', a Hub id or a folder")
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--ddpm_steps", type=int, nargs="+", default=[1000, 50, 4])
    parser.add_argument("--cpu_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.cpu_threads)
    accelerator = Accelerator(cpu=True)
    few, many = (load_model(path, accelerator.device) for path in (options.ddgan, options.ddpm))

    reference = load_images_of(DataConfig(), options.reference, 0, accelerator)
    sticks = yardsticks(METRICS, "classifier", reference, accelerator, cache_folder(None))
    name = Path(options.ddpm).name
    rows = [(f"{Path(options.ddgan).name}, T steps", few, None)]
    for steps in options.ddpm_steps:
        sampler = "ddpm" if steps == many.scheduler.config.num_train_timesteps else "ddim"
        rows.append((f"{name}, {steps} of {sampler}", many.with_sampler(sampler), steps))
    print(f"{options.num_samples} samples, seeds 0.., against {len(reference.images):,} images")
    print("| model | " + " | ".join(SHOWN) + " | seconds per image |")
    print("|---|" + "---|" * (len(SHOWN) + 1))
    for title, pipeline, steps in rows:
        pipeline.set_progress_bar_config(disable=True)
        sampling = SamplingConfig(num_samples=options.num_samples, num_inference_steps=steps)
        drawing = Drawing(pipeline, title, sampling, 250, accelerator)
        drawing.labels = labels_like(drawing, reference.images)
        measured = {}
        for part in score(sticks, drawing, options.num_samples, accelerator, force=True).values():
            measured |= part
        cells = " | ".join(_cell(measured[metric]) for metric in SHOWN)
        print(f"| {title} | {cells} | {drawing.seconds / options.num_samples:.5f} |", flush=True)
    overhead(few)


def overhead(pipeline: DiffusionPipeline, batch: int = 250) -> None:
    """Print the time of the pipeline, divided by that of the same number of network calls alone."""
    steps, net = pipeline.scheduler.config.num_train_timesteps, pipeline.unet
    side, channels = net.config.sample_size, net.config.in_channels
    x = torch.randn(batch, channels, side, side)
    t = torch.zeros(batch, dtype=torch.long)
    z = torch.randn(batch, latent_width(net))

    @torch.no_grad()
    def bare() -> None:
        for _ in range(steps):
            net(x, t, z)

    def whole() -> None:
        pipeline(seeds=range(batch), output_type="pt")

    times: dict[Callable[[], None], list[float]] = {bare: [], whole: []}
    for number in range(ROUNDS + 1):
        for row in (bare, whole) if number % 2 else (whole, bare):
            began = time.process_time()
            row()
            times[row].append(time.process_time() - began)
    network, image = (statistics.median(each[1:]) for each in times.values())
    print(
        f"process time: {batch} images {image:.4f} s, {steps} bare forward passes {network:.4f} s, "
        f"ratio {image / network:.3f}"
    )


def _cell(measurement) -> str:
    text = f"{measurement.value:.4g}"
    if measurement.interval:
        text += f" [{measurement.interval[0]:.3g}, {measurement.interval[1]:.3g}]"
    return text


if __name__ == "__main__":
    main()
