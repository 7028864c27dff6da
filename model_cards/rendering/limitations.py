"""What a card warns of, as far as the files of the output folder say it."""

from trilemma.eval.metrics.table import metric_of
from trilemma.eval.scoring.naming import LITERATURE_SAMPLES
from trilemma.model_cards.rendering.contents import Contents
from trilemma.model_cards.rendering.text import escape
from trilemma.training.options.flags import public_name


def limitations(contents: Contents) -> list[str]:
    """A sentence or two for each."""
    return [
        *_of_figures(contents),
        *_of_data(contents),
        *_of_code(contents),
        "It has learned only from its training data and reproduces their biases. Its images do not show real "
        "things.",
    ]


def _of_figures(contents: Contents) -> list[str]:
    lines = contents.lines
    if not lines:
        return [
            "Nothing was measured: the quality and the diversity of its images are unknown, and so is "
            "whether it copies its training images."
        ]
    if any(metric_of(line.measure) == "memorization" for line in lines):
        warnings = [
            "Whether it copies its training images was measured: see `copying` and `nearest` in the table."
        ]
    else:
        warnings = ["Whether it copies its training images was not measured."]
    if any(line.n < LITERATURE_SAMPLES for line in lines):
        warnings.append(
            f"Some numbers are over fewer than {LITERATURE_SAMPLES:,} samples: they vary more, distances "
            "come out larger, and they cannot be compared with published ones."
        )
    if any(line.forced for line in lines):
        warnings.append("Numbers marked (forced) rest on fewer samples than features and are unreliable.")
    for data in dict.fromkeys(
        line.extra.get("judge_data", "the same data")
        for line in lines
        if line.feature_extractor == "classifier"
    ):
        warnings.append(
            f"The classifier that judges its images was trained on {escape(data)}; its accuracy, given in "
            "the table, limits how far its numbers can be trusted."
        )
    return warnings


def _of_data(contents: Contents) -> list[str]:
    source, local = contents.config.get("dataset_name"), contents.config.get("train_data_dir")
    name = f"{public_name(local or '')} {source}".lower()
    if "jpeg" in name or "jpg" in name:
        return ["It was trained on a JPEG copy: its images have JPEG artefacts, as its reference images do."]
    if local and source:
        return [
            "Its local data replace a published data set and may differ from it, as a JPEG copy would; its "
            "numbers then differ too."
        ]
    return []


def _of_code(contents: Contents) -> list[str]:
    if str(contents.run.get("commit")).endswith("+"):
        return ["The code had changes that are not in the commit: another training may give another model."]
    return []
