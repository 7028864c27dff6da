"""Bits per dimension: a variational bound on -log2 p(x), term by term, averaged over images.

A family that has a bound has a file of its name in this folder, with

    terms(pipeline, timesteps, batch_size) -> Terms

and, if its models are flows of noise to images, path(pipeline) -> Path (`ode.py`), which gives them a second
bound that is measured in the same way in all such families.

`Terms` gives the terms of the bound for a batch of images, and `bits_per_image` averages them, each image
counted once by whichever process scored it. The noise of an image comes from (seed, index of the image)
alone, so no number depends on batches, on processes or on which other images are scored.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.eval.bounds.ode import ode_terms
from trilemma.eval.metrics.sample_metric import ENOUGH, NORMAL_QUANTILE, Measurement, SampleMetric
from trilemma.pipelines import as_ours
from trilemma.pipelines.shared import exact_device
from trilemma.training import families
from trilemma.training.devices.precision import plain_float32
from trilemma.training.images.image_set import Images, to_float
from trilemma.training.progress import Progress
from trilemma.training.sampling import shard

FLOOR = "trilemma.eval.bounds"


class Terms(Protocol):
    """The bound of one model as a sum of named terms, each in bits per dimension."""

    names: tuple[str, ...]

    @property
    def images_at_once(self) -> int:
        """How many images to pass to one call."""

    def __call__(
        self, x0: Tensor, labels: Tensor | None, generators: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """name -> (B,) float64, for x0 (B, C, H, W) in [-1, 1] on the 8-bit grid; labels int64 (B,) or None.

        All noise of an image must come from its own generator.
        """


class BitsPerDim(SampleMetric):
    """Means over images of the terms and of their sum, `bpd`, with their standard errors.

    The interval is the mean +- 1.96 standard errors over images. It covers both the spread over images, as
    though they were drawn from all images of their kind, and the Monte Carlo noise in the value of each.
    Fewer than ENOUGH images have no interval.
    """

    def __init__(self, names: Sequence[str], num_images: int) -> None:
        super().__init__(num_images)
        self.names = tuple(names)
        for name in self.names:
            self.add_sum(name, num_images)

    def update(self, index: Tensor, terms: dict[str, Tensor]) -> None:
        """terms, name -> (B,), of the images `index` (B,)."""
        index = self.mark(index).to(self.device)
        for name in self.names:
            self.metric_state[name].index_add_(0, index, terms[name].to(self.seen))

    def compute(self) -> dict[str, Measurement]:
        """`bpd`, then `<name>_bpd` for each term."""
        self.check_complete(self.seen)
        terms = {f"{name}_bpd": self.metric_state[name] for name in self.names}
        for name, values in terms.items():
            wrong = (~values.isfinite()).nonzero().flatten().tolist()
            if wrong:
                raise ValueError(f"{name} is not finite for {len(wrong)} images, the first is {wrong[0]}")
        return {name: _mean(values) for name, values in {"bpd": sum(terms.values()), **terms}.items()}


def _mean(values: Tensor) -> Measurement:
    value, n = float(values.mean()), len(values)
    if n < ENOUGH:
        return Measurement(value, n)
    half = NORMAL_QUANTILE * float(values.std()) / n**0.5
    return Measurement(value, n, (value - half, value + half))


def bits_per_image(
    terms: Terms,
    images: Images,
    *,
    seed: int,
    device: torch.device,
    indices: Sequence[int] | None = None,
    rank: int = 0,
    world: int = 1,
) -> BitsPerDim:
    """Score this rank's share of the images (all, or those of `indices`); then every rank must `compute`."""
    indices = range(len(images)) if indices is None else indices
    metric = BitsPerDim(terms.names, len(indices)).to(exact_device(device))
    places = shard(range(len(indices)), rank, world)
    with Progress("bits per dimension", len(places), "image", show=rank == 0) as progress:
        for start in range(0, len(places), terms.images_at_once):
            batch = places[start : start + terms.images_at_once]
            rows = [int(indices[place]) for place in batch]
            pixels, labels = images.__getitems__(rows)
            generators = [np.random.default_rng([seed, row]) for row in rows]
            labels = None if labels is None else labels.to(device)
            with plain_float32(device):
                bits = terms(to_float(pixels.to(device)), labels, generators)
            metric.update(torch.tensor(batch), bits)
            progress.update(len(batch))
    return metric


class Likelihood:
    """Bits per dimension of images under a model.

    pipeline: class-conditional ones score an image with its label.
    timesteps: how many of the T - 1 terms of the diffusion sum each image gets, by systematic sampling: a
        Monte Carlo estimate without bias, whose error is part of the interval. None takes them all.
    batch_size: images in one forward of the network, each at its own t. Changes no number.

    ValueError for a model of a family that has no bound.
    """

    def __init__(self, pipeline: DiffusionPipeline, timesteps: int | None, batch_size: int) -> None:
        bound = families.column(FLOOR, pipeline.family)
        if bound is None:
            able = [name for name in families.names() if families.column(FLOOR, name)]
            raise ValueError(
                f"--metrics bpd: {pipeline.family} models have no bound on the likelihood; "
                f"models of these families have one: {', '.join(able)}"
            )
        self.pipeline = pipeline
        self.terms: Terms = bound.terms(pipeline, timesteps, batch_size)

    def check(self, *image_sets: Images) -> None:
        """ValueError unless images have the network's size and, where it takes labels, labels it knows."""
        for images in image_sets:
            _check_images(self.pipeline, images)

    def measure(
        self,
        images: Images,
        *,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        indices: Sequence[int] | None = None,
    ) -> dict[str, Measurement]:
        """`bpd` and the terms of the bound, over all images or those of `indices`.

        accelerator: its processes share the images; all must call, and all get the result.
        """
        self.check(images)
        rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        net, device = self.pipeline.network, self.pipeline.device
        training = net.training
        net.eval()
        try:
            metric = bits_per_image(
                self.terms, images, seed=seed, device=device, indices=indices, rank=rank, world=world
            )
        finally:
            net.train(training)
        return metric.compute()


class ODELikelihood(Likelihood):
    """The same by the probability-flow equation, for each family that has one.

    timesteps: of its solver. ValueError for a model of a family without such an equation.
    """

    def __init__(self, pipeline: DiffusionPipeline, timesteps: int | None, batch_size: int) -> None:
        paths = {name: getattr(families.column(FLOOR, name), "path", None) for name in families.names()}
        able, path = {name for name, path in paths.items() if path}, paths.get(pipeline.family)
        if path is None:
            raise ValueError(
                f"--metrics ode_bpd: {pipeline.family} models have no probability-flow equation here; models "
                f"of these families have one: {', '.join(sorted(able))}"
            )
        self.pipeline = pipeline
        self.terms = ode_terms(path(pipeline), timesteps, batch_size)

    def measure(self, images: Images, **options: Any) -> dict[str, Measurement]:
        """`ode_bpd` and its terms."""
        measured = super().measure(images, **options)
        return {f"{name.removesuffix('bpd')}ode_bpd": value for name, value in measured.items()}


def bits_per_dim(
    pipeline: DiffusionPipeline,
    images: Images,
    *,
    timesteps: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    accelerator: Accelerator | None = None,
    indices: Sequence[int] | None = None,
) -> dict[str, Measurement]:
    """Bits per dimension of images under a model, in one call: see `Likelihood`."""
    likelihood = Likelihood(as_ours(pipeline), timesteps, batch_size)
    return likelihood.measure(images, seed=seed, accelerator=accelerator, indices=indices)


def _check_images(pipeline: DiffusionPipeline, images: Images) -> None:
    config = pipeline.network.config
    size = config.sample_size
    expected = (config.in_channels, *([size, size] if isinstance(size, int) else size or ()))
    shape = (images.channels, images.resolution, images.resolution)[: len(expected)]
    if shape != expected:
        raise ValueError(
            f"the network takes images of (channels, height, width) {expected}; those of {images.name} are "
            f"{shape}. Load them with --resolution and --channels of the training"
        )
    if config.get("num_class_embeds") is None:
        return
    classes = config.num_class_embeds - 1  # the last embedding stands for no label
    if images.labels is None:
        raise ValueError(f"the model needs class labels; {images.name} has none, see --label_column")
    if images.labels.max() >= classes:
        raise ValueError(f"the model has {classes} classes; {images.name} has a label {images.labels.max()}")
