"""What a plug-in can add: a row of a table, one function each. docs/extending.md has an example of each.

A plug-in is a Python file with a function `add(rows)`, where `rows` is a `Rows`; `--plugin` runs it. It adds
all of its rows or, where it fails, none.
"""

import importlib
from collections.abc import Callable, Mapping, MutableMapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trilemma import pipelines
from trilemma.eval.metrics.table import METRICS, Measure, Metric, metric_of
from trilemma.training import families
from trilemma.training.families import Family
from trilemma.training.networks.rows import NETS

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from trilemma.eval.metrics.sample_metric import SampleMetric


class Rows:
    """The rows of one plug-in."""

    def __init__(self, module: ModuleType):
        self.module, self.added = module, []
        self._todo: list[tuple[MutableMapping[str, Any], str, Any]] = []

    def metric(
        self,
        name: str,
        build: "Callable[..., SampleMetric]",
        measures: Mapping[str, Measure] | None = None,
        **facts: Any,
    ) -> None:
        """A name for --metrics and --eval_metrics.

        build(reference statistics, number of samples): the metric, of a class or function at the top of the
        plug-in. measures: the numbers that it gives; one of the metric's own name, of which less is better,
        if not given. facts: the other entries of `Metric`, such as needs=("features",).
        """
        measures = {name: Measure("lower", shown=True)} if measures is None else measures
        for measure in measures:
            if metric_of(measure):
                raise ValueError(f"the measure {measure!r} is one of the metric {metric_of(measure)!r}")
        if getattr(self.module, build.__name__, None) is not build:
            raise ValueError(f"metric {name!r}: {build.__name__} must be a class or function of the plug-in")
        best = facts.pop("best", next((key for key, row in measures.items() if row.better), None))
        row = Metric(f"{self.module.__name__}:{build.__name__}", measures, best=best, **facts)
        self._add("metric", METRICS, name, row)

    def network(self, name: str, options: Mapping[str, Any], kind: "type[ModelMixin] | None" = None) -> None:
        """A name for --net: the options of a UNet2DModel, or of `kind`, a class of the plug-in.

        What the data decide (sample_size, in_channels, out_channels, num_class_embeds) is not among them, but
        `kind` must take it. A class is called as net(x_t, t, class_labels).sample, is a ModelMixin and a
        ConfigMixin of diffusers, and its file travels with the model: it may import only what a stranger has
        (torch, numpy, PIL, diffusers, transformers, the standard library).
        """
        row = {"_class_name": "UNet2DModel", **options}
        if kind is not None:
            row["_class_name"] = kind.__name__
            self._add("class", importlib.import_module("trilemma.training.networks.build").NETWORK_CLASSES,
                      kind.__name__, kind)  # fmt: skip
        self._add("network", NETS, name, row)

    def family(self, name: str, row: Family, like: str) -> None:
        """A family: its options, presets and how it is built, and with `build` an objective of the plug-in.

        like: the family whose pipeline it has, and whose card, pictures and bound it takes over. It is
        trained by `trilemma.train(images, name)`, or by a script that calls `trilemma.training.entry.main`.
        """
        if like not in families.names():
            raise ValueError(f"like= must be one of {', '.join(families.names())}; got {like!r}")
        if name in families.names():
            raise ValueError(f"there is a family {name!r}; take another name")
        self._add("family", families.OUTSIDE, name, row)
        self._add("pipeline", pipelines.LIKE, name, like)

    def _add(self, table: str, rows: MutableMapping[str, Any], name: str, row: Any) -> None:
        if name in rows or (table, name) in self.added:
            raise ValueError(f"there is a {table} {name!r}; take another name")
        self.added.append((table, name))
        self._todo.append((rows, name, row))

    def keep(self) -> tuple[tuple[str, str], ...]:
        """Put the rows into their tables; (table, name) of each."""
        for rows, name, row in self._todo:
            rows[name] = row
        return tuple(self.added)
