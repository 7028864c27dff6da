"""The metrics, one row each; no torch here, so that a mistyped name is an error at once.

A new metric is one row and the class or function that it names. Tables, charts, targets, cards and the choice
of the best model read these rows.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

PAIR_IMAGES = 10_000
"""Samples, and reference images, that metrics over pairs compare."""

ALL_IMAGES = 2**31

NEAREST_QUANTILES = {"p01": 0.01, "p05": 0.05, "p50": 0.5}
"""Quantiles of the distances to the nearest reference image, by the name in their measures."""


Harmed = Literal["look", "kinds", "copies", "classes"]
"""What can be wrong with samples: they look unlike the data; kinds of images are missing, rare or repeated;
they are copies of training images; they are not of the class that they were drawn for.
"""


class Measure(NamedTuple):
    """One number that a metric gives.

    better: which end is better; None where neither is, and then it can be no target and choose no model.
    depends_on_n: whether its interval is for another number when n is another. (The value of a Frechet
        distance depends on n; its interval is debiased and does not.)
    of_split: it describes the images of a split, not samples; its display name includes the split.
    shown: it has a column in the table of a sweep and in the short one of a card. compared: in that of
        `eval/compare.py`. charted: it has a panel in the figure of a sweep; of images of a split only where
        they are held out.
    sees: what it is meant to show, which `eval/exam.py` examines; if not given, look and kinds where one end
        is better, else nothing.
    """

    better: Literal["lower", "higher"] | None = None
    depends_on_n: bool = True
    of_split: bool = False
    shown: bool = False
    compared: bool = False
    charted: bool = False
    sees: tuple[Harmed, ...] | None = None

    @property
    def promised(self) -> tuple[Harmed, ...]:
        """What it is meant to show."""
        return self.sees if self.sees is not None else ("look", "kinds") if self.better else ()

    @property
    def covers(self) -> bool:
        """Whether it says only how much of the data's variety the samples have: another axis than quality."""
        return self.promised == ("kinds",)


class Metric(NamedTuple):
    """A name that `--metrics` takes.

    build: "module:name" of what makes it from (ReferenceStatistics, number of samples), or, where it needs
        the model, from (pipeline, --bpd_timesteps, --batch_size); see `bounds/bits_per_dim.py`.
    measures: the numbers that it gives, by name.
    needs: what its `update` takes after the index: features, logits, labels; ("model",) for a metric of the
        model itself, which looks at no samples.
    parts: fields of ReferenceStatistics that must be there. keep: how many features the reference must keep.
    judge: it is measured with the classifier, whatever --feature_extractor is; display names leave it out.
    full_rank: it needs at least one sample per feature; with fewer it is refused without --force.
    best: which of its measures chooses the best model during training; None where it may not.
    terms: its other numbers, `<term>_<metric>`, for any names of terms; None where it has none.
    """

    build: str
    measures: Mapping[str, Measure]
    needs: tuple[str, ...] = ("features",)
    parts: tuple[str, ...] = ()
    keep: int = 0
    judge: bool = False
    full_rank: bool = False
    best: str | None = None
    terms: Measure | None = None


NEAREST = tuple(f"nearest_{name}{end}" for name in NEAREST_QUANTILES for end in ("", "_heldout"))

METRICS: dict[str, Metric] = {
    "fd": Metric(
        "trilemma.eval.metrics.distances:FrechetDistance",
        {"fd": Measure("lower", depends_on_n=False, shown=True, compared=True, charted=True)},
        full_rank=True,
        best="fd",
    ),
    "energy": Metric(
        "trilemma.eval.metrics.pairs:Energy",
        {"energy": Measure("lower", depends_on_n=False, shown=True, compared=True, charted=True)},
        parts=("features",),
        keep=PAIR_IMAGES,
        best="energy",
    ),
    "kid": Metric(
        "trilemma.eval.metrics.pairs:KID",
        {"kid": Measure("lower", depends_on_n=False, shown=True)},
        parts=("features",),
        keep=PAIR_IMAGES,
        best="kid",
    ),
    "cmmd": Metric(
        "trilemma.eval.metrics.pairs:CMMD",
        {"cmmd": Measure("lower", depends_on_n=False, shown=True)},
        parts=("features",),
        keep=PAIR_IMAGES,
        best="cmmd",
    ),
    "mind": Metric(
        "trilemma.eval.metrics.kept.mind:MIND",
        {"mind": Measure("lower", depends_on_n=False, shown=True)},
        parts=("features",),
        keep=PAIR_IMAGES,
        best="mind",
    ),
    "is": Metric(
        "trilemma.eval.metrics.distances:InceptionScore",
        {"is": Measure("higher", shown=True), "is_std": Measure()},
        needs=("logits",),
        parts=("class_counts",),
        best="is",
    ),
    "prdc": Metric(
        "trilemma.eval.metrics.pairs:PRDC",
        {
            # Not shown: these two reward samples that are worse (docs/metrics.md); `clipped` does not.
            "precision": Measure("higher", sees=("look",)),
            "recall": Measure("higher", shown=True, compared=True, sees=("kinds",)),
            "density": Measure("higher", sees=("look",)),
            "coverage": Measure("higher", shown=True, compared=True, charted=True, sees=("kinds",)),
        },
        parts=("features",),
        keep=PAIR_IMAGES,
        best="coverage",
    ),
    "clipped": Metric(
        "trilemma.eval.metrics.kept.clipped:Clipped",
        {
            "clipped_density": Measure("higher", shown=True, sees=("look",)),
            "clipped_coverage": Measure("higher", shown=True),
        },
        parts=("features",),
        keep=PAIR_IMAGES,
        best="clipped_coverage",
    ),
    "class_accuracy": Metric(
        "trilemma.eval.metrics.judged:ClassAccuracy",
        {
            "class_accuracy": Measure(
                "higher", depends_on_n=False, shown=True, charted=True, sees=("classes",)
            )
        },
        needs=("logits", "labels"),
        judge=True,
        best="class_accuracy",
    ),
    "modes": Metric(
        "trilemma.eval.metrics.judged:Modes",
        {
            "modes": Measure("higher", shown=True, compared=True, sees=("kinds",)),
            "modes_kl": Measure("lower", sees=("kinds",)),
            "confidence": Measure("higher", sees=("look",)),
            "confident_share": Measure("higher", depends_on_n=False, sees=("look",)),
        },
        needs=("logits",),
        parts=("class_counts",),
        judge=True,
        best="modes_kl",
    ),
    "memorization": Metric(
        "trilemma.eval.metrics.pairs:Memorization",
        {"copying": Measure(sees=("copies",)), **{name: Measure() for name in NEAREST}},
        parts=("features", "heldout"),
        keep=ALL_IMAGES,
    ),
    "copies": Metric(
        "trilemma.eval.metrics.kept.copies:Copies",
        {
            "authpct": Measure(depends_on_n=False, sees=("copies",)),
            "near_copies": Measure(depends_on_n=False, sees=("copies",)),
        },
        parts=("features", "heldout"),
        keep=ALL_IMAGES,
    ),
    "ct": Metric(
        "trilemma.eval.metrics.kept.copies:CT",
        {"ct": Measure(sees=("copies",)), "ct_worst": Measure(sees=("copies",))},
        parts=("features", "heldout"),
        keep=ALL_IMAGES,
    ),
    "fld": Metric(
        "trilemma.eval.metrics.kept.likelihood:FLD",
        {
            "fld": Measure("lower", shown=True, sees=("look", "kinds", "copies")),
            "fld_gap": Measure(sees=("copies",)),
        },
        parts=("features", "heldout"),
        keep=ALL_IMAGES,
    ),
    "diversity": Metric(
        "trilemma.eval.metrics.distances:Diversity",
        {"diversity": Measure(depends_on_n=False, sees=("kinds",))},
    ),
    "class_vendi": Metric(
        "trilemma.eval.metrics.kept.vendi:ClassVendi",
        {"class_vendi": Measure(sees=("kinds",))},
        needs=("features", "labels"),
        terms=Measure(),
    ),
    "class_energy": Metric(
        "trilemma.eval.metrics.kept.classes:ClassEnergy",
        {"class_energy": Measure("lower", depends_on_n=False, shown=True)},
        needs=("features", "labels"),
        parts=("features", "labels"),
        keep=PAIR_IMAGES,
        best="class_energy",
        terms=Measure("lower", depends_on_n=False),
    ),
    "ode_bpd": Metric(  # before `bpd`, whose terms may have any name that ends in _bpd
        "trilemma.eval.bounds.bits_per_dim:ODELikelihood",
        {"ode_bpd": Measure("lower", of_split=True, compared=True)},
        needs=("model",),
        terms=Measure("lower", of_split=True),
    ),
    "bpd": Metric(
        "trilemma.eval.bounds.bits_per_dim:Likelihood",
        {"bpd": Measure("lower", of_split=True, shown=True, compared=True, charted=True)},
        needs=("model",),
        terms=Measure("lower", of_split=True),
    ),
}


def metric_of(measure: str) -> str | None:
    """The metric that gives a measure; None if no row has it, as in a file of results of another version."""
    for name, row in METRICS.items():
        if measure in row.measures or (row.terms and measure.endswith(f"_{name}")):
            return name
    return None


def measure_row(measure: str) -> Measure:
    """The row of a measure; an empty row for one that no metric gives."""
    name = metric_of(measure)
    return METRICS[name].measures.get(measure, METRICS[name].terms) if name else Measure()
