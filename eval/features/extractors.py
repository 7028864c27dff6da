"""Feature extractors: uint8 images in, feature vectors out, with what makes their distances comparable.

Their names are in `table.py`. What changes a distance is part of the extractor: the weights (`sha256`), the
resize (`resize`), and uint8 input, so that generated images are quantised as real ones are.
A Frechet distance over Inception features is `fid`; over others it has their name (`fd_dinov2`).
"""

import hashlib
import pkgutil
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from trilemma.eval.features import inception as fid_inception
from trilemma.eval.features.classifier import LARGEST, classifier_file, exact_float32, load_classifier
from trilemma.eval.features.judge_files import BY_DATA, JudgeChoice
from trilemma.eval.features.table import EXTRACTORS
from trilemma.training.devices.precision import plain_float32
from trilemma.training.images.image_set import Images, cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Features(NamedTuple):
    """What an extractor says of B images."""

    features: torch.Tensor  # (B, D) float32
    logits: torch.Tensor | None  # (B, K) float32, or None where the network has no classes


class Source(NamedTuple):
    """What an extractor may be built from; each row of `EXTRACTORS` takes what it needs."""

    weights: str | None  # a file (inception, classifier), or a model folder or Hub id (dinov2, clip)
    reference: Images | None  # the real images
    cache: Path
    judge: JudgeChoice = BY_DATA  # which classifier, where `weights` names none


class Traits(NamedTuple):
    """What an extractor takes and gives, and what makes two of them equal.

    resolution: the only side that the network takes, or None where it resizes. judge_accuracy: the accuracy
    of the network's classes on held-out data, where the network is the judge of class fidelity. file: of the
    judge. judge_data: what the judge was trained on, if not on the reference.
    """

    name: str
    sha256: str  # of the weights
    resize: str  # how images reach the network's size
    dim: int  # features of an image
    num_classes: int | None = None
    channels: int = 3
    resolution: int | None = None
    judge_accuracy: float | None = None
    file: Path | None = None
    judge_data: str | None = None


class FeatureExtractor(nn.Module):
    """A network with its traits. `net` maps uint8 (B, channels, H, W) to features and logits (or None)."""

    def __init__(self, net: nn.Module, traits: Traits):
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.name, self.sha256, self.resize = traits.name, traits.sha256, traits.resize
        self.dim, self.num_classes = traits.dim, traits.num_classes
        self.channels, self.resolution = traits.channels, traits.resolution
        self.judge_accuracy, self.file = traits.judge_accuracy, traits.file
        self.judge_data = traits.judge_data

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> Features:
        """images uint8 (B, C, H, W), C the network's, or 1 to be repeated -> float32 features and logits."""
        if images.dtype != torch.uint8:
            raise ValueError(
                f"features are of uint8 images, so that all are quantised alike; got {images.dtype}. "
                "Convert images in [0, 1] with to_uint8 of trilemma.training.images.image_set, which rounds "
                "to nearest"
            )
        if images.ndim != 4 or images.shape[1] not in (1, self.channels):
            raise ValueError(
                f"{self.name} takes images (B, {self.channels}, H, W) or grey ones (B, 1, H, W); "
                f"got {tuple(images.shape)}"
            )
        if self.resolution is not None and images.shape[2:] != (self.resolution, self.resolution):
            raise ValueError(
                f"{self.name} takes {self.resolution}x{self.resolution} images, as its reference data; "
                f"got {images.shape[2]}x{images.shape[3]}"
            )
        if len(images) == 0:  # a rank without a share; attention layers cannot take it
            features = torch.zeros(0, self.dim, device=images.device)
            logits = torch.zeros(0, self.num_classes or 0, device=images.device)
            return Features(features, None if self.num_classes is None else logits)
        images = images.expand(-1, self.channels, -1, -1)
        # Evaluation may run inside a training job's autocast, and TF32 convolutions alone move every feature.
        with plain_float32(images.device), exact_float32():
            features, logits = self.net(images)
        return Features(features, logits)


class Pixels(nn.Module):
    """The pixels as features, 0..255."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return images.flatten(1).float(), None


class VisionNet(nn.Module):
    """A transformers vision model behind its resize and normalisation; `embed` picks the features.

    The images are resized to 224 x 224 by Pillow's bicubic rule (antialiased, 8 bits), as dgm-eval (Stein et
    al. 2023) and the models' own processors do, but with no crop.
    """

    SIDE = 224

    def __init__(self, model: nn.Module, embed: Callable, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.model = model
        self.embed = embed
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(std)[:, None, None])

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float()
        for size in ((x.shape[2], self.SIDE), (self.SIDE, self.SIDE)):  # Pillow rounds after each pass
            x = F.interpolate(x, size, mode="bicubic", antialias=True).round().clamp(0, 255)
        return (x - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.embed(self.model(pixel_values=self.preprocess(images))), None


def inception(source: Source) -> FeatureExtractor:
    """The FID's network."""
    net, sha256 = fid_inception.load_inception(source.weights, source.cache)
    return FeatureExtractor(
        net, Traits(name="inception", sha256=sha256, resize=fid_inception.RESIZE, dim=2048, num_classes=1008)
    )


def dinov2(source: Source) -> FeatureExtractor:
    """DINOv2 ViT-L/14, its normalised class token: the space of Stein et al. 2023 (arXiv:2306.04675)."""
    from transformers import Dinov2Model

    model = _pretrained(Dinov2Model, source.weights or "facebook/dinov2-large", "dinov2")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    net = VisionNet(model, attrgetter("pooler_output"), mean, std)
    return _vision("dinov2", net, model.config.hidden_size)


def clip(source: Source) -> FeatureExtractor:
    """CLIP ViT-B/32, its image embedding: the space of Kynkaanniemi et al. 2023 (arXiv:2203.06026)."""
    from transformers import CLIPVisionModelWithProjection

    model = _pretrained(
        CLIPVisionModelWithProjection, source.weights or "openai/clip-vit-base-patch32", "clip"
    )
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    net = VisionNet(model, attrgetter("image_embeds"), mean, std)
    return _vision("clip", net, model.config.projection_dim)


def classifier(source: Source) -> FeatureExtractor:
    """The judge of the reference's data (see `judge_files.py`), or the one in a file."""
    if source.weights is not None and source.judge.name is not None:
        raise ValueError(f"give one of --extractor_weights and {source.judge.option}: both name a classifier")
    if source.weights is not None:
        file = Path(source.weights)
    else:
        file = classifier_file(source.reference, source.cache, source.judge)
    net, trained, sha256 = load_classifier(file)
    of_reference = source.reference is None or trained.data is None or trained.is_of(source.reference)
    return FeatureExtractor(
        net,
        Traits(
            name="classifier",
            sha256=sha256,
            resize=f"area-{LARGEST}" if trained.resolution > LARGEST else "none",
            dim=net.head.in_features,
            num_classes=trained.num_classes,
            channels=trained.channels,
            resolution=trained.resolution,
            judge_accuracy=trained.held_out_accuracy,
            file=file,
            judge_data=None if of_reference else trained.data_name,
        ),
    )


def pixels(source: Source) -> FeatureExtractor:
    """The pixels themselves, 0..255: no network, so no sha256 but `none`."""
    if source.weights is not None or source.reference is None:
        raise ValueError(
            "--feature_extractor pixels takes its size from the reference images and has no weights: "
            "--reference must be a data set, and --extractor_weights must not be given"
        )
    channels, side = source.reference.channels, source.reference.resolution
    return FeatureExtractor(
        Pixels(),
        Traits(
            name="pixels",
            sha256="none",
            resize="none",
            dim=channels * side * side,
            channels=channels,
            resolution=side,
        ),
    )


def load_extractor(
    name: str,
    *,
    weights: str | None = None,
    reference: Images | None = None,
    cache_dir: str | None = None,
    judge: JudgeChoice = BY_DATA,
) -> FeatureExtractor:
    """The extractor of this name, on the CPU, in evaluation mode; arguments as in `Source`.

    It may download weights or train the classifier into the cache (`cache_dir`, else $TRILEMMA_CACHE, else
    ~/.cache/trilemma), so with several processes let the local main process call it first.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"--feature_extractor must be one of {', '.join(EXTRACTORS)}; got {name!r}")
    build = pkgutil.resolve_name(EXTRACTORS[name])
    return build(Source(weights, reference, cache_folder(cache_dir), judge))


def _vision(name: str, net: VisionNet, dim: int) -> FeatureExtractor:
    sha256 = values_sha256(net.model.state_dict())
    resize = f"bicubic-antialias-{net.SIDE}"
    return FeatureExtractor(net, Traits(name, sha256, resize, dim))


def _pretrained(model_class: type["PreTrainedModel"], source: str, name: str) -> "PreTrainedModel":
    """A transformers model in float32 with all its weights, from a local folder or the Hub."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it prints a table of the text tower's tensors in CLIP's file
    try:
        model, report = model_class.from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"--feature_extractor {name} could not load {source!r}: {error}\n"
            "Name a local model folder with --extractor_weights (`hf download <id> --local-dir <folder>`"
            " makes one where there is a network), or take --feature_extractor classifier, which needs none"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"--extractor_weights {source!r} is no {model_class.__name__}, which --feature_extractor {name} "
            f"needs: {len(missing)} of its tensors are missing, such as {missing[0]}"
        )
    return model.float()


def values_sha256(state: dict[str, torch.Tensor]) -> str:
    """A hash of the tensors' shapes and values alone.

    File formats differ, and transformers renames tensors from version to version; the features do not change.
    """
    tensors = []
    for value in state.values():
        digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
        tensors.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(tensors))).hexdigest()
