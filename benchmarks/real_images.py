"""Do the metrics distinguish real images from degraded ones?

`python benchmarks/real_images.py --train_data_dir mnist`

Scores four sets of images against the training split, under the classifier trained on it: the test split, the
blurred test split, the test split with Gaussian noise, and uniform noise. Reliable metrics score the first at
its floor, and each of the others worse than the one before. Prints one table of markdown.
"""

import argparse

import torch
from accelerate import Accelerator
from torch import Tensor

from trilemma.eval.scoring.calibration import Spoil, blurred, uniform
from trilemma.eval.scoring.yardsticks import BATCH, Batch, Reference, score, yardsticks
from trilemma.training.images.image_set import Images, cache_folder, load_images
from trilemma.training.options.groups import DataConfig

METRICS = ("fd", "kid", "is", "prdc", "modes")
SHOWN = ("fd", "kid", "is", "precision", "recall", "density", "coverage", "modes_kl", "confidence")


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images with Gaussian noise of standard deviation 64 grey levels."""
    noise = 64 * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0, 255).round().to(torch.uint8)


SETS: dict[str, Spoil] = {
    "test": lambda images, generator: images,
    "test, blurred 3x3": blurred,
    "test, noise of 64 levels": noisy,
    "uniform noise": uniform,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train_data_dir", required=True, help="folder with a train and a test split")
    parser.add_argument("--cache_dir", default=None)
    parser.add_argument("--cpu_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.cpu_threads)
    accelerator = Accelerator(cpu=True)
    data = DataConfig(train_data_dir=options.train_data_dir, cache_dir=options.cache_dir)
    train, test = load_images(data), load_images(data, "test")
    cache = cache_folder(options.cache_dir)
    sticks = yardsticks(METRICS, "classifier", Reference(train, test), accelerator, cache)
    print(f"{train.name}: {len(test):,} images per row against {len(train):,} of train, under the classifier")
    print("| images | " + " | ".join(SHOWN) + " |")
    print("|---|" + "---|" * len(SHOWN))
    for name, spoil in SETS.items():
        measured = {}
        for parts in score(sticks, spoiled(test, spoil), len(test), accelerator).values():
            measured |= parts
        print(f"| {name} | " + " | ".join(_cell(measured[metric]) for metric in SHOWN) + " |", flush=True)


def spoiled(images: Images, spoil: Spoil):
    """Batches of degraded images; all noise is from one seed."""
    generator = torch.Generator().manual_seed(0)
    for index in torch.arange(len(images)).split(BATCH):
        pixels, labels = images.__getitems__(index)
        batch: Batch = (index, spoil(pixels, generator), labels)
        yield batch


def _cell(measurement) -> str:
    """The estimate with its interval, the plain value where it is another one, and the floor."""
    text = f"{measurement.estimate:.4g}"
    if measurement.interval:
        text += f" [{measurement.interval[0]:.3g}, {measurement.interval[1]:.3g}]"
    if measurement.estimate != measurement.value:
        text += f", plain {measurement.value:.4g}"
    return text + (f", floor {measurement.floor:.3g}" if measurement.floor is not None else "")


if __name__ == "__main__":
    main()
