"""Which columns of a table hold the images and the labels, by the types of their features, and the classes.

`datasets.Image` is an image, `datasets.ClassLabel` a label; failing a ClassLabel, an integer column is taken
for the label if its name says so (label, class, target, category, cls). Several candidates are an error that
lists the columns, `--image_column` and `--label_column` decide, and `--label_column none` ignores labels.
"""

import logging
import re
from collections.abc import Sequence

import numpy as np

from trilemma.training.options.flags import nearest

logger = logging.getLogger(__name__)

LABEL_NAMES = "label|class|target|categor|^cls$"


def image_column(features, column: str | None, name: str) -> str:
    """The column of the images: `column`, or if it is None the only one there is."""
    candidates = [column for column, feature in features.items() if is_image(feature)]
    if column is not None:
        _check_column(features, column, "--image_column", name)
        if column not in candidates:
            raise ValueError(
                f"--image_column '{column}' of {name} does not hold images; {_listing(features)}"
            )
        return column
    if len(candidates) != 1:
        several = ", ".join(candidates)
        problem = f"several image columns ({several})" if candidates else "no image column"
        raise ValueError(f"{name} has {problem}; choose one with --image_column; {_listing(features)}")
    return candidates[0]


def label_column(features, column: str | None, name: str) -> str | None:
    """The column of the labels: `column`, or if it is None the only one that looks like it, or None."""
    import datasets

    if column == "none":
        return None
    integers = [
        key for key, feature in features.items()
        if isinstance(feature, datasets.Value) and re.match("u?int", feature.dtype)
    ]  # fmt: skip
    classes = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if column is not None:
        _check_column(features, column, "--label_column", name)
        if column not in integers + classes:
            problem = "does not hold integer labels (none: ignore labels)"
            raise ValueError(f"--label_column '{column}' of {name} {problem}; {_listing(features)}")
        return column
    candidates = classes or [key for key in integers if re.search(LABEL_NAMES, key.lower())]
    if len(candidates) > 1:
        raise ValueError(
            f"{name} has several label columns ({', '.join(candidates)}); choose one with --label_column, or "
            f"pass --label_column none to ignore labels; {_listing(features)}"
        )
    if not candidates:
        _warn_of_other_labels(features, name)
    return candidates[0] if candidates else None


def _warn_of_other_labels(features, name: str) -> None:
    """Say that a column named like labels is not used, since its values are not integers."""
    import datasets

    for key, feature in features.items():
        if re.search(LABEL_NAMES, key.lower()) and isinstance(feature, datasets.Value):
            logger.warning(
                "%s: the column '%s' is not used as labels: it holds %s, and labels are integers",
                name, key, feature.dtype,
            )  # fmt: skip


def read_labels(
    tables, split: str, column: str, name: str
) -> tuple[np.ndarray, tuple[str, ...]] | tuple[None, None]:
    """Labels of the split and the names of all classes.

    Where the labels are plain integers, the classes are the values that occur in any split, in order; each is
    its own name. A split that has no label at all (-1 on the Hub, null where a file lacks the column) is an
    unlabelled one.
    """
    import datasets

    def read(table) -> np.ndarray:
        values = table.select_columns([column])[:][column]
        return np.array([-1 if value is None else value for value in values], dtype=np.int64)

    labels = read(tables[split])
    if (labels == -1).all():
        return None, None
    feature = tables[split].features[column]
    if isinstance(feature, datasets.ClassLabel):
        names, wrong = tuple(feature.names), (labels < 0) | (labels >= len(feature.names))
        classes = f"the {len(names)} classes are 0..{len(names) - 1}"
    else:
        occurring = np.unique([v for t in tables.values() if column in t.features for v in read(t)])
        values, wrong = occurring[occurring >= 0], labels < 0
        names = tuple(str(value) for value in values)
        classes = "and labels are 0 or more"
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        raise ValueError(
            f"--label_column '{column}' of {name}, split '{split}', has {wrong.sum()} labels out of range: "
            f"row {row} has {labels[row]} (-1 stands for none), {classes}; correct them, or pass "
            "--label_column none to ignore labels"
        )
    if not isinstance(feature, datasets.ClassLabel):
        labels = np.searchsorted(values, labels)
    return labels, names


def warn_of_empty_classes(
    labels: np.ndarray | None, class_names: Sequence[str] | None, name: str, part: str
) -> None:
    """Say which classes have no image in this part of the data, since a model cannot learn them."""
    if labels is None or not class_names:
        return
    empty = [class_names[number] for number in np.setdiff1d(np.arange(len(class_names)), labels)]
    if empty:
        shown = ", ".join(empty[:20]) + (f" and {len(empty) - 20} more" if len(empty) > 20 else "")
        logger.warning("%s, %s: no image of the class %s", name, part, shown)


def _listing(features) -> str:
    kinds = {column: "image" if is_image(feature) else feature for column, feature in features.items()}
    return "columns: " + ", ".join(f"{column} ({kind})" for column, kind in kinds.items())


def is_image(feature) -> bool:
    """Whether a feature is an image."""
    import datasets

    if isinstance(feature, dict):  # parquet written without Hugging Face metadata has images as plain structs
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image)


def _check_column(features, column: str, option: str, name: str) -> None:
    if column not in features:
        raise ValueError(
            f"{option} '{column}' is not in {name}; {_listing(features)}.{nearest(column, features)}"
        )
