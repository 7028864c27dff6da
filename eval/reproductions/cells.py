"""What a row of the table of studies is made of: data, published values, recipes; no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from trilemma.eval.studies.questions import Flags


class Data(NamedTuple):
    """Images of a study. judge: the shipped classifier that scores them; None: one is trained on them.

    nets: rows of NETS, on a CPU and on a GPU. reduced: pixels on a side at the smallest budget, if fewer; the
    judge of that size is `<judge>-<pixels>`.
    """

    hub: str | None  # None: embedded
    images: int
    side: int
    channels: int
    judge: str | None
    nets: tuple[str, str]
    reduced: int | None = None


DATA = {
    "mnist": Data("ylecun/mnist", 60_000, 28, 1, "mnist", ("unet_28_small", "unet_28")),
    "fashion_mnist": Data(
        "zalando-datasets/fashion_mnist", 60_000, 28, 1, None, ("unet_28_small", "unet_28")
    ),
    "cifar10": Data("uoft-cs/cifar10", 50_000, 32, 3, "cifar10", ("unet_28_small", "unet_cifar10"), 16),
    "stanford_cars": Data("tanganke/stanford_cars", 8_144, 128, 3, None, ("unet_64_small", "unet_128")),
    "swirl": Data(None, 1024, 1, 2, None, ("mlp", "mlp")),
}


@dataclass(frozen=True)
class Published:
    """A published figure. n: samples of its distance. calls: network calls for an image, if the figure
    depends on them. spread: over repeated trainings."""

    text: str = "no figure at hand"
    value: float | None = None
    spread: float | None = None
    n: int | None = None
    calls: int | None = None


def fid(value: float, spread: float | None = None, n: int | None = 12_800) -> Published:
    """A published FID."""
    text = f"FID {value:g}" + (f" +- {spread:g}" if spread else "") + (f" (n {n:,})" if n else "")
    return Published(text, value, spread, n)


@dataclass(frozen=True)
class Arm:
    """A recipe and how its models are sampled.

    name: of its folder; arms of one name are trained once. flags: of its training. calls: network calls for
    an image. sampler: None if the family has only one. nets: its networks on a CPU and on a GPU if they are
    not those of the data, () for a family without a choice. milestones: shares of the steps at which the
    learning rate is halved. score: more flags of `eval/evaluate.py`.
    """

    name: str
    flags: Flags
    calls: int
    family: str = "unconditional"
    sampler: str | None = "ddpm"
    nets: tuple[str, ...] | None = None
    milestones: tuple[float, ...] = ()
    warmup: int = 0
    score: Flags = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Images in a step."""
        return int(self.flags["train_batch_size"])


@dataclass(frozen=True)
class Cell:
    """A published value, and the recipes that are run beside it; without a recipe it is only cited.

    images: number that a training of the study sees. length_known: whether the study says so; otherwise it
    is the number of our preset. measure: the number that is compared. bound: whether the bound is measured
    too, and its course logged; cells that share a training share this. process: whether the page shows the
    process both ways. epochs: at which the study shows samples. samples: their number at every budget,
    scored with --force if they are too few. why: the reason if it is never run.
    """

    name: str
    data: str
    published: Published
    images: int = 0
    study: Arm | None = None
    ours: Arm | None = None
    measure: str = "fd"
    length_known: bool = True
    bound: bool = False
    process: bool = False
    epochs: tuple[int, ...] = ()
    samples: int | None = None
    why: str = ""

    @property
    def arms(self) -> Mapping[str, Arm]:
        """The recipes, by 'study' and 'ours'."""
        return {name: arm for name, arm in (("study", self.study), ("ours", self.ours)) if arm}

    @property
    def all_epochs(self) -> int:
        """Epochs of a training of the study."""
        return self.images // DATA[self.data].images


class Study(NamedTuple):
    """A row of the table. note: what a reader of its page has to know."""

    about: str
    source: str
    cells: tuple[Cell, ...]
    note: str = ""
