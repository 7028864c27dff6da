"""From the rows of METRICS to metrics that score."""

import pkgutil
from collections.abc import Iterable

from trilemma.eval.metrics.sample_metric import SampleMetric
from trilemma.eval.metrics.table import METRICS
from trilemma.eval.scoring.reference import ReferenceStatistics

REMEDIES = {
    "features": "the reference's features: give the data set itself as --reference",
    "heldout": "real images that were not trained on: train with --validation_size or --validation_split, or "
    "give a data set with a test split as --reference",
    "labels": "the classes of the reference: give a labelled data set as --reference",
    "class_counts": "class predictions: take --feature_extractor inception or classifier, and "
    "the data set itself as --reference",
}
"""Field of ReferenceStatistics -> what a metric that needs it asks for."""


def build_metrics(
    names: Iterable[str], reference: ReferenceStatistics, num_samples: int
) -> dict[str, SampleMetric]:
    """The metrics of these names; ValueError unless the reference has what each of them needs."""
    parts = {
        "features": reference.features,
        "heldout": reference.heldout,
        "class_counts": reference.class_counts,
        "labels": reference.labels,
    }
    metrics = {}
    for name in names:
        row = METRICS[name]
        for part in row.parts:
            if parts[part] is None:
                raise ValueError(f"--metrics {name} needs {REMEDIES[part]}")
        metrics[name] = pkgutil.resolve_name(row.build)(reference, num_samples)
    return metrics
