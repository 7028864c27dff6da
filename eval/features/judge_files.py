"""Which file holds the classifier that judges; no torch here.

A judge is a classifier of one data set. Its file says which images it was trained on, and its name ends in
the first 16 digits of its sha256. Two results are comparable only when the sha256 of their judges agree, and
two processors train different weights (see `classifier.py`). So judges of common data sets are shipped, in
`judges/` beside this file, and the judge of any other data set is kept in the output folder of each model
that it has measured, and published with it.

`find_judge` looks in this order: the judge that was asked for by name; the one with a given sha256; in the
model's folder, among the shipped ones and in the cache, one that was trained on these images.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_type_hints

from trilemma.pipelines.files.arrays import open_safetensors
from trilemma.pipelines.files.hub import patience
from trilemma.pipelines.files.reading import FileError, check_types
from trilemma.pipelines.files.writing import written
from trilemma.training.options.flags import nearest
from trilemma.training.output_folder import OutputFolder

if TYPE_CHECKING:
    from trilemma.training.images.image_set import Images

logger = logging.getLogger(__name__)

RESTORE = "restore it, or delete it"
SHIPPED = Path(__file__).with_name("judges")
VERSION = 1
"""Of the classifier's architecture and recipe; files of another version in the cache are not used."""

DIGITS_OF_SHA256 = 16
"""How many digits of its sha256 the name of a judge's file ends in."""


class Trained(NamedTuple):
    """What a judge's file says beside the weights.

    The first seven entries are always there. A classifier trained during an evaluation has no others, and so
    the same images and labels give the same file, whatever they are called.
    """

    data_fingerprint: str  # of the split it is for, including held-out images
    channels: int
    resolution: int
    num_classes: int
    images_seen: int  # in training, with repetitions
    held_out: int  # images that it was not trained on
    held_out_accuracy: float
    version: int | None = None
    seed: int | None = None
    random_flip: bool | None = None
    data: str | None = None  # name of the data
    note: str | None = None  # what else one must know of them
    held_out_split: str | None = None  # where the held-out images are from; a part of the data if None
    other_fingerprints: tuple[str, ...] = ()  # of other splits that it judges

    def to_json(self) -> str:
        """The entries that are there, always in the same order."""
        values = {name: value for name, value in self._asdict().items() if value not in (None, ())}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Trained":
        """ValueError or TypeError if an entry is missing or has another name or type."""
        values = json.loads(text)
        check_types(values, get_type_hints(cls))
        values["other_fingerprints"] = tuple(values.get("other_fingerprints", ()))
        return cls(**values)

    @property
    def data_name(self) -> str:
        """The data, with the note."""
        return f"{self.data or 'other data'} ({self.note})" if self.note else self.data or "other data"

    def is_of(self, images: "Images") -> bool:
        """Whether it was trained for these images, or for the split that they are a part of."""
        judged = {self.data_fingerprint, *self.other_fingerprints}
        return not judged.isdisjoint({images.fingerprint, images.split_fingerprint})


@dataclass(frozen=True)
class JudgeChoice:
    """Which judge to take; by default the first that was trained on the reference's images.

    name: a shipped judge, on whatever data. sha256: the judge that measured a result. folder: a model's
    output folder, whose judge goes before the shipped ones.
    """

    name: str | None = None
    sha256: str | None = None
    folder: Path | None = None
    option: str = "--judge"  # the flag that gave the name


BY_DATA = JudgeChoice()


def judge_names() -> tuple[str, ...]:
    """Names of the shipped judges."""
    return tuple(sorted(file.stem.rpartition("-")[0] for file in SHIPPED.glob("*.safetensors")))


def shipped_judge(name: str, option: str = "--judge") -> Path:
    """The file of a shipped judge; ValueError lists the names."""
    for file in _shipped():
        if file.stem.rpartition("-")[0] == name:
            return file
    names = judge_names()
    raise ValueError(f"{option} must be one of {', '.join(names)}; got {name!r}.{nearest(name, names)}")


def find_judge(images: "Images | None", cache: Path, choice: JudgeChoice = BY_DATA) -> Path | None:
    """The file of the judge for these images, None if there is none; see the top of this file.

    Without images it must be named, by its name or its sha256. ValueError if the judge of this name is for
    images of another shape.
    """
    if choice.name is not None:
        file = shipped_judge(choice.name, choice.option)
        if images is not None:
            _check_shape(images, choice, read_trained(file))
        return file
    of_model = OutputFolder(choice.folder).judges() if choice.folder else []
    if choice.sha256 is not None:
        for file in (*of_model, *_shipped(), *sorted(classifiers_folder(cache).glob("*.safetensors"))):
            if file.stem.endswith(f"-{choice.sha256[:DIGITS_OF_SHA256]}"):
                return file
    if images is None:
        return None
    for file in (*of_model, *_shipped()):
        if read_trained(file).is_of(images):
            return file
    if images.labels is not None and not has_classes(images):
        raise ValueError(
            f"--feature_extractor classifier learns to tell classes apart, and {images.name} has one: name a "
            f"judge of images of this size with {choice.option} ({', '.join(judge_names())}), or choose "
            "another of inception, dinov2, clip, pixels"
        )
    for file in sorted(classifiers_folder(cache).glob(f"{cache_stem(images)}-*.safetensors")):
        if is_whole(file):
            return file
        logger.warning("%s is not the classifier that was kept there; it is trained again", file)
        file.unlink(missing_ok=True)
    return None


def read_trained(file: Path) -> Trained:
    """What a judge's file says; ValueError names a file that is no judge."""
    with open_safetensors(file, "np", RESTORE) as opened:
        metadata = opened.metadata() or {}
    try:
        return Trained.from_json(metadata["trained"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileError(file, f"is not a classifier of this toolkit: {error}", RESTORE) from error


def is_whole(file: Path) -> bool:
    """Whether a judge's file is the one that was saved under this name."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return sha256[:DIGITS_OF_SHA256] == file.stem.rpartition("-")[2]


def judge_folder(model: str | None) -> Path | None:
    """The folder that may hold a model's own judge: the model's, or for a Hub id what is downloaded of it."""
    if model is None or Path(model).is_dir():
        return model and Path(model)
    from huggingface_hub import snapshot_download

    try:
        with patience():
            return Path(snapshot_download(model, allow_patterns=[OutputFolder(Path()).judge("*").name]))
    except (OSError, ValueError):  # no network, or no such model: nothing that concerns the judge
        return None


def keep_judges(folder: OutputFolder, files: Iterable[Path | None]) -> None:
    """Copy judges to a model's output folder, to be published with it; not those that are shipped.

    Call it on one process. Of extractors that are no judges, `files` has None.
    """
    for file in files:
        if file is None or file.parent == SHIPPED:
            continue
        target = folder.judge(file.stem.rpartition("-")[2])
        if not target.exists():
            with written(target) as copy:
                copy.write(file.read_bytes())


def classifiers_folder(cache: Path) -> Path:
    """Where classifiers that were trained during an evaluation are kept."""
    return cache / "classifiers"


def cache_stem(images: "Images") -> str:
    """How the name of a file in that folder begins."""
    return f"v{VERSION}-{images.fingerprint[:16]}-{count_classes(images)}"


def count_classes(images: "Images") -> int:
    """Number of classes of the data; ValueError if they have no labels."""
    if images.labels is None:
        raise ValueError(
            f"--feature_extractor classifier learns from labels, and {images.name!r} has none: name their "
            "column with --label_column, or choose another of inception, dinov2, clip, pixels"
        )
    return len(images.class_names) if images.class_names else int(images.labels.max()) + 1


def has_classes(images: "Images") -> bool:
    """Whether a classifier has something to learn: two classes or more."""
    return images.labels is not None and count_classes(images) > 1


def check_classes(images: "Images", judged: int | None, metric: str) -> None:
    """ValueError unless the data have `judged` classes, which is the number that the judge knows.

    With another number, class 0 of the data need not be class 0 of the judge.
    """
    own = judged if images.labels is None else count_classes(images)
    if own != judged:
        raise ValueError(f"--metrics {metric}: the judge knows {judged} classes, and {images.name} has {own}")


def _shipped() -> Iterator[Path]:
    return iter(sorted(SHIPPED.glob("*.safetensors")))


def _check_shape(images: "Images", choice: JudgeChoice, judge: Trained) -> None:
    """ValueError unless the images have the size, the channels and the number of classes of the judge.

    Images of one class may be a part of its data.
    """
    classes = count_classes(images) if has_classes(images) else judge.num_classes
    shape = (images.resolution, images.channels, classes)
    if shape != (judge.resolution, judge.channels, judge.num_classes):
        takes = _describe(judge.resolution, judge.channels, judge.num_classes)
        raise ValueError(
            f"{choice.option} {choice.name} takes {takes}; {images.name} has {_describe(*shape)}"
        )


def _describe(resolution: int, channels: int, classes: int) -> str:
    colour = "grey" if channels == 1 else "RGB"
    return f"{resolution}x{resolution} {colour} images of {classes} class{'' if classes == 1 else 'es'}"
