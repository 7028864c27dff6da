"""Samplers, guidance, bounds, extractors and metrics on the pretended device; prints what happened as JSON.

Argument: "float64", or "float32-only" for a device without it.
"""

import json
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from unittest import mock

from device import CUDA, cuda_accelerator, pretend_cuda

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from methods import CHANNELS, CLASSES, METHODS, SIDE  # noqa: E402
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from trilemma.eval.bounds.bits_per_dim import Likelihood, bits_per_image  # noqa: E402
from trilemma.eval.features.classifier import ClassifierNet  # noqa: E402
from trilemma.eval.features.extractors import FeatureExtractor, Traits, VisionNet  # noqa: E402
from trilemma.eval.features.inception import InceptionV3  # noqa: E402
from trilemma.eval.metrics.frechet import Gaussian  # noqa: E402
from trilemma.eval.metrics.table import METRICS  # noqa: E402
from trilemma.eval.scoring.reference import ReferenceStatistics  # noqa: E402
from trilemma.eval.scoring.yardsticks import Yardstick, score  # noqa: E402
from trilemma.training.images.image_set import Images  # noqa: E402

COUNT = 40
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, CHANNELS, SIDE, SIDE), dtype=np.uint8)
IMAGES = Images(
    PIXELS, np.zeros((COUNT, 32), np.uint8), np.arange(COUNT), np.arange(COUNT) % 10, CLASSES, "x", "train"
)
HALVES = (0.5,) * 3
Check = Callable[[], None]


def extractor(net: torch.nn.Module, dim: int, classes: int | None = None) -> FeatureExtractor:
    """An extractor around any network."""
    return FeatureExtractor(net, Traits("x", "x", "x", dim, classes))


def vision(model: torch.nn.Module, output: str, dim: int) -> FeatureExtractor:
    """A tiny transformer behind the preprocessing of the large one."""
    return extractor(VisionNet(model, attrgetter(output), HALVES, HALVES), dim)


def dinov2() -> FeatureExtractor:
    """A tiny DINOv2."""
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14)
    return vision(Dinov2Model(Dinov2Config(**sizes)), "pooler_output", 8)


def clip() -> FeatureExtractor:
    """A tiny CLIP."""
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPVisionConfig(**sizes, image_size=224, patch_size=32, projection_dim=4)
    return vision(CLIPVisionModelWithProjection(config), "image_embeds", 4)


EXTRACTORS: dict[str, Callable[[], FeatureExtractor]] = {
    "inception": lambda: extractor(InceptionV3(), 2048, 1008),
    "classifier": lambda: extractor(ClassifierNet(3, 10), 128, 10),
    "dinov2": dinov2,
    "clip": clip,
}


def check_extractor(name: str) -> None:
    """float32 features on the device, also within autocast."""
    net = EXTRACTORS[name]().to(CUDA)
    images = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8, device=CUDA)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        for output in net(images):
            assert output is None or (output.dtype is torch.float32 and output.device.type == "cuda")


def check_sampler(name: str, sampler: str, **options) -> None:
    """Images of a pipeline with a sampler are float32 on the device."""
    method = METHODS[name](cuda_accelerator())
    pipeline = method.pipeline(method.net).with_sampler(sampler)
    pipeline.set_progress_bar_config(disable=True)
    if method.num_classes:
        options = {"class_labels": [0, 1, None], **options}
    steps = None if pipeline.family in ("ddgan", "vae") else 5
    images = pipeline(seeds=range(3), num_inference_steps=steps, output_type="pt", **options).images
    assert images.dtype is torch.float32
    assert images.device.type == "cuda"


def check_bound(name: str, timesteps: int | None) -> None:
    """Bits per dimension of a few images."""
    method = METHODS[name](cuda_accelerator())
    likelihood = Likelihood(method.pipeline(method.net), timesteps, 16)
    bits_per_image(likelihood.terms, IMAGES, seed=0, device=CUDA, indices=range(4))


def check_metrics() -> None:
    """Every metric of samples, with an extractor on the device."""
    net = extractor(ClassifierNet(3, 10), 128, 10).to(CUDA)
    features = torch.randn(COUNT, 128, generator=torch.Generator().manual_seed(0))
    counts = torch.ones(10, dtype=torch.float64)
    rows = torch.arange(COUNT)
    reference = ReferenceStatistics(Gaussian.of(features), None, features, features + 1, counts, rows % 10)
    names = tuple(name for name, row in METRICS.items() if row.needs != ("model",))
    batches = [(rows, torch.from_numpy(PIXELS), rows % 10)]
    stick = Yardstick(net, reference, None, names)
    assert score([stick], batches, COUNT, cuda_accelerator(), force=True)[stick]


def checks() -> dict[str, Check]:
    """Name -> what must run."""
    table = {f"extractor {name}": partial(check_extractor, name) for name in EXTRACTORS}
    table["metrics"] = check_metrics
    for name in ("unconditional", "class-conditional", "vae", "vdm", "ddgan", "ddgan with classes"):
        method = METHODS[name](cuda_accelerator())
        samplers = method.pipeline(method.net).samplers()
        for sampler in samplers if name == "unconditional" else samplers[:2]:
            table[f"{name} {sampler}"] = partial(check_sampler, name, sampler)
    guided = {"guidance_scale": 3.0}
    for batched in (True, False):
        options = {**guided, "guidance_interval": (0.1, 5.0), "batched_guidance": batched}
        table[f"guidance batched={batched}"] = partial(check_sampler, "class-conditional", "ddim", **options)
    table["vdm guidance"] = partial(check_sampler, "vdm of T steps", "ancestral", **guided)
    plain = ("unconditional", "unconditional hybrid", "class-conditional")
    for name in (*plain, "vdm monotone", "vdm of T steps"):
        table[f"bound {name}"] = partial(check_bound, name, 4)
    table["bound vae"] = partial(check_bound, "vae", None)
    return table


def main(kind: str) -> None:
    """All checks; of each nothing, or its error."""
    results = {}
    with (
        pretend_cuda(kind == "float64"),
        mock.patch("trilemma.eval.metrics.sample_metric.SampleMetric.check_complete"),
    ):
        for name, check in checks().items():
            try:
                check()
                results[name] = None
            except Exception:
                results[name] = traceback.format_exc()[-2500:]
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
