"""Model cards: what they show, that strangers can run what they say, and that hostile names stay names."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import ModelCard

from trilemma.eval.scoring.results import REQUIRED, ResultLine, append, read
from trilemma.model_cards.card import main
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.rendering import differences, figures
from trilemma.model_cards.rendering.command import names_folders, train_command
from trilemma.model_cards.rendering.contents import read_contents
from trilemma.model_cards.rendering.differences import SHOWN, Comparison, card_follows, compare_card
from trilemma.model_cards.rendering.render import WORDS, render_card, write_card
from trilemma.model_cards.rendering.text import escape
from trilemma.model_cards.wording import OTHER, wording
from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.training import families
from trilemma.training.options.command_line import parse
from trilemma.training.options.flags import flags_of, flatten, public, public_name

HOSTILE = [
    "<script>alert(1)</script>",
    "a: b",
    "#1",
    "\N{FOX FACE} | x",
    "```\n---\n- {0}",
    '"]) ![x](y) $$',
    "-",
]
RUN = {
    "steps": 60, "images_seen": 7680, "seconds": 3725.2, "images_per_second": 2.1,
    "hardware": {"device": "cpu", "name": "A <Processor>", "processes": 1, "threads": 1,
                 "mixed_precision": "no"},
    "versions": {"python": "3.11", "torch": "2.13.0"}, "commit": "0123456789ab+",
}  # fmt: skip


def network(**options):
    config = {key: value for key, value in TINY.items() if key != "_class_name"}
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **config, **options)


def fill(folder, family="unconditional", *flags):
    """The files that a run leaves beside the pipeline."""
    config = flatten(parse(family, "", ["--output_dir", "/home/someone/secret/out", *flags]))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "samples.png").write_bytes(b"a picture")


def result(value, metric="kid", *, n=500, **entries):
    """A line of results.jsonl, as evaluations write it."""
    line = ResultLine(
        metric=metric, measure=metric, value=value, interval=None, floor=0.0, forced=False,
        source="/home/someone/secret/out", n=n, seeds=f"0..{n - 1}", sampler="ddim", num_inference_steps=50,
        nfe=50, classes=None, guidance_scale=None, seconds_per_image=0.0123456, device=None, step=60,
        images_seen=None, feature_extractor="classifier", extractor_sha256=None, judge_accuracy=0.98765,
        resize=None, quantisation=None, reference="/home/someone/secret/data", reference_split="train",
        reference_n=1618, data_fingerprint=None, whole=True, commit=None, created="2026-11-25T00:00:00+00:00",
    )  # fmt: skip
    return replace(line, **entries)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An unconditional model and a class-conditional one with hostile class names."""
    root = tmp_path_factory.mktemp("models")
    scheduler = DDPMScheduler(num_train_timesteps=100, timestep_spacing="trailing")
    DDPMPipeline(network(), scheduler).save_pretrained(root / "plain")
    classes = ClassConditionalPipeline(network(num_class_embeds=len(HOSTILE) + 1), scheduler, HOSTILE)
    save_bundle(classes, root / "classes")
    fill(root / "plain")
    fill(root / "classes", "class_conditional", "--classes", *HOSTILE[:2])
    for name in ("plain", "classes"):
        append(
            root / name / "results.jsonl", [result(0.25, interval=(0.2, 0.3)), result(9.5, "fd", forced=True)]
        )
        write_card(root / name)
    return root


@pytest.fixture
def folder(tmp_path):
    """An output folder without weights."""
    (tmp_path / "out" / "unet").mkdir(parents=True)
    (tmp_path / "out" / "scheduler").mkdir()
    fill(tmp_path / "out")
    index = {
        "_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }  # fmt: skip
    unet = {"in_channels": 1, "out_channels": 1, "sample_size": 8}
    files = ("model_index.json", index), ("unet/config.json", unet)
    for name, content in (*files, ("scheduler/scheduler_config.json", {"num_train_timesteps": 1000})):
        (tmp_path / "out" / name).write_text(json.dumps(content))
    return tmp_path / "out"


def code(card, language):
    return re.findall(rf"^```{language}\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)


def rows(card, first="metric"):
    """Cells of the rows of the table whose first column has this name."""
    table = re.search(rf"^\| {first} \|.*\n\|.*\n((\|.*\n?)*)", card, re.MULTILINE).group(1)
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]


def test_the_hub_reads_the_card_and_every_figure_is_in_the_results(saved):
    for name in ("plain", "classes"):
        text = (saved / name / "README.md").read_text()
        data = ModelCard(text).data
        entries = {result.metric_name: result for result in data.eval_results}
        assert entries["kid"].metric_value == 0.25
        assert entries["kid"].metric_args["interval"] == [0.2, 0.3]
        assert entries.keys() == {"kid", "fd (forced)"}
        assert data.library_name == "diffusers"
        assert len(rows(text)) == 2
        assert compare_card(saved / name) == Comparison(4)
    assert data.pipeline_tag is None


@pytest.mark.long
def test_the_snippets_run_as_they_stand(saved, tmp_path):
    """In one process: a stranger's, with diffusers and the card."""
    snippets = []
    for name in ("plain", "classes"):
        card = (saved / name / "README.md").read_text()
        assert card.index("```python") < min(
            card.index(f"## {part}") for part in ("Samples", "Results", "Training")
        )
        snippets += code(render_card(saved / name, str(saved / name)), "python")
        assert str(saved / name) in snippets[-1]
    assert "from diffusers import DDIMPipeline" in snippets[0]
    assert "num_inference_steps=50" in snippets[0]
    assert "trust_remote_code" not in snippets[0]
    program = "\n".join(
        [snippets[0], "assert len(images) == 4", snippets[1], "assert len(images) == 2", "import sys",
         "assert not any(name.startswith('trilemma') for name in sys.modules)"]
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sample.png").is_file()


def test_hostile_class_names_stay_names(saved):
    text = (saved / "classes" / "README.md").read_text()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", text, re.DOTALL).groups()
    yaml.safe_load(front)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings[1:] == [f"## {part}" for part in (
        "Use", "Samples", "Results", "Training", "Data", "Limitations", "Citation"
    )]  # fmt: skip
    (snippet,) = code(text, "python")
    compile(snippet, "snippet", "exec")
    page = re.sub(r"^```.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"\A<!-- This page is rendered [^<>]* -->", "", page)
    for ours in ("<details>", "<summary>All numbers</summary>", "</details>"):
        page = page.replace(ours, "", 1)
    assert "<" not in page
    cells = dict(rows(text, "data"))
    assert "&lt;script&gt;" in cells["classes"]
    assert "\N{FOX FACE} \\| x" in cells["classes"]
    assert cells["only the classes"] == ", ".join(map(escape, HOSTILE[:2]))


def test_only_the_newest_of_the_finished_model_is_shown(folder):
    append(folder / "results.jsonl", [
        result(1.0, step=30),
        result(2.0),
        result(3.0),
        result(4.0, guidance_scale=2.0, nfe=100),
        result(5.0, sampler="heun"),
        result(6.0, n=1000),
        result(7.0, num_inference_steps=10),
        result(8.0, seeds=None, step=None),  # a folder of images
        result(9.0, classes="3 'a b'"),
    ])  # fmt: skip
    text = render_card(folder)
    assert [float(row[1]) for row in rows(text)] == [3, 4, 5, 6, 7, 9]
    assert rows(text)[-1][6] == "ddim, 50 steps, only classes 3 'a b'"
    entries = ModelCard(text).data.eval_results
    assert [r.metric_value for r in entries] == [3, 4, 5, 6, 7, 9]
    assert entries[-1].metric_args["classes"] == "3 'a b'"


def test_a_row_tells_the_protocol(folder):
    append(
        folder / "results.jsonl", [result(0.123456789, interval=(0.1, 0.2), guidance_scale=1.5, forced=True)]
    )
    (row,) = rows(write_card(folder).read_text())
    assert row[:5] == ["kid (forced)", "0.12346", "0.1 .. 0.2", "", "0"]
    assert row[5:10] == ["500", "ddim, 50 steps", "50", "1.5", "0.0123"]
    assert row[10] == "data, train, 1618 images; classifier (right on 98.77% of held-out images)"


def test_a_way_of_sampling_is_a_row_and_a_measure_a_column():
    """Lines of other references, numbers of samples or ways are other rows; the best may have any place."""
    ways = [{"guidance_scale": 1.0}, {"guidance_scale": 2.0, "nfe": 100}, {"reference": "other"}, {"n": 90}]
    lines = [
        result(value, name, **way)
        for number, way in enumerate(ways)
        for name, value in (("kid", 0.5 + number), ("recall", 0.25), ("copying", 0.5))
    ]
    lines.append(result(3.0, "kid", guidance_scale=None, interval=(0.25, 0.75), debiased=0.5))
    header, _, *rows = figures.short_table(lines).splitlines()
    assert header == "| sampled with | NFE | s / image | n | kid | recall |"
    assert rows == [
        "| ddim, 50 steps, guidance 1 | 50 | 0.0123 | 500 | 0.5 | 0.25 |",
        "| ddim, 50 steps, guidance 2 | 100 | 0.0123 | 500 | 1.5 | 0.25 |",
        "| ddim, 50 steps | 50 | 0.0123 | 500 | 2.5 | 0.25 |",
        "| ddim, 50 steps | 50 | 0.0123 | 90 | 3.5 | 0.25 |",
        "| ddim, 50 steps | 50 | 0.0123 | 500 | 0.5 (0.25 .. 0.75) |  |",
    ]
    assert figures.short_table([result(0.5, "copying")]) == ""


def test_what_rewards_harm_is_folded_away_and_older_cards_keep_it(folder):
    """The exam fails precision and density; a card of wording 6 has them in its short table."""
    lines = [result(0.5, name) for name in ("kid", "precision", "recall", "density", "clipped_density")]
    append(folder / "results.jsonl", lines)
    text = render_card(folder)
    assert "| n | kid | recall | clipped\\_density |" in text
    assert text.count("| density |") == 1, "in the table of all numbers"
    older = render_card(folder, number=6).replace(f"(wording {WORDS})", "(wording 6)")
    assert "| n | kid | precision | recall | density | clipped\\_density |" in older
    (folder / "README.md").write_text(older)
    assert compare_card(folder).differences == []


def test_what_older_cards_say_of_steps_and_precision_is_no_edit(folder):
    one = result(0.5, num_inference_steps=1), result(0.5, "bpd_test", sampler=None, num_inference_steps=1)
    append(folder / "results.jsonl", [*one, result(0.5, num_inference_steps=1000)])
    older = render_card(folder)
    for present, former in {
        f"(wording {WORDS})": "(wording 8)", "ddim, 1 step |": "ddim, 1 steps |",
        "ddim, 1,000 steps |": "ddim, 1000 steps |", "| 1 noise level |": "| 1 noise levels |",
        "| precision | fp32 |": "| precision | no |",
    }.items():  # fmt: skip
        assert present in older
        older = older.replace(present, former)
    (folder / "README.md").write_text(older)
    assert compare_card(folder).differences == []
    (folder / "README.md").write_text(older.replace("ddim, 1 steps", "ddim, 2 steps"))
    assert compare_card(folder).differences


@pytest.mark.parametrize(("old", "new", "where", "named"), [
    ("| 31.413 |", "| 31.313 |", "table", "value 31.313 (there 31.413)"),
    ("| 29 .. 33 |", "| 31 .. 32 |", "table", "95% interval 31 .. 32"),
    ("|  | 0.0123 |", "|  | 0.0023 |", "table", "s / image 0.0023"),
    ("| 500 | ddim", "| 50000 | ddim", "table", "n 50000"),
    ("right on 98.77%", "right on 99.77%", "table", "reference"),
    ("value: 31.4125", "value: 31.3125", "model-index", "value 31.3125"),
    ("n: 500", "n: 50000", "model-index", "n 50000"),
    ("  - 29.0\n", "  - 30.0\n", "model-index", "interval [30.0, 33.0]"),
    ("type: fd", "type: fid", "model-index", 'metric "fid"'),
])  # fmt: skip
def test_a_figure_that_is_not_in_the_results_is_found(folder, capsys, old, new, where, named):
    append(folder / "results.jsonl", [result(31.4125, "fd", interval=(29.0, 33.0))])
    main([str(folder)])
    main([str(folder), "--verify"])
    assert "2 figures on the card, all of them in results.jsonl" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert card.count(old) == 1
    (folder / "README.md").write_text(card.replace(old, new))
    with pytest.raises(SystemExit) as stop:
        main([str(folder), "--verify"])
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert f"{where}: " in message
    assert named in message


def test_a_row_without_its_line_is_found(folder):
    append(folder / "results.jsonl", [result(1.0)])
    card = write_card(folder).read_text()
    row = next(line for line in card.splitlines() if line.startswith("| kid |"))
    (folder / "README.md").write_text(card.replace(row, f"{row}\n{row.replace('kid', 'fid')}"))
    assert any("metric fid" in one for one in compare_card(folder).differences)
    (folder / "README.md").write_text(card.replace(row + "\n", ""))
    assert any(f"should be: {row}" in one for one in compare_card(folder).differences)


@pytest.mark.parametrize("edit", [
    ("  name: kid", "  name: fid"),
    ("      name: data", "      name: ylecun/mnist"),
    ("  - task:\n      type: unconditional", "  - task:\n      type: text-to"),
    ("## Data\n", "| metric | value |\n| --- | --- |\n| fid | 1.02 |\n\n## Data\n"),
    ("## Use", "Better than GPT.\n\n## Use"),
    ("- It has learned only from its training data", "- It has learned all"),
    ("A <Processor>".replace("<", "&lt;").replace(">", "&gt;"), "A watch"),
])  # fmt: skip
def test_an_edit_of_a_rendered_card_is_found(folder, edit):
    append(folder / "results.jsonl", [result(1.0)])
    card = write_card(folder).read_text()
    assert card.count(edit[0]) == 1
    (folder / "README.md").write_text(card.replace(*edit))
    problems = compare_card(folder).differences
    assert problems
    for line in set(edit[1].splitlines()) - set(card.splitlines()):
        assert any("is not from the files: " in problem and line in problem for problem in problems)
    table = "\n".join(["", *[line for line in card.splitlines() if line.startswith(("| metric", "| kid"))]])
    (folder / "README.md").write_text(card + table.replace("| 1 |", "| 0.5 |"))
    assert compare_card(folder).differences, "a second copy of the table"


def test_a_card_in_a_copied_or_pulled_folder_is_as_it_was(folder, tmp_path):
    places = ["--train_data_dir", "/home/me/jpeg/cats", "--model_config_name_or_path", "/home/me/x.json"]
    fill(folder, "unconditional", *places)
    append(folder / "results.jsonl", [result(1.0)])
    card = render_card(folder, "user/model")
    assert "--model_config_name_or_path user/model" in card
    assert '"out"' not in card
    (folder / "README.md").write_text(card)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(public(values)))
    assert compare_card(folder.rename(tmp_path / "other")) == Comparison(2)


def test_a_card_that_is_older_than_the_results_is_found(folder):
    append(folder / "results.jsonl", [result(1.0)])
    write_card(folder)
    append(folder / "results.jsonl", [result(2.0), result(3.0, n=1000)])
    problems = compare_card(folder).differences
    assert any("value 1 (there 2)" in problem for problem in problems)
    assert any(re.fullmatch(r"line \d+ should be: +value: 3\.0", problem) for problem in problems)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Somebody's own\n")
    assert compare_card(folder) == Comparison(0)


LINE = result(1.0).to_json()


@pytest.mark.parametrize(("text", "fault"), [
    ("[1]", "must hold an object in JSON"),
    ("null", "must hold an object in JSON"),
    ('{"metric": ', "not JSON"),
    (json.dumps({k: v for k, v in LINE.items() if k not in ("n", "step")}), "lacks n, step;"),
    (json.dumps(LINE | {"value": "1.0"}), "value '1.0', which is not a number"),
    (json.dumps(LINE | {"value": None}), "value None"),
    (json.dumps(LINE | {"interval": [1]}), "not a list of the right values or null"),
])  # fmt: skip
def test_a_damaged_line_of_results_is_named(folder, capsys, text, fault):
    append(folder / "results.jsonl", [result(1.0)])
    with open(folder / "results.jsonl", "a") as file:
        file.write(f"\n{text}\n")
    with pytest.raises(SystemExit) as stop:
        main([str(folder)])
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {folder / 'results.jsonl'}, line 3 ")
    assert fault in message


def test_a_blank_line_of_results_is_nothing(folder):
    append(folder / "results.jsonl", [result(1.0)])
    (folder / "results.jsonl").write_text((folder / "results.jsonl").read_text() + "\n  \n")
    assert read(folder / "results.jsonl") == [result(1.0)]


def test_no_path_of_the_machine_is_told(saved, folder):
    fill(
        folder,
        "unconditional",
        "--train_data_dir",
        "/home/someone/secret/photos",
        "--init_from",
        str(saved / "classes"),
    )
    append(folder / "results.jsonl", [result(1.0)])
    texts = [write_card(folder).read_text(), (saved / "classes" / "README.md").read_text()]
    for text in texts:
        assert "someone" not in text
        assert "/home" not in text
        assert str(saved) not in text
    assert "--train_data_dir photos" in texts[0]


@pytest.mark.parametrize(("place", "name"), [
    ("user/data", "user/data"), ("digits", "digits"), ("/a/b/c", "c"), ("/a/b/c/", "c"), ("../x/y", "y"),
    ("~/photos", "photos"), (r"C:\me\data", "data"),
])  # fmt: skip
def test_public_names(place, name):
    assert public_name(place) == name


@pytest.mark.parametrize("family", families.names())
def test_the_command_gives_the_same_configuration(family):
    """Of every preset, alone and changed, and of no preset."""
    row = families.family(family)
    asked = [["--preset", name] for name in row.presets]
    asked += [
        ["--preset", name, "--adam_beta1", "0.3", "--no-use_ema", "--seed", "7"] for name in row.presets
    ]
    for more in ([], ["--lr_warmup_steps", "100"]):  # a run of which recipes' warm-ups are more than half
        asked += [["--preset", name, "--max_train_steps", "20", *more] for name in row.presets]
    asked += [
        ["--dataset_name", "user/data", "--random_flip"],
        ["--train_data_dir", "x", "--classes", "a b", "'"],
    ]
    hardware = {"device": "cuda", "processes": 1, "mixed_precision": "no"}
    for flags in asked:
        config = parse(family, "", flags)
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(config).items()}
        words = shlex.split(train_command(family, plain, hardware))
        assert words[:3] == ["accelerate", "launch", f"training/train_{family}.py"]
        again = flatten(parse(family, "", words[3:]))
        matter = [name for name, flag in flags_of(row.config).items() if not flag.meta["free"]]
        assert {n: again[n] for n in matter} == {n: flatten(config)[n] for n in matter}


@pytest.mark.parametrize(("hardware", "begins", "ends"), [
    ({"device": "cuda", "processes": 8, "mixed_precision": "bf16"},
     "accelerate launch --num_processes 8 training/", "--mixed_precision bf16"),
    ({"device": "cpu", "processes": 2, "mixed_precision": "no"},
     "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 training/", "--preset digits"),
])  # fmt: skip
def test_the_command_has_the_processes_and_the_precision(hardware, begins, ends):
    config = flatten(parse("unconditional", "", []))
    command = train_command("unconditional", config, hardware)
    assert command.startswith(begins)
    assert command.endswith(ends)


@pytest.mark.parametrize(("flags", "folders"), [
    ({"dataset_name": "digits"}, False), ({"train_data_dir": "-odd"}, True),
    ({"init_from": "someone/some-model"}, False), ({"init_from": "model_cards/zoo/digits"}, True),
    ({"model_config_name_or_path": "google/ddpm-cifar10-32"}, False),
])  # fmt: skip
def test_a_command_with_folders_says_that_they_have_lost_their_paths(flags, folders):
    assert names_folders(flags) is folders


def test_the_command_says_what_another_machine_may_choose_otherwise():
    """Only families that choose a precision, or to compile, by themselves have such words."""
    for family, words in {"unconditional": ["--mixed_precision", "no", "--no-compile"], "flow": []}.items():
        config = flatten(parse(family, "", [])) | {"mixed_precision": "no", "compile": False}
        command = train_command(family, config, {"mixed_precision": "no"})
        assert shlex.split(command)[5:] == words, command


@pytest.mark.parametrize(("flags", "data", "licence"), [
    (["--dataset_name", "digits"], "digits", "CC BY 4.0"),
    (["--preset", "mnist"], "ylecun/mnist", "CC BY-SA 3.0"),
    (["--preset", "cifar10"], "uoft-cs/cifar10", "none stated by its makers"),
    (["--dataset_name", "user/data"], "user/data", "unknown"),
    (["--train_data_dir", "/home/me/photos"], "photos (a local folder)", "unknown"),
    (["--preset", "mnist", "--train_data_dir", "m"], "m (a local folder)",
     "unknown"),
])  # fmt: skip
def test_data_and_licence(folder, flags, data, licence):
    fill(folder, "unconditional", *flags)
    text = write_card(folder).read_text()
    cells = dict(rows(text, "data"))
    assert cells["data set"] == data
    assert cells["licence"] == licence
    assert ModelCard(text).data.datasets == ([data] if "/" in data else None)


def test_the_samples_say_how_they_were_drawn(folder, saved):
    fill(folder, "unconditional", "--sampler", "ddim", "--ddpm_num_inference_steps", "10")
    shown = write_card(folder).read_text()
    assert "(samples.png)\n\nDrawn with `ddim` in 10 steps; the first seeds, not selected.\n" in shown
    fill(folder, "consistency", "--ddpm_num_inference_steps", "1")
    assert "\nDrawn with `lcm` in 1 step; the first seeds" in write_card(folder).read_text()
    (folder / "samples.png").unlink()
    assert "Drawn with" not in write_card(folder).read_text()
    classes = (saved / "classes" / "README.md").read_text()
    assert re.search(r"Drawn with `.*, without guidance; the first", classes)


def test_a_folder_with_little_in_it(folder):
    for name in ("config.yaml", "run.json", "samples.png"):
        (folder / name).unlink()
    text = write_card(folder).read_text()
    assert ModelCard(text).data.eval_results is None
    assert "> **Not measured.** No number says" in text
    assert dict(rows(text, "data"))["licence"] == "unknown"
    assert compare_card(folder) == Comparison(0)
    with pytest.raises(ValueError, match=r"model_index\.json"):
        write_card(folder.parent)


def test_a_licence_in_the_front_matter_is_kept_and_nothing_else(folder):
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Mine\n")
    text = write_card(folder).read_text()
    assert ModelCard(text).data.license == "cc-by-4.0"
    assert "# Mine" not in text
    assert write_card(folder).read_text() == text, "rendering again changes nothing"


def test_limitations_follow_from_the_files(folder):
    fill(folder, "unconditional", "--train_data_dir", "/data/cifar10-jpeg")
    append(folder / "results.jsonl", [result(0.5, "copying", measure="copying", forced=True)])
    text = write_card(folder).read_text()
    for words in (
        "was measured: see `copying`",
        "(forced)",
        "JPEG copy",
        "fewer than 50,000",
        "not in the commit",
    ):
        assert words in text.partition("## Limitations")[2]


def test_every_family_has_a_wording(folder):
    for name in families.names():
        words = wording(name)
        assert words is not OTHER
        assert all(text.startswith("@") for text in words.papers.values())
    contents = read_contents(folder)
    assert contents.family == "unconditional"
    assert folder.name == contents.model_id


def test_the_network_of_a_model_with_two_components(folder):
    """It is the one that the family names, wherever its name stands in the alphabet."""
    index = {"_class_name": ["pipeline_vae", "VAEPipeline"], "vae": ["modeling_vae_model", "VAEModel"]}
    index["discriminator"] = ["diffusers", "UNet2DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, size in {"discriminator": 4, "vae": 16}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"in_channels": 1, "sample_size": size}))
    (folder / "run.json").write_text("{}")
    contents = read_contents(folder)
    assert (contents.family, contents.saved.network["sample_size"]) == ("vae", 16)
    assert contents.saved.network_has_code


def test_the_snippet_of_a_plain_network_runs_its_own_pipeline(folder):
    index = {
        "_class_name": ["pipeline_unconditional", "UnconditionalPipeline"],
        "unet": ["modeling_plain_unet", "PlainUNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (snippet,) = code(render_card(folder), "python")
    assert "DiffusionPipeline.from_pretrained" in snippet
    assert "DDIMScheduler.from_config" in snippet
    assert "pipeline(num_inference_steps=50, seeds=[0, 1])" in snippet
    assert "DDPMPipeline" not in snippet


@pytest.mark.parametrize(("name", "trust"), [("LDMPipeline", False), (["pipeline_mine", "MyPipeline"], True)])
def test_a_pipeline_of_no_family_is_an_image_generator(folder, name, trust):
    """Not a family that happens to be the default, with its papers and its flags."""
    index = {"_class_name": name, "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    text = render_card(folder)
    assert "An image generator of 8x8 grey images" in text
    assert ModelCard(text).data.tags == ["diffusers", "trilemma", "diffusion"]
    assert "The flags are unknown" in text
    (snippet,) = code(text, "python")
    assert ("trust_remote_code" in snippet) == trust
    assert "seeds" not in snippet
    assert (name[1] if trust else name) in text


def with_plain_values(row):
    """A row of the table of results as it was when the value was the plain one."""
    name, value, interval, plain, *others = row[0].strip("|").split("|")
    was_plain = any(letter.isdigit() for letter in plain)
    return f"|{'|'.join([name, plain if was_plain else value, interval, *others])}|"


def as_of_wording_1(card):
    """A card as an earlier version rendered it."""
    comment = f"<!-- This page is rendered from the files beside it (wording {WORDS}). [^<>]* -->\n\n"
    card, count = re.subn(comment.replace("(", r"\(").replace(")", r"\)"), "", card)
    assert count == 1
    note = " This page is rendered from the files beside it; edit them, and render it again."
    card = card.replace(" with Trilemma.\n", f" with Trilemma.{note}\n")
    card = re.sub("^\\| network \\|.*\n", "", card, flags=re.MULTILINE)
    card = re.sub(r"^\| sampled with .*?<summary>.*?\n\n", "", card, flags=re.MULTILINE | re.DOTALL)
    card = card.replace("\n\n</details>", "")
    card = re.sub(r"^\|(?:[^|\n]*\|){11}$", with_plain_values, card, flags=re.MULTILINE)
    card = re.sub(r"num_inference_steps=\d+, seeds", "num_inference_steps=50, seeds", card)
    card = re.sub("^- It has learned only.*$", "- It knows nothing but its data.", card, flags=re.MULTILINE)
    for sampler, scheduler in (("ddpm", "DDPMScheduler"), ("ddim", "DDIMScheduler")):
        card = card.replace(f"sampler: {sampler}\n", f"sampler: {scheduler}\n")
        card = card.replace(f"| {sampler}, ", f"| {scheduler}, ")
    return card


def test_the_words_of_an_older_card_are_not_edits(folder, capsys):
    """Nor the old name of its sampler; what it says instead is how to render it again."""
    append(folder / "results.jsonl", [result(0.25, sampler="ddpm", interval=(0.125, 0.5))])
    card = as_of_wording_1(write_card(folder).read_text())
    (folder / "README.md").write_text(card)
    older = {k: v for k, v in result(0.25, interval=(0.125, 0.5)).to_json().items() if k in REQUIRED}
    (folder / "results.jsonl").write_text(json.dumps(older | {"sampler": "DDPMScheduler"}))
    comparison = compare_card(folder)
    assert (comparison.figures, comparison.differences) == (2, [])
    main([str(folder), "--verify"])
    printed = capsys.readouterr().out
    assert f"since its wording is number 1 and the present one {WORDS}" in printed
    assert f"to render it again: python -m trilemma.model_cards.card {folder}" in printed
    by_hand = re.sub("^.*This page is rendered.*$", "My model.", card, flags=re.MULTILINE)
    (folder / "README.md").write_text(by_hand)
    assert compare_card(folder) == Comparison(2)
    write_card(folder)
    assert compare_card(folder) == Comparison(2)


def test_new_results_render_a_card_again_unless_somebody_edited_it(folder, capsys):
    """Under the id that it has; the page is compared as a whole, so no edit is small enough to be lost."""
    card, results = folder / "README.md", folder / "results.jsonl"
    card.write_text(render_card(folder, "user/model"))
    with card_follows(str(folder)):
        append(results, [result(0.125)])
    assert card.read_text() == render_card(folder, "user/model")
    assert compare_card(folder).differences == []
    assert capsys.readouterr().out == f"rendered {card} again\n"
    said = ""
    for edited in (card.read_text() + "Mine.\n", "# Mine\n"):
        card.write_text(edited)
        with card_follows(str(folder)):
            pass
        assert capsys.readouterr().out == ""
        with card_follows(str(folder)):
            append(results, [result(0.0625, seeds=f"0..{len(edited)}")])
        assert card.read_text() == edited
        said += capsys.readouterr().out
    assert said.count("stays as it is") == 1  # a page that was never rendered is nobody's business
    for other in ("user/model", None):
        with card_follows(other):
            card.write_text(edited)
    assert capsys.readouterr().out == ""


def test_what_to_do_about_a_stale_card_comes_first_and_runs_as_pasted(folder):
    """One evaluation moves dozens of lines."""
    folder = folder.rename(folder.with_name("my model"))
    write_card(folder)
    append(folder / "results.jsonl", [result(1 + k / 8, f"metric_{k}") for k in range(9)])
    first, *rest = compare_card(folder).message(folder).splitlines()
    assert len(rest) == SHOWN + 1
    words = shlex.split(first[first.index("python -m") :])
    assert words[:3] == ["python", "-m", "trilemma.model_cards.card"]
    main(words[3:])
    assert compare_card(folder).differences == []


@pytest.mark.parametrize("edit", [
    ("| 0.25 |", "| 0.2 |"),
    ("value: 0.25", "value: 0.2"),
    ("  name: kid", "  name: fid"),
    ("## Data\n", "| metric | value |\n| --- | --- |\n| fid | 1.02 |\n\n## Data\n"),
    ("images = pipeline", "images = other"),
    ("A &lt;Processor&gt;", "A watch"),
    ("--preset digits", "--preset mnist"),
])  # fmt: skip
def test_an_edited_fact_of_an_older_card_is_found(folder, edit):
    append(folder / "results.jsonl", [result(0.25)])
    card = as_of_wording_1(write_card(folder).read_text())
    assert card.count(edit[0]) == 1
    edited = card.replace(*edit)
    (folder / "README.md").write_text(edited)
    differences = compare_card(folder).differences
    assert differences
    for number, line in enumerate(edited.splitlines(), 1):
        if line not in card.splitlines():
            line = line.replace("DDIMScheduler", "ddim")  # it is compared under its present name
            assert f"line {number} is not from the files: {line}" in differences


def test_a_change_of_the_words_is_counted(folder):
    """If this fails, the text of cards has changed: count WORDS up in `rendering/render.py`, and put the new
    digest here. Otherwise cards that were rendered before would be reported as edited.
    """
    prose = hashlib.sha256()
    append(folder / "results.jsonl", [result(0.25, forced=True), result(0.5, "copying")])
    shutil.copytree(folder / "unet", folder / "vae")  # the name of the autoencoder's network
    for name in ("unconditional", "class_conditional", "ddgan", "vdm", "vae"):
        run = {**RUN, "family": name}
        (folder / "run.json").write_text(json.dumps(run))
        text = render_card(folder)
        facts = {line for _, line in differences._facts(text)}
        prose.update("\n".join(line for line in text.splitlines() if line not in facts).encode())
    assert WORDS == 9
    assert prose.hexdigest() == "767b25eff38d486a1e63621e3b9eea2eea07ea0c8fb52b18b10af9bf0b7d2259"
