"""A small classifier trained on the spot: features and judge for data no published network was made for.

Published networks see 8x8 digits as noise, and often cannot be had at all. This one is trained on the
reference data set's own images and labels, once, and kept in the cache. It is the same network whenever it is
trained with the same versions on the same processor: fixed seed and order, float32, on the CPU and on one
thread, because the number of threads changes the order of sums and so the weights.
Distances under it compare models of one data set by one judge; they are `fd_classifier`, never FID, and carry
the sha256 of its file.

The network is a VGG-like stack (Simonyan & Zisserman 2015, arXiv:1409.1556) with batch normalisation and a
global average pool, trained with AdamW under a one-cycle learning rate (Smith & Topin, arXiv:1708.07120).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm

from trilemma.eval.features.inception import file_sha256
from trilemma.training.images.image_set import Images

VERSION = 1  # of the architecture and of the recipe: a change of either must not find old files
SEED = 20240229
BATCH_SIZE = 128
IMAGES_PER_CHANNEL = 50_000  # images seen in training, times the data's channels
LEARNING_RATE = 0.01
LARGEST = 32  # larger images are averaged down to this side first: the judge must stay cheap


class ClassifierNet(nn.Module):
    """uint8 images (B, C, H, H) -> penultimate features (B, D), D = 64 (grey) or 128, and logits (B, K)."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        width = 16 if channels == 1 else 32
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(()))

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        self.body = nn.Sequential(
            *block(channels, width),
            nn.MaxPool2d(2),
            *block(width, 2 * width),
            *block(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *block(2 * width, 4 * width),
            *block(4 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = images.float()
        if x.shape[-1] > LARGEST:
            x = F.adaptive_avg_pool2d(x, LARGEST)
        features = self.body((x - self.mean) / self.std)
        return features, self.head(features)


class Trained(NamedTuple):
    """What the file says beside the weights.

    Not the data's name or place: the same images and labels must give the same file.
    """

    data_fingerprint: str
    channels: int
    resolution: int
    num_classes: int
    images_seen: int
    held_out: int  # images kept from training
    held_out_accuracy: float


def classifier_file(images: Images, cache: Path) -> Path:
    """The file of the classifier trained on `images`: found in the folder `cache`, or trained now.

    Training takes seconds to a few minutes. With several processes, call it on the local main process first;
    the others then find the file. Its name ends in the first 16 digits of its sha256, checked on load.
    """
    stem = f"v{VERSION}-{images.fingerprint[:16]}-{_num_classes(images)}"
    folder = cache / "classifiers"
    cached = sorted(folder.glob(f"{stem}-*.safetensors"))
    if cached:
        return cached[0]
    net, trained = train_classifier(images)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{stem}.{os.getpid()}"
    # One key, as safetensors does not keep the order of several: the bytes must be a function of the network.
    save_file(net.state_dict(), aside, metadata={"trained": json.dumps(trained._asdict(), sort_keys=True)})
    return aside.replace(folder / f"{stem}-{file_sha256(aside)[:16]}.safetensors")


def load_classifier(file: Path) -> tuple[ClassifierNet, Trained, str]:
    """The network in evaluation mode, how it was trained, and its file's sha256, checked against the name."""
    if not file.is_file():
        raise FileNotFoundError(f"--extractor_weights must name a classifier's file; there is no file {file}")
    sha256 = file_sha256(file)
    expected = file.stem.rpartition("-")[2]
    if len(expected) != 16 or not sha256.startswith(expected):
        raise ValueError(
            f"{file} is not the classifier that was saved under this name: its sha256 is {sha256}, "
            f"expected {expected}...; delete it to train the classifier again"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            trained = Trained(**json.loads(opened.metadata()["trained"]))
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is not a classifier of this toolkit: {error}") from error
    net = ClassifierNet(trained.channels, trained.num_classes)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False), trained, sha256


def train_classifier(images: Images) -> tuple[ClassifierNet, Trained]:
    """Train on nine tenths of `images`, measure on the rest (at most 5,000).

    Torch's random state is left as it was, so this may run inside a training job.
    """
    num_classes = _num_classes(images)
    rng = np.random.Generator(np.random.PCG64(SEED))
    shuffled = rng.permutation(len(images))
    held_out, kept = np.split(shuffled, [min(5000, len(images) // 10)])
    steps = -(-IMAGES_PER_CHANNEL * images.channels // BATCH_SIZE)
    epochs = -(-steps * BATCH_SIZE // len(kept))
    order = np.concatenate([rng.permutation(kept) for _ in range(epochs)])
    with _reproducible():
        net = ClassifierNet(images.channels, num_classes)
        pixels = images.__getitems__(kept[:5000])[0].double()
        net.mean.copy_(pixels.mean((0, 2, 3))[:, None, None])
        net.std.copy_(pixels.std().clamp(min=1.0))
        _fit(net, images, order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE))
        net.eval().requires_grad_(False)
        right = accuracy(net, images, held_out)
    trained = Trained(
        data_fingerprint=images.fingerprint,
        channels=images.channels,
        resolution=images.resolution,
        num_classes=num_classes,
        images_seen=steps * BATCH_SIZE,
        held_out=len(held_out),
        held_out_accuracy=right,
    )
    return net, trained


def _fit(net: ClassifierNet, images: Images, order: np.ndarray) -> None:
    """Gradient steps on cross-entropy, one for each row of `order` (steps, batch)."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, len(order), pct_start=0.25)
    for indices in tqdm(order, desc="training the classifier, once", unit="step", disable=None):
        x, labels = images.__getitems__(indices)
        loss = F.cross_entropy(net(x)[1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(net: ClassifierNet, images: Images, indices: np.ndarray) -> float:
    """Share of the images at `indices` (n,) whose label the network finds; NaN for none."""
    right = 0
    for start in range(0, len(indices), 500):
        x, labels = images.__getitems__(indices[start : start + 500])
        right += int((net(x)[1].argmax(1) == labels).sum())
    return right / len(indices) if len(indices) else float("nan")


def _num_classes(images: Images) -> int:
    if images.labels is None:
        raise ValueError(
            f"--feature_extractor classifier learns from labels, and {images.name!r} has none: name their "
            "column with --label_column, or choose another of inception, dinov2, clip, pixels"
        )
    return len(images.class_names) if images.class_names else int(images.labels.max()) + 1


@contextmanager
def _reproducible() -> Iterator[None]:
    """One thread, float32, gradients on, torch's CPU random numbers from SEED; then all as it was before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
        ):
            torch.default_generator.manual_seed(SEED)  # torch.manual_seed would also seed the accelerators
            yield
    finally:
        torch.set_num_threads(threads)
