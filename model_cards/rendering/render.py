"""The model card: README.md of an output folder, rendered from the folder's files and nothing else.

`template.md` has the order of the page, `families.py` the code to run, `figures.py` the measured numbers,
`credits.py` licences and papers. What a file does not tell is left out or said to be unknown.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from trilemma.eval.scoring.results import LITERATURE_SAMPLES
from trilemma.model_cards.rendering import figures
from trilemma.model_cards.rendering.command import changed, train_command
from trilemma.model_cards.rendering.credits import DATA, PAPERS, UNKNOWN
from trilemma.model_cards.rendering.facts import CARD, RENDERED, Folder, read_folder
from trilemma.model_cards.rendering.text import escape, literal
from trilemma.model_cards.rendering.snippets import FAMILIES, OTHER, Family
from trilemma.training.options.command_line import FAMILIES as ENTRIES
from trilemma.training.options.flags import public_name

TEMPLATE = Path(__file__).with_name("template.md")
PICTURES = {
    "samples.png": "samples, not selected",
    "process.png": "the process both ways: images noised, and images made from noise",
    "reconstructions.png": "images, and below them what their codes decode to",
    "interpolations.png": "from an image's code to another's, decoded on the way",
    "scores.png": "results during training",
}
SHOWN_CLASSES = 100


def write_card(folder: str | Path) -> Path:
    """Render README.md of an output folder anew; a `license` that was put into its front matter is kept."""
    path = Path(folder) / CARD
    path.write_text(render_card(folder), encoding="utf-8")
    return path


def render_card(folder: str | Path, model_id: str | None = None) -> str:
    """The text of README.md, for a model of this id if given."""
    told = read_folder(folder, model_id)
    family = _family(told)
    snippet, usage = family.usage(told.saved, told.model_id)
    body = TEMPLATE.read_text(encoding="utf-8").format(
        title=escape(told.model_id.split("/")[-1]),
        summary=_summary(told),
        rendered=RENDERED,
        snippet=snippet,
        usage=usage,
        pictures=_pictures(told),
        results=_results(told),
        training=_training(told),
        data=_data(told),
        limitations="\n".join(f"- {limitation}" for limitation in _limitations(told)),
        citation="\n\n".join(PAPERS[name] for name in (*family.papers, "trilemma")),
    )
    return f"---\n{_front_matter(told).to_yaml()}\n---\n\n{body}"


def _family(told: Folder) -> Family:
    return FAMILIES.get(told.saved.pipeline, OTHER)


def _front_matter(told: Folder) -> ModelCardData:
    family, data = _family(told), told.config.get("dataset_name")
    on_hub = data and "/" in data and not told.config.get("train_data_dir")
    return ModelCardData(
        library_name="diffusers",
        license=_kept_license(told.path),
        pipeline_tag=told.saved.task if told.saved.class_names is None else None,
        tags=["diffusers", "trilemma", family.entry or "diffusion", *family.papers],
        datasets=[data] if on_hub else None,
        model_name=told.model_id.split("/")[-1],
        eval_results=figures.evaluations(told.lines, told.saved.task) or None,
    )


def _kept_license(folder: Path) -> str | None:
    """The licence that the model's owner has put into the card."""
    try:
        return ModelCard((folder / CARD).read_text(encoding="utf-8")).data.license
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _summary(told: Folder) -> str:
    what, network = _family(told).what, told.saved.network
    side, channels = network.get("sample_size"), network.get("in_channels")
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    size = f" of {side}x{side} {kind} images" if side else ""
    article = "An" if what[0] in "aeiou" else "A"
    return f"{article} {what}{size}, trained on {escape(_data_name(told))} with Trilemma."


def _pictures(told: Folder) -> str:
    present = {name: said for name, said in PICTURES.items() if (told.path / name).is_file()}
    return "\n\n".join(f"![{said}]({name})" for name, said in present.items()) or "None were drawn."


def _results(told: Folder) -> str:
    if not told.lines:
        return "Not measured."
    return f"""{figures.table(told.lines)}

`fid` is over Inception features of 50,000 samples against the training images; any other name tells how it
differs. *Floor* is what as many real images would score. The interval of a Frechet distance is for infinitely
many samples and usually lies below the value, which is the plain distance of n samples. *s / image* is
seconds of one process, sampling alone.

Each number is a line of `results.jsonl` with its full protocol. To draw the same seeds and score them again:

```sh
python -m trilemma.model_cards.publish --verify {literal(told.model_id)}
```"""


def _training(told: Folder) -> str:
    run, hardware = told.run, told.run.get("hardware", {})
    rows = {
        "hardware": hardware and f"{hardware['processes']} x {hardware['name']}",
        "precision": hardware.get("mixed_precision"),
        "wall time (h:mm:ss)": run and str(timedelta(seconds=round(run["seconds"]))),
        "optimizer steps": run and f"{run['steps']:,}",
        "images seen": run and f"{run['images_seen']:,} ({run['images_per_second']:g} a second)",
        "versions": ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items()),
        "commit": run.get("commit"),
    }
    text = _two_columns("run", "", {name: value or "unknown" for name, value in rows.items()})
    entry = _family(told).entry
    if entry not in ENTRIES or not told.config:
        return text + "\n\nThe flags are unknown."
    config = dict(told.config)
    if config.get("model_config_name_or_path"):
        config["model_config_name_or_path"] = (
            told.model_id
        )  # the model has the network that the file describes
    flags = changed(entry, config).items()
    differing = {
        f"`--{flag}`": f"{_plain(value)} (default {_plain(default)})" for flag, (value, default) in flags
    }
    return f"""{text}

```sh
{train_command(entry, config, hardware)}
```

{_two_columns("flag", "value", differing)}

Other flags have their defaults; `config.yaml` has all of them, for `--config`."""


def _two_columns(left: str, right: str, rows: Mapping[str, str]) -> str:
    body = [f"| {name} | {escape(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {left} | {right} |", "| --- | --- |", *body])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _data_name(told: Folder) -> str:
    config = told.config
    return public_name(config.get("train_data_dir") or config.get("dataset_name") or "unknown data")


def _data(told: Folder) -> str:
    config, names = told.config, told.saved.class_names or ()
    source, local = config.get("dataset_name"), config.get("train_data_dir")
    known = DATA.get(source, UNKNOWN)
    if local and source in DATA:
        known = known._replace(licence=f"{known.licence}, if the folder is a copy of it")
    rows = {
        "data set": _data_name(told) + (" (a local folder)" if local else ""),
        "in the place of": source if local else None,
        "what": known.name,
        "made by": known.makers,
        "licence": known.licence,
        "split": config.get("train_split", "unknown"),
        "only the classes": _plain(config.get("classes") or ()),
        "classes": ", ".join(f"{k}: {name}" for k, name in enumerate(names[:SHOWN_CLASSES])),
        "and more": len(names) > SHOWN_CLASSES and f"{len(names) - SHOWN_CLASSES} classes",
    }
    return _two_columns("data", "", {name: value for name, value in rows.items() if value})


def _limitations(told: Folder) -> list[str]:
    lines, config = told.lines, told.config
    metrics = {line["metric"].split("_")[0] for line in lines}
    if not lines:
        found = ["Nothing was measured: how good, how diverse or how copied its images are is unknown."]
    elif metrics & {"copying", "nearest"}:
        found = ["Whether it copies its training images was measured: `copying` and `nearest` in the table."]
    else:
        found = ["Whether it copies its training images was not measured."]
    if any(line["n"] < LITERATURE_SAMPLES for line in lines):
        found.append(
            f"Some numbers are over fewer than {LITERATURE_SAMPLES:,} samples: they vary more, distances "
            "come out larger, and they are not to be compared with published ones."
        )
    if any(line["forced"] for line in lines):
        found.append("Numbers marked (forced) rest on fewer samples than features, and mean little.")
    if any(line["feature_extractor"] == "classifier" for line in lines):
        found.append(
            "The classifier that judges was trained on the same data; its accuracy, in the table, bounds "
            "what its numbers can tell."
        )
    name = f"{public_name(config.get('train_data_dir') or '')} {config.get('dataset_name')}".lower()
    if "jpeg" in name or "jpg" in name:
        found.append(
            "It was trained on a JPEG copy: its images have JPEG's artefacts, as its reference does."
        )
    elif config.get("train_data_dir") and config.get("dataset_name"):
        found.append(
            "Its local data may differ from the set in whose place they stand, as JPEG copies do; its "
            "numbers are then others too."
        )
    if (told.run.get("commit") or "").endswith("+"):
        found.append("The code had changes that are not in the commit: training again may differ.")
    found.append("It knows nothing but its data, and has their biases; its images are not facts.")
    return found
