"""Quality of the quick start's digits: `python benchmarks/digits_quality.py outputs/unconditional-digits`.

Computes the pixel-space Frechet distance between 500 samples and all 1,797 images, on the data's grey levels
0..16, for eight sets of samples (seeds 0..3999, 50 steps of DDIM), and divides it by the mean distance of
random sets of 500 real images, which is the score of perfect samples.
"""

import sys

import numpy as np
import torch

from trilemma.eval.metrics.frechet import Gaussian, frechet_distance
from trilemma.eval.scoring.model_images import load_model
from trilemma.training.images.image_set import load_images
from trilemma.training.options.groups import DataConfig
from trilemma.training.sampling import every_class, sample

SAMPLES, SETS, STEPS, SPLITS = 500, 8, 50, 100


def main(model: str) -> None:
    """Print the distance of the samples, divided by that of real images."""
    images = load_images(DataConfig(dataset_name="digits"))
    real = _levels(images.__getitems__(range(len(images)))[0])
    reference = Gaussian.of(real)
    rng = np.random.default_rng(0)
    splits = [rng.permutation(len(real))[:SAMPLES] for _ in range(SPLITS)]
    perfect = [frechet_distance(Gaussian.of(real[rows]), reference) for rows in splits]

    pipeline = load_model(model, torch.device("cpu")).with_sampler("ddim")
    pipeline.set_progress_bar_config(disable=True)
    labels = every_class(10 if pipeline.config.get("class_names") else None, SETS * SAMPLES)
    drawn = _levels(
        sample(
            pipeline, range(SETS * SAMPLES), batch_size=500, num_inference_steps=STEPS, class_labels=labels
        )
    )
    ratios = [
        frechet_distance(Gaussian.of(part), reference) / np.mean(perfect) for part in drawn.split(SAMPLES)
    ]
    print(f"{SPLITS} sets of {SAMPLES} real images: mean {np.mean(perfect):.2f}, std {np.std(perfect):.2f}")
    print(f"samples / real images, {SETS} sets of seeds: {', '.join(f'{r:.2f}' for r in ratios)}")
    print(f"mean ratio {np.mean(ratios):.3f} ({STEPS} steps of DDIM, seeds 0..{SETS * SAMPLES - 1})")


def _levels(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).double() * (16 / 255)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "outputs/unconditional-digits")
