"""Lines of `results.jsonl` of likelihoods: which images, and under the name of which split."""

import pkgutil
from dataclasses import replace

from accelerate import Accelerator

from trilemma.eval.bounds.bits_per_dim import Likelihood
from trilemma.eval.metrics.table import METRICS
from trilemma.eval.scoring import results
from trilemma.eval.scoring.model_images import Drawing, training_so_far
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.scoring.yardsticks import Reference
from trilemma.training.images.image_set import Images
from trilemma.training.loop.machine import commit

HELD_OUT = "test"
"""The split under whose name the likelihood of held-out images is recorded."""


def likelihood_of(name: str, drawing: Drawing, config) -> Likelihood:
    """A metric of the model itself; ValueError if this model has none."""
    build = pkgutil.resolve_name(METRICS[name].build)
    return build(drawing.saved or drawing.pipeline, config.score.bpd_timesteps, config.model.batch_size)


def likelihood_images(config, reference: Reference) -> dict[str, Images]:
    """Split -> images whose likelihood is measured: those of --split, or training and held-out images."""
    if reference.images is None:
        raise ValueError("--metrics bpd needs a data set as --reference, not a statistics file")
    if config.reference.split:
        return {config.reference.split: reference.images}
    held_out = {} if reference.held_out is None else {HELD_OUT: reference.held_out}
    return {"train": reference.images, **held_out}


def likelihood_lines(
    config, drawing: Drawing, likelihood: Likelihood, reference: Reference, accelerator: Accelerator
) -> list[ResultLine]:
    """Lines of the likelihood of each part of the images; collective."""
    new = []
    for split, images in likelihood_images(config, reference).items():
        first = config.sampling.seed
        count = min(config.score.bpd_images or len(images), len(images))
        measured = likelihood.measure(images, seed=first, accelerator=accelerator, indices=range(count))
        origin = replace(
            drawing.origin(*training_so_far(config.model.model)),
            seeds=f"{first}..{first + count - 1}",
            mixed_precision=None,
            sampler=None,
            num_inference_steps=config.score.bpd_timesteps,
            nfe=None,
            classes=None,
            guidance_scale=None,
            seconds_per_image=None,
        )
        protocol = ReferenceProtocol(
            extractor=None,
            extractor_sha256=None,
            resize=None,
            quantisation=None,
            data=images.name,
            split=split,
            data_fingerprint=images.fingerprint,
            flips=False,
            n=len(images),
            whole=images.whole,
        )
        new += results.lines(measured, origin, protocol, commit=commit())
    return new
