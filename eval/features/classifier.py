"""A small classifier: features and judge for data no published network was made for.

Published networks see 8x8 digits as noise, and often cannot be had at all. This one is trained on a data
set's own images and labels. Distances under it compare models of one data set by one judge; they are
`fd_classifier`, never FID, and carry the sha256 of its file. Which file that is, `judge_files.py` decides:
judges of common data sets are shipped, those of other data are trained once and kept.

Two trainings on the same images and labels give the same file if the processor and the versions of torch and
of its libraries are the same. Load, the number of threads, memory alignment, and the device, precision and
random state of the job around it change nothing: the training runs on the CPU, in float32, on one thread (the
number of threads changes the order of sums), with its own seed. Another processor has other instructions and
rounds differently, and after some hundred steps the weights are others: that judge is as good, but results
under the two cannot be compared. The features that one file gives agree between processors to rounding.

The network is a VGG-like stack (Simonyan & Zisserman 2015, arXiv:1409.1556) with batch normalisation and a
global average pool, trained with AdamW under a one-cycle learning rate (Smith & Topin, arXiv:1708.07120).
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from trilemma.eval.features.inception import file_sha256
from trilemma.eval.features.judge_files import (
    BY_DATA,
    DIGITS_OF_SHA256,
    SHIPPED,
    JudgeChoice,
    Trained,
    cache_stem,
    classifiers_folder,
    count_classes,
    find_judge,
    judge_names,
    read_trained,
)
from trilemma.pipelines.files.arrays import read_safetensors
from trilemma.pipelines.files.writing import written
from trilemma.training.images.image_set import Images
from trilemma.training.progress import each

SEED = 20240229
BATCH_SIZE = 128
IMAGES_PER_CHANNEL = 50_000  # images seen in training, times the data's channels
LEARNING_RATE = 0.01
LEAST_SKILL = 0.25
"""Share of the way from guessing to always right; a judge below it hardly knows its classes."""
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


@dataclass(frozen=True)
class Recipe:
    """What may differ between trainings. The default is the recipe of data that no judge is shipped for."""

    images_seen: int | None = None  # with repetitions; IMAGES_PER_CHANNEL times the channels if None
    random_flip: bool = False  # left to right, with probability 1/2


DEFAULT = Recipe()


def classifier_file(images: Images | None, cache: Path, choice: JudgeChoice = BY_DATA) -> Path:
    """The file of the classifier that judges `images`: found, or trained now and kept in the folder `cache`.

    Training takes seconds to a few minutes. With several processes, call it on the local main process first;
    the others then find the file.
    """
    file = find_judge(images, cache, choice)
    if file is not None:
        return file
    if images is None:
        raise ValueError(
            "--feature_extractor classifier is trained on the reference images: --reference must be a data "
            f"set, or {choice.option} the name of a shipped classifier ({', '.join(judge_names())}), or "
            "--extractor_weights the .safetensors file of one that was trained before"
        )
    return save_classifier(*train_classifier(images), classifiers_folder(cache), cache_stem(images))


def save_classifier(net: "ClassifierNet", trained: Trained, folder: Path, stem: str) -> Path:
    """Write `<stem>-<first digits of its sha256>.safetensors`: no reader sees half a file."""
    # One key, as safetensors does not keep the order of several: the bytes must be a function of the network.
    content = save(net.state_dict(), {"trained": trained.to_json()})
    target = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:DIGITS_OF_SHA256]}.safetensors"
    with written(target) as file:
        file.write(content)
    return target


def load_classifier(file: Path) -> tuple[ClassifierNet, Trained, str]:
    """The network in evaluation mode, how it was trained, and its file's sha256, checked against the name."""
    if not file.is_file():
        raise FileNotFoundError(f"--extractor_weights must name a classifier's file; there is no file {file}")
    sha256 = file_sha256(file)
    expected = file.stem.rpartition("-")[2]
    if len(expected) != DIGITS_OF_SHA256 or not sha256.startswith(expected):
        remedy = "install trilemma again" if file.parent == SHIPPED else "restore it, or delete it"
        raise ValueError(
            f"{file} is not the classifier that was saved under this name: its sha256 is {sha256}, "
            f"expected {expected}...; {remedy}"
        )
    trained = read_trained(file)
    net = ClassifierNet(trained.channels, trained.num_classes)
    state, _ = read_safetensors(file)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} is not a classifier of this toolkit: {error}") from error
    return net.eval().requires_grad_(False), trained, sha256


def train_classifier(
    images: Images, recipe: Recipe = DEFAULT, test: Images | None = None
) -> tuple[ClassifierNet, Trained]:
    """Train on `images`, and measure the accuracy on `test`.

    Without `test`, a tenth of the images (at most 5,000) is held out for that.

    Torch's random state is left as it was, so this may run inside a training job.
    """
    rng = np.random.Generator(np.random.PCG64(SEED))
    shuffled = rng.permutation(len(images))
    held_out, kept = np.split(shuffled, [0 if test else min(5000, len(images) // 10)])
    order, flips = _stream(kept, images.channels, recipe, rng)
    with _reproducible():
        net = ClassifierNet(images.channels, count_classes(images))
        pixels = images.__getitems__(kept[:5000])[0].double()
        net.mean.copy_(pixels.mean((0, 2, 3))[:, None, None])
        net.std.copy_(pixels.std().clamp(min=1.0))
        _fit(net, images, order, flips)
        net.eval().requires_grad_(False)
        unseen, rows = (test, np.arange(len(test))) if test else (images, held_out)
        share = accuracy(net, unseen, rows)
    trained = Trained(
        data_fingerprint=images.fingerprint,
        channels=images.channels,
        resolution=images.resolution,
        num_classes=net.head.out_features,
        images_seen=order.size,
        held_out=len(rows),
        held_out_accuracy=share,
    )
    return net, trained


def _stream(
    kept: np.ndarray, channels: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which images each step sees, (steps, batch) int64, and which of them flipped, (steps, batch) bool."""
    steps = -(-(recipe.images_seen or IMAGES_PER_CHANNEL * channels) // BATCH_SIZE)
    epochs = -(-steps * BATCH_SIZE // len(kept))
    order = np.concatenate([rng.permutation(kept) for _ in range(epochs)])
    order = order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
    return order, rng.random(order.shape) < (0.5 if recipe.random_flip else 0.0)


def _fit(net: ClassifierNet, images: Images, order: np.ndarray, flips: np.ndarray) -> None:
    """Gradient steps on cross-entropy, one for each row of `order` and of `flips`."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, len(order), pct_start=0.25)
    steps = zip(order, torch.from_numpy(flips)[:, :, None, None, None], strict=True)
    what = "training the classifier that scores samples, once for these images (if stopped, it begins anew)"
    for indices, flip in each(steps, what, len(order), "step"):
        x, labels = images.__getitems__(indices)
        loss = F.cross_entropy(net(torch.where(flip, x.flip(-1), x))[1], labels)
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


def judge_in_words(accuracy: float, num_classes: int) -> str:
    """The log line about a judge: how good it is, and a warning if it is hardly better than guessing.

    accuracy: on images that it was not trained on; NaN if there were none.
    """
    if np.isnan(accuracy):
        return "How good the classifier that scores samples is, is not known: there are too few images."
    chance = 1 / num_classes
    said = (
        f"The classifier that scores samples is right on {100 * accuracy:.1f}% of images that it was not "
        f"trained on; chance is {100 * chance:.3g}%."
    )
    if accuracy > chance + LEAST_SKILL * (1 - chance):
        return said
    return f"{said} It can hardly tell the classes apart, so its numbers mean little."


@contextmanager
def _reproducible() -> Iterator[None]:
    """One thread of the CPU, float32, gradients on, random numbers from SEED; then all as it was before."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            exact_float32(),
            torch.random.fork_rng(devices=[]),
        ):
            torch.default_generator.manual_seed(SEED)  # torch.manual_seed would also seed the accelerators
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


@contextmanager
def exact_float32() -> Iterator[None]:
    """On the CPU, the usual kernels in full float32, whatever the job has set; then all as it was before."""
    mkldnn = torch.backends.mkldnn
    settings = [(mkldnn, "enabled", True), (mkldnn, "deterministic", True)]
    # torch.set_float32_matmul_precision sets the first of these; versions before 2.9 have neither.
    kinds = [getattr(mkldnn, name, None) for name in ("matmul", "conv")]
    settings += [(kind, "fp32_precision", "ieee") for kind in kinds if kind is not None]
    with ExitStack() as stack:
        for place, name, value in settings:
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        yield
