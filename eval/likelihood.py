"""Bits per dimension: a variational bound on -log2 p(x), term by term, averaged over images.

What is decided here. (1) The harness: `Terms` gives the terms of the bound for a batch of images, and
`bits_per_image` averages them, each image counted once by whichever process scored it. An image's noise
comes from (seed, index of the image) alone, so no number depends on batches, processes or on which other
images are scored. (2) `GaussianTerms`: the bound of a discrete-time diffusion model, Ho et al. 2020 (arXiv
2006.11239), equation 5, with L_T, L_1..L_{T-1} and L_0 under the names

    prior           KL(q(x_T | x_0) || N(0, I)), in closed form
    diffusion       sum over t = 2..T of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), one x_t for each t
    reconstruction  -log p(x_0 | x_1), a Gaussian's mass on the 8-bit bins (equation 13)

It is the bound of the chain that a DDPMScheduler samples: the predicted x_0 is clipped before it enters the
mean if the scheduler clips, and the variance is the scheduler's. The last step of sampling adds no noise, so
the variance at t = 1 is a choice; it is the one of Ho et al.'s and Nichol & Dhariwal's code, on which the
published numbers rest (see `VARIANCES`). The schedule is rebuilt in float64 from the scheduler's
configuration: its own `alphas_cumprod` is float32, which is too coarse where 1 - abar is small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import Tensor
from tqdm.auto import tqdm

from trilemma.eval.noise import normal
from trilemma.eval.sample_metric import NORMAL_QUANTILE, Measurement, SampleMetric
from trilemma.eval.vae_terms import VAETerms
from trilemma.eval.vdm_terms import VDMTerms
from trilemma.training.data import Images, to_float
from trilemma.training.losses import learned_log_variance, log_variance_range, prior_bpd, vlb_term_bpd
from trilemma.training.process import SCHEDULES, TARGETS, GaussianProcess, NoiseSchedule, Target
from trilemma.training.sampling import network_of, shard


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
    though they were drawn from all images of their kind, and the noise and Monte Carlo in each one's value.
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
        """`bpd`, then `bpd_<name>` for each term."""
        self.check_complete(self.seen)
        terms = {f"bpd_{name}": self.metric_state[name] for name in self.names}
        for name, values in terms.items():
            wrong = (~values.isfinite()).nonzero().flatten().tolist()
            if wrong:
                raise ValueError(f"{name} is not finite for {len(wrong)} images, the first is {wrong[0]}")
        return {name: _mean(values) for name, values in {"bpd": sum(terms.values()), **terms}.items()}


def _mean(values: Tensor) -> Measurement:
    value, half = float(values.mean()), NORMAL_QUANTILE * float(values.std()) / len(values) ** 0.5
    return Measurement(value, len(values), (value - half, value + half))


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
    metric = BitsPerDim(terms.names, len(indices)).to(device)
    places = shard(range(len(indices)), rank, world)
    with tqdm(total=len(places), desc="bits per dimension", unit="image", disable=rank > 0 or None) as bar:
        for start in range(0, len(places), terms.images_at_once):
            batch = places[start : start + terms.images_at_once]
            rows = [int(indices[place]) for place in batch]
            pixels, labels = images.__getitems__(rows)
            generators = [np.random.default_rng([seed, row]) for row in rows]
            labels = None if labels is None else labels.to(device)
            metric.update(torch.tensor(batch), terms(to_float(pixels.to(device)), labels, generators))
            bar.update(len(batch))
    return metric


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
    """Bits per dimension of images under a model: `bpd` and the terms of its bound.

    pipeline: a row of `TERMS`, or `unet` and `scheduler` as published; class-conditional ones score an image
        given its label.
    timesteps: how many of the T - 1 terms of the diffusion sum each image gets, by systematic sampling: a
        Monte Carlo estimate without bias, whose error is part of the interval. None takes them all.
    batch_size: images in one forward of the network, each at its own t. Changes no number.
    accelerator: its processes share the images; all must call, and all get the result.
    indices: which images; by default all.
    """
    _check_images(pipeline, images)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    terms_of = TERMS.get(type(pipeline).__name__, GaussianTerms.of)
    terms, net = terms_of(pipeline, timesteps, batch_size), network_of(pipeline)
    training = net.training
    net.eval()
    try:
        metric = bits_per_image(
            terms, images, seed=seed, device=pipeline.device, indices=indices, rank=rank, world=world
        )
    finally:
        net.train(training)
    return metric.compute()


def process_of(scheduler: SchedulerMixin) -> GaussianProcess:
    """The noising process that a diffusers scheduler was configured with, in float64."""
    config = scheduler.config
    steps, name = config.num_train_timesteps, config.beta_schedule
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("the scheduler has rescale_betas_zero_snr=True: at T no bound is finite for epsilon")
    if config.trained_betas is not None:
        betas = torch.from_numpy(np.array(config.trained_betas, dtype=np.float64))
        if len(betas) != steps:
            raise ValueError(f"the scheduler has {len(betas)} trained_betas and num_train_timesteps={steps}")
        return GaussianProcess(torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)]))
    if name not in SCHEDULES:
        raise ValueError(f"the scheduler's beta_schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    return NoiseSchedule(name, steps, config.beta_start, config.beta_end).process()


def _fixed_small(output: Tensor, process: GaussianProcess, t: Tensor) -> Tensor:
    return _per_image(log_variance_range(process, t)[0])


def _fixed_large(output: Tensor, process: GaussianProcess, t: Tensor) -> Tensor:
    low, high = log_variance_range(process, t)
    return _per_image(torch.where(t == 1, low, high))


def _per_image(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)


VARIANCES: dict[str, Callable[[Tensor, GaussianProcess, Tensor], Tensor]] = {
    "fixed_small": _fixed_small,
    "fixed_large": _fixed_large,
    "learned_range": learned_log_variance,
}
"""diffusers' names -> log variance of p(x_{t-1} | x_t), broadcasting over (B, C, H, W), from (the network's
output beyond the mean, process, t).

At t = 1 the posterior has no variance. That of t = 2 stands in for it, in both fixed rows ("to get a better
decoder log likelihood", as the code of both papers says) and as the lower end of the learned range, whose
upper end is beta_1.
"""


@dataclass(frozen=True, eq=False)
class GaussianTerms:
    """The bound of a network that denoises; see the top of this file and `bits_per_dim`."""

    net: ModelMixin
    process: GaussianProcess
    target: Target
    log_variance: Callable[[Tensor, GaussianProcess, Tensor], Tensor]
    clip: float  # the predicted x_0 is clipped to [-clip, clip]
    conditional: bool  # the network takes labels
    timesteps: int
    batch_size: int
    names = ("prior", "diffusion", "reconstruction")

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, timesteps: int | None, batch_size: int) -> "GaussianTerms":
        """As the configurations of the pipeline's network and scheduler say."""
        config, net = pipeline.scheduler.config, pipeline.unet
        process = process_of(pipeline.scheduler).to(pipeline.device)
        variance, possible = config.get("variance_type"), process.steps - 1
        if variance not in VARIANCES:
            raise ValueError(
                f"the scheduler's variance_type must be one of {', '.join(VARIANCES)}; got {variance!r}. "
                "Give the pipeline the DDPMScheduler that it was trained with"
            )
        outputs, wanted = net.config.out_channels, 2 * net.config.in_channels
        if variance == "learned_range" and outputs != wanted:
            raise ValueError(f"a network of learned_range variance must have {wanted} outputs; got {outputs}")
        if config.get("thresholding"):
            raise ValueError("the scheduler has thresholding=True; bits per dimension know only clip_sample")
        if timesteps is not None and not 1 <= timesteps <= possible:
            raise ValueError(f"--bpd_timesteps must be in 1..{possible}, or None for all; got {timesteps}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        return cls(
            net=net,
            process=process,
            target=TARGETS[config.prediction_type],
            log_variance=VARIANCES[variance],
            clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample") else float("inf"),
            conditional=net.config.get("num_class_embeds") is not None,
            timesteps=timesteps or possible,
            batch_size=batch_size,
        )

    @property
    def images_at_once(self) -> int:
        """As many as fill a forward; one image that needs more rows than that takes several."""
        return max(1, self.batch_size // (1 + self.timesteps))

    @torch.no_grad()
    def __call__(
        self, x0: Tensor, labels: Tensor | None, generators: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """name -> (B,) float64 bits per dimension; each image is noised to t = 1 and `timesteps` others."""
        t = np.stack([self._times(generator) for generator in generators])
        image, t = np.repeat(np.arange(len(x0)), t.shape[1]), t.flatten()
        terms = []
        for start in range(0, len(t), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            noise = normal([generators[i] for i in image[chunk]], x0.shape[1:], x0.device)
            at = torch.from_numpy(image[chunk]).to(x0.device)
            own_labels = labels[at] if self.conditional else None
            terms.append(self._term(x0[at], own_labels, torch.from_numpy(t[chunk]).to(x0.device), noise))
        terms = torch.cat(terms).double().view(len(x0), -1)
        return {
            "prior": prior_bpd(self.process, x0),
            "diffusion": terms[:, 1:].mean(1) * (self.process.steps - 1),
            "reconstruction": terms[:, 0],
        }

    def _times(self, generator: np.random.Generator) -> np.ndarray:
        """t = 1, then K of 2..T, evenly spread from a random start (systematic sampling): int64 (K + 1,).

        Over the T - 1 starts every t turns up equally often. With K = T - 1 every start gives 2..T.
        """
        terms, k = self.process.steps - 1, np.arange(self.timesteps)
        return np.append(1, 2 + (k * terms + generator.integers(terms)) // self.timesteps)

    def _term(self, x0: Tensor, labels: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        """The term at step t of each row, (B,); the network's dtype and outputs are as in the pipelines."""
        x_t = self.process.diffuse(x0, t, noise)
        condition = () if labels is None else (labels,)
        output = self.net(x_t.to(self.net.dtype), t - 1, *condition).sample.float()
        prediction, rest = output[:, : x0.shape[1]], output[:, x0.shape[1] :]
        alpha, sigma = self.process.signal_and_noise(t, x0)
        x0_hat = self.target.to_x0(prediction, x_t, alpha, sigma).clamp(-self.clip, self.clip)
        return vlb_term_bpd(self.process, x0, x_t, t, x0_hat, self.log_variance(rest, self.process, t))


def _check_images(pipeline: DiffusionPipeline, images: Images) -> None:
    """Raise unless the images have the network's size and, where it takes labels, labels of its classes."""
    config = network_of(pipeline).config
    size = config.sample_size
    wanted = (config.in_channels, *([size, size] if isinstance(size, int) else size or ()))
    found = (images.channels, images.resolution, images.resolution)[: len(wanted)]
    if found != wanted:
        raise ValueError(
            f"the network takes images of (channels, height, width) {wanted}; those of {images.name} are "
            f"{found}. Load them with --resolution and --channels of the training"
        )
    if config.get("num_class_embeds") is None:
        return
    classes = config.num_class_embeds - 1  # the last embedding stands for no label
    if images.labels is None:
        raise ValueError(f"the model needs class labels; {images.name} has none, see --label_column")
    if images.labels.max() >= classes:
        raise ValueError(f"the model has {classes} classes; {images.name} has a label {images.labels.max()}")


TERMS: dict[str, Callable[[DiffusionPipeline, int | None, int], Terms]] = {
    "VDMPipeline": VDMTerms.of,
    "VAEPipeline": VAETerms.of,
}
"""Class of the pipeline -> the terms of its bound, of (pipeline, timesteps, batch_size); others: Gaussian."""
