"""Do the metrics find a known share of copies of training images?

`python benchmarks/planted_copies.py --feature_extractor pixels`

The samples are real digits that are not in the training set. A share of them is replaced by training images,
as they are, with Gaussian noise of 32 grey levels, or moved by one pixel. Prints one table of markdown.
"""

import argparse
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from trilemma.eval.scoring.yardsticks import BATCH, Batch, Reference, score, yardsticks
from trilemma.training.images.image_set import Images, cache_folder, load_images
from trilemma.training.options.groups import DataConfig

METRICS = ("memorization", "copies", "ct", "fld")
SHOWN = ("copying", "authpct", "near_copies", "ct", "ct_worst", "fld", "fld_gap")
TRAIN, HELD_OUT = 1000, 397
"""Of the 1,797 digits; the other 400 are the samples."""


def noisy(images: Tensor) -> Tensor:
    """The images with Gaussian noise of standard deviation 32 grey levels."""
    noise = 32 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + noise).clamp(0, 255).round().to(torch.uint8)


COPIES = {"exact": lambda images: images, "noisy": noisy, "moved": lambda images: images.roll(1, dims=3)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--feature_extractor", default="pixels", help="pixels or classifier")
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator, digits = Accelerator(cpu=True), load_images(DataConfig(dataset_name="digits"))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).numpy()
    train, held_out, new = (
        digits.subset(part)
        for part in (order[:TRAIN], order[TRAIN : TRAIN + HELD_OUT], order[TRAIN + HELD_OUT :])
    )
    reference = Reference(train, held_out)
    sticks = yardsticks(METRICS, options.feature_extractor, reference, accelerator, cache_folder(None))
    print("| copies | " + " | ".join(SHOWN) + " |")
    print("|---|" + "---|" * len(SHOWN))
    for kind, change in COPIES.items():
        for share in (0, 0.05, 0.2, 0.5, 1) if kind == "exact" else (0.05, 0.2, 0.5):
            batches = planted(new, train, round(share * len(new)), change)
            (measured,) = score(sticks, batches, len(new), accelerator).values()
            cells = [f"{measured[name].value:.3g}" for name in SHOWN]
            print(f"| {share:.0%} {kind} | " + " | ".join(cells) + " |", flush=True)
    floors = ["" if (floor := measured[name].floor) is None else f"{floor:.3g}" for name in SHOWN]
    print("| floor | " + " | ".join(floors) + " |")


def planted(new: Images, train: Images, copies: int, change) -> Iterator[Batch]:
    """Batches of the new images, spread among which `copies` are training images, changed."""
    pixels, labels = new.__getitems__(torch.arange(len(new)))
    place = torch.randperm(len(new), generator=torch.Generator().manual_seed(1))[:copies]
    pixels[place] = change(train.__getitems__(torch.arange(copies))[0])
    for index in torch.arange(len(new)).split(BATCH):
        yield index, pixels[index], labels[index]


if __name__ == "__main__":
    main()
