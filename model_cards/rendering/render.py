"""The model card: README.md of an output folder, rendered from the folder's files and nothing else.

`template.md` has the order of the page, `wording/<family>.py` what is said of a family, `figures.py` the
measured numbers, `credits.py` data sets and their licences, `limitations.py` what not to expect. What no file
says is left out or called unknown.
"""

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from trilemma.model_cards.about import about_of, front_matter_of
from trilemma.model_cards.rendering import figures
from trilemma.model_cards.rendering.command import changed, names_folders, train_command
from trilemma.model_cards.rendering.contents import Contents, read_contents
from trilemma.model_cards.rendering.credits import DATA, TRILEMMA, credit_of
from trilemma.model_cards.rendering.limitations import limitations
from trilemma.model_cards.rendering.text import characters, escape, shell_word, two_columns
from trilemma.model_cards.wording import Wording, wording
from trilemma.pipelines.files.writing import write_text
from trilemma.training.options.flags import HUB_ID, public_name
from trilemma.training.output_folder import OutputFolder, own_sampling
from trilemma.training.progress import counted

TEMPLATE = Path(__file__).with_name("template.md")
WORDS = 9
"""Number of the present wording of cards. Count it up when the text of a page changes, and the words of an
older card are not taken for an edit."""

NEW_FACTS = 3
"""The first wording with about.yaml, the network, and a snippet that samples as the best result did."""

PLAIN_VALUES = 4
"""The first wording whose table has plain values in a column of their own."""

CHOICES = 8
"""The first wording whose command says what another machine may choose otherwise."""

RENDERED = (
    re.compile(r"^<!-- This page is rendered from the files beside it \(wording (\d+)\)", re.MULTILINE),
    re.compile(r"This page is rendered from the files beside it(?: \(wording (\d+)\))?"),
)
"""What a rendered page says of itself, now and up to wording 2; without a number, it has wording 1. Nobody's
text can begin with the former, since text on a card is escaped."""

SHORT_TABLE = 5
"""The first wording with a short table of results, over the one of all numbers, which is folded."""

SHEET = 6
"""The first wording that says how the samples of the sheet were drawn."""

FEWER_COLUMNS = 7
"""The first wording whose short table leaves precision and density to the folded one."""

SHOWN_CLASSES = 100

_SHORT = """{short}

NFE is the number of network calls for an image. In brackets is the 95% interval of sampling: of this one
training, not of others with other seeds. *All numbers* has the reference, the floors and the plain values.

<details>
<summary>All numbers</summary>

{every}

</details>"""

PATHS = "\n\nThe command names folders without their paths; give yours."
"""Said under a command that has any: a card shows no path of the machine of the training."""

NOT_MEASURED = """> **Not measured.** No number says how good or how varied its images are, or
> whether they are copies of training images: look at many samples before you use it."""


def write_card(path: str | Path) -> Path:
    """Render README.md of an output folder; a `license` that its owner put into the front matter is kept."""
    card = OutputFolder(Path(path)).card
    write_text(card, render_card(path))
    return card


def render_card(path: str | Path, model_id: str | None = None, number: int = WORDS) -> str:
    """The text of README.md, for a model of this id if one is given.

    number: of a wording whose facts the page has, in the present words.
    """
    contents = read_contents(path, model_id)
    if number < NEW_FACTS:
        saved = replace(contents.saved, network_class=None, parameters=None, best=None)
        contents = replace(contents, saved=saved, about={})
    words = wording(contents.family)
    snippet, remarks = words.usage(contents.saved, contents.model_id)
    body = TEMPLATE.read_text(encoding="utf-8").format(
        title=escape(contents.model_id.split("/")[-1]),
        summary=_summary(contents, words),
        rendered=f"<!-- This page is rendered from the files beside it (wording {WORDS}). To change it, "
        "edit them, or about.yaml, and render it again. -->",
        about=about_of(contents.about),
        snippet=snippet,
        usage=remarks,
        pictures=_pictures(contents, words, number),
        results=_results(contents, number),
        training=_training(contents, number),
        data=_data(contents, number),
        limitations="\n".join(f"- {limitation}" for limitation in limitations(contents)),
        citation="\n\n".join([*words.papers.values(), TRILEMMA]),
    )
    text = f"---\n{_front_matter(contents, words).to_yaml()}\n---\n\n{body}"
    return characters(text)


def words_of(text: str) -> int | None:
    """The number of a page's wording; None for a page that was not rendered."""
    rendered = next(filter(None, (form.search(text) for form in RENDERED)), None)
    return rendered and int(rendered[1] or 1)


def _front_matter(contents: Contents, words: Wording) -> ModelCardData:
    data = contents.config.get("dataset_name")
    on_hub = data and "/" in data and HUB_ID.fullmatch(data) and not contents.config.get("train_data_dir")
    return ModelCardData(
        library_name="diffusers",
        **front_matter_of(contents.about, _kept_license(contents.folder)),
        pipeline_tag=contents.saved.task if contents.saved.class_names is None else None,
        tags=["diffusers", "trilemma", contents.family or "diffusion", *words.papers],
        datasets=[data] if on_hub else None,
        model_name=contents.model_id.split("/")[-1],
        eval_results=figures.evaluations(contents.lines, contents.saved.task) or None,
    )


def _kept_license(folder: OutputFolder) -> str | None:
    """The licence that the model's owner has put into the card."""
    try:
        return ModelCard(folder.card.read_text(encoding="utf-8")).data.license
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _summary(contents: Contents, words: Wording) -> str:
    network = contents.saved.network
    side, channels = network.get("sample_size"), network.get("in_channels")
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    size = f" of {side}x{side} {kind} images" if side else ""
    article = "An" if words.what[0] in "aeiou" else "A"
    return f"{article} {words.what}{size}, trained on {escape(_data_name(contents))} with Trilemma."


def _pictures(contents: Contents, words: Wording, number: int) -> str:
    folder = contents.folder
    captions = {
        folder.samples.name: "samples, not selected",
        **words.pictures,
        folder.scores.name: "results during training",
    }
    present = {name: caption for name, caption in captions.items() if (folder.path / name).is_file()}
    shown = [f"![{caption}]({name})" for name, caption in present.items()]
    sampler, steps = own_sampling(contents.config)
    if sampler and number >= SHEET and folder.samples.name in present:
        length = f" in {counted(steps, 'step')}" if steps else ""
        guidable = contents.saved.class_names and "p_uncond" in contents.config
        without = ", without guidance" if guidable else ""
        shown.insert(1, f"Drawn with `{sampler}`{length}{without}; the first seeds, not selected.")
    return "\n\n".join(shown) or "None were drawn."


def _results(contents: Contents, number: int) -> str:
    if not contents.lines:
        return NOT_MEASURED
    older = number < FEWER_COLUMNS
    short = figures.short_table(contents.lines, older) if number >= SHORT_TABLE else ""
    every = figures.table(contents.lines, older=number < PLAIN_VALUES)
    return f"""{_SHORT.format(short=short, every=every) if short else every}

`fid` is computed over Inception features of 50,000 samples against all training images; any other name says
how the number differs from that. A distance of few samples is too large: *value* and its interval are without
this bias, *plain value* has it, as published tables do, and *floor* is the plain value of the same number of
real images. *s / image* is the time in seconds that one process takes to sample an image.

Each number is a line of `{contents.folder.results.name}` with its full protocol. To draw images from the
same seeds and score them again:

```sh
python -m trilemma.model_cards.publish --verify{_separator(contents.model_id)}{shell_word(contents.model_id)}
```"""


def _training(contents: Contents, number: int) -> str:
    run, hardware = contents.run, contents.run.get("hardware", {})
    seen, speed = _number(run.get("images_seen"), ","), _number(run.get("images_per_second"), "g")
    precision = hardware.get("mixed_precision")
    wall, between = _duration(run.get("seconds")), _duration(run.get("evaluation_seconds") or None)
    pictures = f", of which {between} for evaluation and pictures" if between else ""
    rows = _network(contents) | {
        "hardware": hardware and f"{hardware.get('processes', '?')} x {hardware.get('name', 'unknown')}",
        "precision": {"no": "fp32"}.get(precision, precision),
        "wall time (h:mm:ss)": wall and wall + pictures,
        "optimizer steps": _number(run.get("steps"), ","),
        "images seen": seen and f"{seen} ({speed} a second)",
        "versions": ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items()),
        "commit": run.get("commit"),
    }
    text = two_columns("run", "", {name: value or "unknown" for name, value in rows.items()})
    if contents.family is None or not contents.config:
        return text + "\n\nThe flags are unknown."
    config = dict(contents.config)
    if config.get("model_config_name_or_path"):
        config["model_config_name_or_path"] = contents.model_id  # it has the network that the file describes
    differing = {
        f"`--{flag}`": f"{_plain(value)} (default {_plain(default)})"
        for flag, (value, default) in changed(contents.family, config).items()
    }
    return f"""{text}

{_how(contents, config, number)}

{two_columns("flag", "value", differing)}

All other flags have their default values. `{contents.folder.config.name}` has every flag, for `--config`."""


def _how(contents: Contents, config: dict[str, Any], number: int) -> str:
    """The command that trains the model again, or what stands in its way."""
    given = _in_memory(contents)
    if given:
        return f"Trained by a script with `trilemma.train`, which gave it {' and '.join(given)} of its own."
    hardware = contents.run.get("hardware", {})
    command = train_command(contents.family, config, hardware, choices=number >= CHOICES)
    return f"```sh\n{command}\n```" + (PATHS if names_folders(config) else "")


def _in_memory(contents: Contents) -> dict[str, str]:
    """What a script gave to the training in place of names -> what it is called."""
    config, given = contents.config, dict(contents.run.get("in_memory", {}))
    if config and not (config.get("train_data_dir") or config.get("dataset_name")):
        given = {"images": "images of a script"} | given
    return given


def _network(contents: Contents) -> dict[str, str]:
    """The row of the network, where the files say what it is."""
    saved, net = contents.saved, contents.config.get("net")
    count = saved.parameters and f"{saved.parameters:,} parameters"
    words = ", ".join(filter(None, [saved.network_class, net and f"--net {net}", count]))
    return {"network": words} if saved.network_class else {}


def _separator(word: str) -> str:
    return "=" if word.startswith("-") else " "


def _number(value: Any, form: str) -> str | None:
    return f"{value:{form}}" if type(value) in (int, float) else None


def _duration(seconds: Any) -> str | None:
    try:
        return str(timedelta(seconds=round(seconds)))
    except (TypeError, ValueError, OverflowError):  # no number, or one that is no duration
        return None


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _data_name(contents: Contents) -> str:
    config = contents.config
    place = config.get("train_data_dir") or config.get("dataset_name")
    return public_name(place) if place else _in_memory(contents).get("images", "unknown data")


def _data(contents: Contents, number: int) -> str:
    config, names = contents.config, contents.saved.class_names or ()
    source, local = config.get("dataset_name"), config.get("train_data_dir")
    prints = {line.data_fingerprint for line in contents.lines}
    credit = credit_of(source, bool(local), prints)
    if number < NEW_FACTS and local and source in DATA:
        credit = DATA[source]
        credit = credit._replace(licence=f"{credit.licence}, if the folder is a copy of it")
    rows = {
        "data set": _data_name(contents) + (" (a local folder)" if local else ""),
        "used instead of": public_name(source) if local and source else None,
        "source": contents.about.get("data_source"),
        "what": credit.name,
        "made by": credit.makers,
        "licence": credit.licence,
        "split": config.get("train_split", "unknown"),
        "only the classes": _plain(config.get("classes") or ()),
        "classes": ", ".join(f"{k}: {name}" for k, name in enumerate(names[:SHOWN_CLASSES])),
        "and more": len(names) > SHOWN_CLASSES and f"{len(names) - SHOWN_CLASSES} classes",
    }
    return two_columns("data", "", {name: value for name, value in rows.items() if value})
