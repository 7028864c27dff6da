"""Cards of hostile files: whatever a value holds, it stays the text of one place on the page.

Each card is read by a Markdown parser, its front matter by YAML, its Python by Python, and its command lines
are run by a shell in which the programs print their arguments.
"""

import ast
import json
import random
import re
import shlex
import subprocess
from itertools import pairwise

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from test_card import RUN, fill, folder, result  # noqa: F401

from trilemma.eval.scoring.results import append
from trilemma.model_cards.rendering.command import train_command
from trilemma.model_cards.rendering.differences import Comparison, compare_card
from trilemma.model_cards.rendering.render import render_card
from trilemma.model_cards.rendering.text import characters, literal, shell_word
from trilemma.training.options.command_line import parse
from trilemma.training.options.flags import flatten, public_name

VALUES = [
    "u/$(touch X)", "u/`touch X`", "u/x; touch X", "u/x && touch X #", "u/x | touch X", "u/x > X",
    "'; touch X; '", '"; touch X; "', "\\", "\\'", '\\"', "'", '"', "$HOME", "!!", "~", "*", "-x",
    "--push_to_hub", "", "a\nb", "a\r\nb", "a\rb", "a\n```\ntouch X\n```\n", "\n---\n",
    "---\nlicense: mit\n---", "...", "\u2028# x", "a\x85b", "a\x0cb", "a\x00b", "a\x1b[31mb", "\u202eb",
    "\ud800", "\udce9", "\ufeff", "```", "~~~", "# x", "a\n# x", "a\n===", "- x", "1. x", "> x", "| a | b |",
    "a\n| - |", "[x](y)", "![x](y)", "<script>touch X</script>", "<!--", "&lt;", "*x*", "__x__", "~~x~~", "`",
    "``x", "$$", "{x}", "{0}", "}", "%s", "a: b", "#1", "&a", "*a", "!!python/object:os.system", "null",
    "true", "1e3", "@", "caf\u00e9", "\N{FOX FACE}", "C:\\me\\data", "x" * 2000, "''", '""" + x + """', "')",
    '");import os;("', "#", " ", "\t", "a  b",
]  # fmt: skip
HEADINGS = ["Use", "Samples", "Results", "Training", "Data", "Limitations", "Citation"]
ROUNDS = 40


def write_hostile(folder, draw):  # noqa: F811
    """Files of an output folder in which each text is a value that `draw()` gives."""
    fill(folder, "class_conditional", "--train_data_dir", "x", "--validation_size", "3")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    texts = ("train_data_dir", "dataset_name", "init_from", "train_split", "image_column", "label_column",
             "net", "hub_model_id", "model_config_name_or_path", "dataset_config_name",
             "dataset_revision")  # fmt: skip
    for name in texts:
        config[name] = draw()
    config["classes"] = [draw(), draw()]
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    hardware = {**RUN["hardware"], "name": draw(), "mixed_precision": draw()}
    run = {**RUN, "hardware": hardware, "versions": {draw(): draw()}, "commit": draw()}
    (folder / "run.json").write_text(json.dumps({**run, "family": "class_conditional"}))
    names = {str(k): draw() for k in range(4)}
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": ["pipeline_class_conditional", "ClassConditionalPipeline"], "class_names": names}
    (folder / "model_index.json").write_text(json.dumps(index))
    entries = ("sampler", "classes", "feature_extractor", "reference", "reference_split")
    (folder / "results.jsonl").unlink(missing_ok=True)
    append(folder / "results.jsonl", [
        result(1.0, draw(), **{name: draw() for name in entries}),
        result(2.0, draw(), extra={"judge_data": draw()}),
    ])  # fmt: skip
    return config


def run_in_shell(line, tmp_path):
    """The words that a shell makes of a command line, the first of them a program."""
    printing = "".join(
        f'{name}() {{ printf "%s\\0" {name} "$@"; }}\n' for name in ("accelerate", "torchrun", "python")
    )
    place = tmp_path / "shell"
    place.mkdir(exist_ok=True)
    subprocess.run(["sh", "-n"], input=line, check=True, text=True)
    done = subprocess.run(["sh", "-c", printing + line], cwd=place, check=True, capture_output=True)
    assert list(place.iterdir()) == [], "something in the line ran"
    words = done.stdout.decode().split("\0")[:-1]
    expected = shlex.split(line)
    assert words == [word for word in expected if word != "ACCELERATE_USE_CPU=true"]
    return words


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_no_value_leaves_its_place(folder, tmp_path, seed):  # noqa: F811
    generator = random.Random(seed)
    config = write_hostile(folder, lambda: generator.choice(VALUES))
    text = render_card(folder)
    front, body = text.removeprefix("---\n").split("\n---\n\n", 1)
    keys = {"library_name", "tags", "datasets", "model-index"}
    assert yaml.safe_load(front).keys() <= keys
    assert {"library_name", "tags", "model-index"} <= yaml.safe_load(front).keys()
    assert len(ModelCard(text).data.eval_results) == 2

    body, count = re.subn(r"\A\n*<!-- This page is rendered [^<>]* -->\n", "", body)
    assert count == 1
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    inline = [token for parent in tokens for token in parent.children or ()]
    headings = [after.content for token, after in pairwise(tokens)
                if token.type == "heading_open"]  # fmt: skip
    assert headings[1:] == HEADINGS
    fences = [token for token in tokens if token.type == "fence"]
    assert [token.info for token in fences] == ["python", "sh", "sh", "bibtex"]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {
        "html_block",
        "html_inline",
        "link_open",
        "s_open",
        "hr",
        "blockquote_open",
        "code_block",
    }
    assert [token.attrs["src"] for token in inline if token.type == "image"] == ["samples.png"]
    assert sum(token.type == "table_open" for token in tokens) == 4
    assert {token.content.count("\n") for token in fences[1:3]} == {1}, "a command is one line"

    model_id = config["hub_model_id"] or folder.name
    calls = [node for node in ast.walk(ast.parse(fences[0].content)) if isinstance(node, ast.Call)]
    (loaded,) = [call for call in calls if getattr(call.func, "attr", "") == "from_pretrained"]
    assert loaded.args[0].value == characters(model_id)
    verify = run_in_shell(fences[1].content, tmp_path)
    assert verify[:3] == ["python", "-m", "trilemma.model_cards.publish"]
    assert len(verify) == (4 if model_id.startswith("-") else 5)
    run_in_shell(fences[2].content, tmp_path)


@pytest.mark.parametrize("value", VALUES)
def test_the_command_keeps_every_value(tmp_path, value):
    """Or names the file that has it, where a line of a shell cannot."""
    config = flatten(parse("class_conditional", "", ["--dataset_name", "user/data"]))
    config |= {"image_column": value, "train_split": value, "classes": [value, "b"]}
    line = train_command("class_conditional", config, {"processes": 1})
    assert "\n" not in line
    words = run_in_shell(line, tmp_path)
    assert words[:3] == ["accelerate", "launch", "training/train_class_conditional.py"]
    if words[3:] == ["--config", "config.yaml"]:
        assert value.startswith("-") or not value.isprintable()
        return
    if not value:
        with pytest.raises(SystemExit):
            parse("class_conditional", "", words[3:])
        return
    again = flatten(parse("class_conditional", "", words[3:]))
    assert (again["image_column"], again["train_split"], again["classes"]) == (value, value, (value, "b"))


@pytest.mark.parametrize("value", [value for value in VALUES if not value.startswith("\ud800")])
def test_literals_and_words(tmp_path, value):
    plain = value.replace("\udce9", "\N{REPLACEMENT CHARACTER}")
    assert ast.literal_eval(literal(value)) == plain
    assert len(literal(value).splitlines()) == 1
    words = run_in_shell(f"python {shell_word(value)}", tmp_path)
    assert len(words) == 2
    if plain.isprintable():
        assert words[1] == plain


@pytest.mark.parametrize("name", ['a"b', "a\\b", "$(touch X)", "a b", "a`b"])
def test_a_hostile_id_is_read_from_its_card(folder, name):  # noqa: F811
    """So that a card with it is compared under its name, wherever the folder lies."""
    append(folder / "results.jsonl", [result(1.0)])
    (folder / "README.md").write_text(render_card(folder, f"u/{name}"))
    assert compare_card(folder) == Comparison(2)


@pytest.mark.parametrize(("file", "key", "value"), [
    ("scheduler/scheduler_config.json", "num_train_timesteps", "1000)\nimport os #"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
    ("unet/config.json", "sample_size", "# x"),
    ("unet/config.json", "in_channels", [1, "|"]),
    ("unet/config.json", "out_channels", True),
])  # fmt: skip
def test_numbers_of_a_configuration_are_numbers(folder, file, key, value):  # noqa: F811
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | {key: value}))
    with pytest.raises(ValueError, match=rf"{file}.*{key}"):
        render_card(folder)


@pytest.mark.parametrize("name", ["train_data_dir", "dataset_name", "output_dir", "hub_model_id"])
@pytest.mark.parametrize("value", [3, ["a"], {"a": 1}, True])
def test_places_of_a_configuration_are_text(folder, name, value):  # noqa: F811
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(values | {name: value}))
    with pytest.raises(ValueError, match=rf"config\.yaml.* {name}"):
        render_card(folder)


def test_no_path_of_this_machine_is_in_the_front_matter(folder):  # noqa: F811
    fill(folder, "unconditional", "--dataset_name", "/home/someone/secret/data")
    text = render_card(folder)
    assert "someone" not in text
    assert ModelCard(text).data.datasets is None
    assert public_name("/home/someone/secret/data") in text


@pytest.mark.parametrize("run", [
    {}, {"hardware": {}}, {"seconds": 1e400}, {"steps": 60},
])  # fmt: skip
def test_a_run_of_which_little_is_known(folder, run):  # noqa: F811
    (folder / "run.json").write_text(json.dumps(run))
    assert "| run |" in render_card(folder)
