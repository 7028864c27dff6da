"""What a measured number is called.

A number is `fid` only over Inception features of at least 50,000 samples against the whole training split,
which is what the literature means by it. Every other name includes its protocol: `fid_10k`,
`fid_10k_vs_test`, `fd_classifier`, `kid_pixels`, `bpd_test`. Results keep what was measured beside its name,
so nothing parses a name, except `measure_of` and `whole_of`, which read results of older files.
"""

from trilemma.eval.metrics.table import METRICS, measure_row, metric_of
from trilemma.pipelines.samplers import SAMPLERS

LITERATURE_SAMPLES = 50_000

NOISE = 1e-12
"""No measure tells smaller numbers from 0: they are what rounding left of sums in float64."""

OLDER_TERMS = ("prior", "diffusion", "reconstruction")
"""The terms of bits per dimension in older files of results."""

SCHEDULERS = {row.scheduler: name for name, row in reversed(SAMPLERS.items())}
"""Samplers as older files of results have them: class of the scheduler -> the first name of its rows."""


def metric_name(measure: str, extractor: str | None, n: int, split: str | None, whole: bool | None) -> str:
    """The display name of a measure of METRICS: see the top of this file.

    split and whole: of the reference, and whether it is all of that split (None where it does not matter).
    """
    metric = metric_of(measure)
    if measure_row(measure).of_split:
        term = measure.removesuffix("bpd").rstrip("_")
        return f"bpd_{split}" + (f"_{term}" if term else "")
    if extractor is None or (metric and METRICS[metric].judge):
        return measure
    if measure != "fd":
        return measure if extractor == "inception" else f"{measure}_{extractor}"
    if extractor != "inception":
        return f"fd_{extractor}"
    if n >= LITERATURE_SAMPLES and split == "train" and whole:
        return "fid"
    count = f"{n // 1000}k" if n % 1000 == 0 else str(n)
    against = (split or "unknown") if whole else f"part_of_{split}"
    return f"fid_{count}" if against == "train" else f"fid_{count}_vs_{against}"


def measure_of(name: str, extractor: str | None) -> str:
    """The measure behind the display name in an older line of results."""
    if extractor is None and name.startswith("bpd_"):
        end = name.rpartition("_")[2]  # bpd_test_prior, but bpd_test
        return f"{end}_bpd" if end in OLDER_TERMS else "bpd"
    return "fd" if name.startswith("fid") else name.removesuffix(f"_{extractor}")


def whole_of(name: str) -> bool | None:
    """Whether the reference of an older line was all of its split; only FID's names say so."""
    return "_vs_part_of_" not in name if name.startswith("fid") else None


def number(value: float, digits: int = 4) -> str:
    """A measured number as people read it: rounding noise is 0."""
    return "0" if abs(value) < NOISE else f"{value:.{digits}g}"
