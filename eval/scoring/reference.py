"""What samples are compared with: the statistics of a reference set, with the protocol that made them.

Our own files end in .safetensors and are refused by an evaluation of another protocol. The {mu, sigma} .npz
of pytorch-fid, clean-fid, EDM and TTUR can be read and written. It records neither its protocol nor its
number of images, so it serves only the distance and the diversity, without a floor unless --reference_n is
given. Nothing can check that it fits the evaluation.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from trilemma.eval.metrics.frechet import Gaussian, add_outer_, packed_size
from trilemma.eval.metrics.sample_metric import FixedSubset, SampleMetric
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.pipelines.files.arrays import read_npz, read_safetensors
from trilemma.pipelines.files.reading import FileError, check_types
from trilemma.pipelines.files.writing import written

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FORMAT = "trilemma-reference-1"
DAMAGED = "delete it, or restore it from a copy"
PARTS = {
    "mean": torch.float64,
    "covariance": torch.float64,
    "features": torch.float32,
    "heldout": torch.float32,
    "class_counts": torch.float64,
}
"""The tensors of a file and their types."""


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics of a reference set's features.

    features (m, D) float32: a fixed random subset of the set, or all of it. heldout (h, D) float32: features
    of real images that are not in the set (add them with `dataclasses.replace`). class_counts (K,) float64:
    how often the extractor's classifier names each class. labels (m,) int64: of the images of `features`,
    which no file holds (add them likewise). Each is None if no metric needed it; `protocol` is None for an
    .npz. derived: what `once` keeps.
    """

    gaussian: Gaussian
    protocol: ReferenceProtocol | None
    features: Tensor | None = None
    heldout: Tensor | None = None
    class_counts: Tensor | None = None
    labels: Tensor | None = None
    derived: dict[str, Any] = field(default_factory=dict, init=False, compare=False)

    def once(self, name: str, compute: Callable[[], Result]) -> Result:
        """What `compute` makes of the reference alone; computed once for each name."""
        if name not in self.derived:
            self.derived[name] = compute()
        return self.derived[name]

    def check(self, protocol: ReferenceProtocol) -> None:
        """ValueError unless these were made by `protocol`; those without a protocol cannot be checked."""
        if self.protocol is None:
            return
        made, expected = asdict(self.protocol), asdict(protocol)
        for name, value in made.items():
            if value != expected[name]:
                raise ValueError(
                    f"--reference: the statistics were made with {name}={value!r}, this evaluation has "
                    f"{name}={expected[name]!r}; give the data set itself as --reference"
                )

    def save(self, path: str | Path) -> None:
        """Write to `path`.safetensors: beside it first, then renamed, so that no reader sees half a file."""
        if self.protocol is None:
            raise ValueError("statistics without a protocol can only be written as .npz")
        tensors = {"mean": self.gaussian.mean, "covariance": self.gaussian.covariance}
        optional = {"features": self.features, "heldout": self.heldout, "class_counts": self.class_counts}
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"format": FORMAT, "protocol": json.dumps(asdict(self.protocol))}
        metadata["sha256"] = _sha256(tensors)
        with written(path) as file:
            file.write(save(tensors, metadata))

    def save_npz(self, path: str | Path) -> None:
        """Write {mu, sigma} for other tools; the protocol is lost."""
        mu, sigma = self.gaussian.mean.cpu().numpy(), self.gaussian.covariance.cpu().numpy()
        with written(path) as file:
            np.savez(file, mu=mu, sigma=sigma)


class ReferenceCollector(SampleMetric):
    """Computes the statistics of a data set, each rank its share: `update` for each batch, then `statistics`.

    keep: how many features to keep, the most that any metric in use needs. num_classes: 0 without logits.
    """

    def __init__(self, num_samples: int, dimension: int, num_classes: int = 0, keep: int = 0) -> None:
        super().__init__(num_samples)
        self.subset = FixedSubset(num_samples, keep)
        self.add_sum("total", dimension)
        self.add_sum("moment", packed_size(dimension))
        self.add_sum("rows", len(self.subset.members), dimension, dtype=torch.float32)
        self.add_sum("classes", num_classes)

    def update(self, index: Tensor, features: Tensor, logits: Tensor | None = None) -> None:
        """features (B, D) and logits (B, K) of the images `index` (B,)."""
        self.subset.store(self.rows, self.mark(index), features)
        rows = features.to(self.moment)
        self.total += rows.sum(0)
        add_outer_(self.moment, rows)
        if len(self.classes):
            predicted = logits.argmax(1).to(self.device)
            self.classes.index_add_(0, predicted, torch.ones(len(predicted)).to(self.classes))

    def compute(self) -> dict[str, Tensor]:
        self.check_complete(self.total)
        return self.metric_state

    def statistics(self, protocol: ReferenceProtocol) -> ReferenceStatistics:
        """The statistics, on the CPU of every rank; a collective call."""
        if protocol.n != self.num_samples:
            raise ValueError(f"the protocol has n={protocol.n}, but {self.num_samples} images were collected")
        sums = {name: state.cpu() for name, state in self.compute().items()}
        count = torch.tensor([self.num_samples]).double()
        # One block, kept; and torchmetrics makes scalars of results of one element, as with D = 1.
        total, moment = sums["total"].reshape(1, -1), sums["moment"].reshape(1, -1)
        return ReferenceStatistics(
            gaussian=Gaussian.of_sums(count, total, moment, torch.ones_like(count)),
            protocol=protocol,
            features=sums["rows"] if len(self.subset.members) else None,
            class_counts=sums["classes"] if len(self.classes) else None,
        )


def cache_path(cache_dir: str | Path, protocol: ReferenceProtocol, keep: int) -> Path:
    """Where statistics of `protocol` that hold `keep` features are kept."""
    text = json.dumps([FORMAT, keep, asdict(protocol)])
    return Path(cache_dir) / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"


def cached_reference(path: Path, protocol: ReferenceProtocol, keep: int) -> ReferenceStatistics | None:
    """Statistics from the cache; None, with a warning that names a file which is not what was kept there."""
    if not path.exists():
        return None
    try:
        statistics = _load_safetensors(path, None, checked=True)
        rows = 0 if statistics.features is None else len(statistics.features)
        if statistics.protocol != protocol or rows != keep:
            raise FileError(path, "holds other statistics than its name says")
    except FileError as fault:
        logger.warning("%s; the statistics are computed again", fault)
        return None
    return statistics


def load_reference(path: str | Path, n: int | None = None) -> ReferenceStatistics:
    """Read a statistics file, ours or an .npz; n: the number of images behind an .npz, if it is recorded."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--reference: there is no statistics file {path}")
    if path.suffix not in READERS:
        raise ValueError(f"--reference: a statistics file ends in {' or '.join(READERS)}; got {path.name!r}")
    return READERS[path.suffix](path, n)


def _load_safetensors(path: Path, n: int | None, checked: bool = False) -> ReferenceStatistics:
    """checked: refuse a file without a checksum, as version 0.1 wrote it."""
    tensors, metadata = read_safetensors(path, DAMAGED)
    if metadata.get("format") != FORMAT:
        raise FileError(path, f"is not a {FORMAT} file; its format is {metadata.get('format')!r}")
    if metadata.get("sha256", None if checked else _sha256(tensors)) != _sha256(tensors):
        what = "does not match its checksum" if "sha256" in metadata else "has no checksum"
        raise FileError(path, what, DAMAGED)
    try:
        values = json.loads(metadata["protocol"])
        check_types(values, get_type_hints(ReferenceProtocol))
        protocol = ReferenceProtocol(**values)
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise FileError(path, f"has no protocol that can be read: {problem}", DAMAGED) from problem
    if n is not None and n != protocol.n:
        raise ValueError(f"{path} holds the statistics of {protocol.n} images; got n={n}")
    _check_parts(path, tensors)
    gaussian = Gaussian(tensors.pop("mean"), tensors.pop("covariance"), protocol.n)
    _check_moments(path, gaussian)
    return ReferenceStatistics(gaussian, protocol, **tensors)


def _check_parts(path: Path, tensors: dict[str, Tensor]) -> None:
    """FileError unless these are the tensors of a statistics file, of their types and shapes."""
    for name in tensors.keys() | {"mean", "covariance"}:
        tensor, dtype = tensors.get(name), PARTS.get(name)
        if tensor is None or dtype is None:
            raise FileError(path, f"{'lacks' if tensor is None else 'has a'} tensor {name}", DAMAGED)
        fits = tensor.dtype == dtype and tensor.isfinite().all()
        if name in ("features", "heldout"):
            fits = fits and tensor.ndim == 2 and tensor.shape[1:] == tensors["mean"].shape
        if not fits:
            raise FileError(path, f"has a {name} whose values or shape are not those of statistics", DAMAGED)


def _sha256(tensors: dict[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _load_npz(path: Path, n: int | None) -> ReferenceStatistics:
    arrays = read_npz(path, ("mu", "sigma"))
    try:
        mu, sigma = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
    except (ValueError, TypeError) as problem:
        raise FileError(path, f"is not an .npz of plain arrays of numbers: {problem}") from problem
    gaussian = Gaussian(mu, sigma, n)
    _check_moments(path, gaussian)
    return ReferenceStatistics(Gaussian(mu, (sigma + sigma.T) / 2, n), None)


READERS: dict[str, Callable[[Path, int | None], ReferenceStatistics]] = {
    ".safetensors": _load_safetensors,
    ".npz": _load_npz,
}


def _check_moments(path: Path, gaussian: Gaussian) -> None:
    mean, covariance = gaussian.mean, gaussian.covariance
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise FileError(
            f"{path}: mean and covariance must have shapes (D,) and (D, D); "
            f"got {tuple(mean.shape)} and {tuple(covariance.shape)}"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise FileError(f"{path}: mean or covariance is not finite")
    # Some tools write float32, where the two triangles differ by rounding.
    if (covariance - covariance.T).abs().max() > 1e-5 * covariance.abs().max():
        raise FileError(f"{path}: the covariance is not symmetric")
    if covariance.diag().min() < 0:
        raise FileError(f"{path}: the covariance has a negative variance")
