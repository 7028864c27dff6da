"""Which columns of a table hold the images and the labels, by the types of their features.

`datasets.Image` is an image, `datasets.ClassLabel` a label; failing a ClassLabel, an integer column is taken
for the label if its name says so (label, class, target, category). Several candidates are an error that lists
the columns, `--image_column` and `--label_column` decide, and `--label_column none` ignores labels.
"""

import re

from trilemma.training.options.flags import nearest

LABEL_NAMES = "label|class|target|categor"


def image_column(features, chosen: str | None, name: str) -> str:
    """The column of the images: the chosen one, or the only one that holds images."""
    images = [column for column, feature in features.items() if _is_image(feature)]
    if chosen is not None:
        _check_column(features, chosen, "--image_column", name)
        if chosen not in images:
            raise ValueError(
                f"--image_column '{chosen}' of {name} does not hold images; {_listing(features)}"
            )
        return chosen
    if len(images) != 1:
        problem = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise ValueError(f"{name} has {problem}; choose one with --image_column; {_listing(features)}")
    return images[0]


def label_column(features, chosen: str | None, name: str) -> str | None:
    """The column of the labels: the chosen one, or the only one that looks like it; None without labels."""
    import datasets

    if chosen == "none":
        return None
    integers = [
        column for column, feature in features.items()
        if isinstance(feature, datasets.Value) and re.match("u?int", feature.dtype)
    ]  # fmt: skip
    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if chosen is not None:
        _check_column(features, chosen, "--label_column", name)
        if chosen not in integers + classes:
            problem = "does not hold integer labels (none: ignore labels)"
            raise ValueError(f"--label_column '{chosen}' of {name} {problem}; {_listing(features)}")
        return chosen
    labels = classes or [column for column in integers if re.search(LABEL_NAMES, column.lower())]
    if len(labels) > 1:
        raise ValueError(
            f"{name} has several label columns ({', '.join(labels)}); choose one with --label_column, or "
            f"pass --label_column none to ignore labels; {_listing(features)}"
        )
    return labels[0] if labels else None


def _listing(features) -> str:
    kinds = {column: "image" if _is_image(feature) else feature for column, feature in features.items()}
    return "columns: " + ", ".join(f"{column} ({kind})" for column, kind in kinds.items())


def _is_image(feature) -> bool:
    import datasets

    if isinstance(feature, dict):  # parquet written without Hugging Face metadata has images as plain structs
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image)


def _check_column(features, column: str, option: str, name: str) -> None:
    if column not in features:
        raise ValueError(
            f"{option} '{column}' is not in {name}; {_listing(features)}.{nearest(column, features)}"
        )
