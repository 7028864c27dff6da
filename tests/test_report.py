"""`report.html`: every number, self-contained, escaped, small. `test_report_browser.py` opens it."""

import base64
import io
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from test_compare import BITS, LINE, folder

from trilemma.eval.compare import main
from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.plots.process import process as process_figure
from trilemma.eval.report import page as page_module
from trilemma.eval.report import pictures
from trilemma.eval.report.details import commands
from trilemma.eval.report.drawing import draw
from trilemma.eval.report.groups import data_of, groups
from trilemma.eval.report.page import html_page
from trilemma.eval.report.pictures import Drawn, Frames
from trilemma.eval.report.verdicts import verdict
from trilemma.eval.report.words import count, figure, in_units, shown
from trilemma.eval.studies.models import read_models
from trilemma.pipelines import as_ours
from trilemma.training.images.image_set import to_uint8
from trilemma.training.options.parser import parse_flags
from trilemma.training.output_folder import OutputFolder

HOSTILE = "<img src=x onerror=alert(1)>&\"'\u202e"
COVERAGE = {**LINE, "metric": "coverage_classifier", "value": 0.8, "interval": [0.7, 0.9], "floor": None}


def command(family, config, hardware):
    return f"accelerate launch training/train_{family}.py"


def with_family(place, family="unconditional", **config):
    """A folder of `test_compare.folder`, with a family and flags."""
    run = OutputFolder(place).run
    run.write_text(json.dumps({**json.loads(run.read_text()), "family": family}))
    OutputFolder(place).config.write_text(yaml.safe_dump({"seed": 0, "dataset_name": "digits"} | config))
    return str(place)


def picture(path, size=(40, 40), grey=True):
    values = np.random.default_rng(0).integers(0, 256, (*size, 1 if grey else 3), dtype=np.uint8)
    Image.fromarray(np.repeat(values, 3, -1) if grey else values).save(path)


def models_of(tmp_path, **lines):
    """Folders by name, with their results."""
    return read_models([with_family(Path(folder(tmp_path, name, each))) for name, each in lines.items()])


def html_of(models, drawn=None, goals=()):
    return html_page(models, goals, drawn or {}, command)


class Elements(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.00055, "0.55 ms"), (0.267, "267 ms"), (1.5, "1.5 s"), (59.4, "59.4 s"), (59.7, "1 min"),
     (1278, "21 min"), (4706.8, "1 h 18 min"), (7200, "2 h"), (180_000, "2 d 2 h")],
)  # fmt: skip
def test_durations_are_plain(seconds, said):
    assert in_units(seconds) == said


def test_numbers_are_plain():
    values = (0, 0.03842, 4.682, 12.11, 1452.0, 256_000, 1e-12, 0.000123)
    assert [*map(figure, values)] == ["0", "0.0384", "4.68", "12.1", "1,452", "256,000", "0", "0.000123"]
    assert [count(n) for n in (17, 627_433, 2_540_000, 3_000_000_000)] == [
        "17", "627,433", "2.54 million", "3 billion",
    ]  # fmt: skip


def test_every_measure_is_on_the_page_with_its_commands(tmp_path):
    lines = [LINE, COVERAGE, {**LINE, "metric": "kid_classifier", "value": 0.0123, "interval": None}]
    lines += [{**LINE, **BITS, "metric": "bpd_test", "value": 2.125, "num_inference_steps": 20, "n": 60}]
    models = models_of(tmp_path, one=lines)
    text = html_of(models)
    for name in ("fd_classifier", "coverage_classifier", "kid_classifier", "bpd_test"):
        assert f'<th scope="row">{name}</th>' in text
    assert "0.0123" in text
    assert "accelerate launch training/train_unconditional.py" in text
    of_samples, of_bits = commands(models[0])
    assert of_samples.endswith(
        "--model one --metrics fd prdc kid --num_samples 2000 --sampler ddim --num_inference_steps 50 "
        "--seed 0 --feature_extractor classifier"
    )
    assert of_bits.endswith("--metrics bpd --bpd_timesteps 20 --bpd_images 60")


def test_the_commands_are_ones_that_the_entry_point_takes(tmp_path):
    """And ask it for what the line says."""
    guided = {
        **LINE, "guidance_scale": 1.5, "classes": "0 'a b'", "mixed_precision": "bf16", "seeds": "7..2006"
    }  # fmt: skip
    (model,) = models_of(tmp_path, one=[guided, {**LINE, **BITS, "metric": "bpd_test"}])
    parsed = []
    for line in commands(model):
        words = shlex.split(line)
        parsed.append(parse_flags(EvaluateConfig, "", words[words.index("eval/evaluate.py") + 1 :]))
    asked = parsed[0].sampling
    assert (asked.guidance_scale, asked.classes, asked.mixed_precision) == (1.5, ("0", "a b"), "bf16")
    assert (asked.seed, asked.num_samples, asked.sampler, asked.num_inference_steps) == (7, 2000, "ddim", 50)
    assert [one.score.metrics for one in parsed] == [("fd",), ("bpd",)]


def test_charts_and_sorting_have_the_numbers_of_the_files(tmp_path):
    line = {**LINE, "nfe": 7, "seconds_per_image": 0.25, "debiased": 2.5, "forced": True}
    logged = [{"step": 50, "seconds": 6.0, "validation_bpd": 4.0}]
    lines = {"a": line, "b": line, "c": {**line, "n": 500}}
    cover = {**COVERAGE, "floor": 0.95}
    paths = [with_family(Path(folder(tmp_path, name, [one, cover], logged))) for name, one in lines.items()]
    text = html_of(read_models(paths))
    (group,) = json.loads(re.findall(r'id="numbers">(.*?)</script>', text, re.DOTALL)[0])
    assert [list(metric.values()) for metric in group["metrics"]] == [
        ["fd_classifier", "quality", "lower", None],  # a value without its bias has no floor
        ["coverage_classifier", "coverage", "higher", 0.95],
    ]
    for row in group["rows"]:
        cost = {"training": 12.5, "images": 6400, "parameters": 17}
        assert row["x"] == {"calls": 7, "time": 0.25, **cost}
        value = row["values"]["fd_classifier"]
        assert (value["value"], value["interval"]) == (2.5, [0.5, 3.5])
        assert value["remark"] == ("n 500, not 2,000" if row["name"] == "c" else "")
    curves = {(one["name"], one["metric"]): one for one in group["curves"]}
    assert [curves[name, "fd_classifier"]["alike"] for name in lines] == [True, True, False]
    for name in lines:
        (point,) = curves[name, "bits per dimension"]["points"]
        assert (point["images"], point["seconds"], point["value"]) == (50 * 64, 6.0, 4.0)
    assert text.count('data-value="2.5"') == text.count("<small>forced</small>") == 3


def test_the_page_needs_nothing_but_itself(tmp_path):
    models = models_of(tmp_path, one=[LINE], two=[{**LINE, "n": 500}])
    for model in models:
        picture(model.folder.samples)
    text = html_of(models)
    sources = [
        v for _, attributes in Elements(text).tags for k, v in attributes.items() if k in ("src", "href")
    ]
    assert {value.split(",")[0] for value in sources if not value.startswith("#")} == {
        "data:image/png;base64", "data:",
    }  # fmt: skip
    scripts = re.sub(r'"http://www\.w3\.org/2000/svg"', "", text)
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket", scripts)
    assert "default-src 'none'" in text


def test_names_from_files_are_text_and_nothing_else(tmp_path):
    line = {**LINE, "reference": HOSTILE, "classes": HOSTILE}
    place = Path(folder(tmp_path, "one", [line]))
    with_family(place, family=HOSTILE, dataset_name=HOSTILE)
    run = json.loads(OutputFolder(place).run.read_text())
    versions = {HOSTILE: "{{style}}"}
    OutputFolder(place).run.write_text(
        json.dumps({**run, "commit": "</script><script>alert(1)</script>", "versions": versions})
    )
    model = replace(*read_models([str(place)]), name=f"{HOSTILE}\udc80{{{{script}}}}")
    picture(model.folder.samples)
    text = html_of([model], {model.name: Drawn(None, HOSTILE)})
    text.encode()
    tags = Elements(text).tags
    assert not [attributes for _, attributes in tags if "onerror" in attributes]
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert "\u202e" not in text
    assert "{{style}}" in text
    (numbers,) = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', text, re.DOTALL)
    assert json.loads(numbers)[0]["rows"][0]["name"] == model.name


def test_shown_text_is_one_line_of_visible_characters():
    assert shown("a\n <b>\x00\udc80") == "a &lt;b&gt;\ufffd?"


def test_models_of_other_data_are_not_compared_and_have_a_best_each(tmp_path):
    far = {**LINE, "value": 9.0, "interval": [8.0, 10.0]}
    near = {**LINE, "value": 0.9, "interval": [0.4, 1.4], "reference": "mnist", "data_fingerprint": "e" * 64}
    names = {"a": [LINE], "b": [far], "c": [near], "d": [{**near, "n": 500}], "e": []}
    sets = {"a": "digits", "b": "digits", "c": "ylecun/mnist", "d": "ylecun/mnist", "e": "ylecun/mnist"}
    paths = [
        with_family(Path(folder(tmp_path, name, lines)), dataset_name=sets[name])
        for name, lines in names.items()
    ]
    digits, mnist = groups(read_models(paths))
    assert (digits.data, mnist.data) == ("digits", "mnist")
    assert said_of(digits) == [("best value", ""), ("one training only", "samples score worse")]
    assert said_of(mnist) == [("only one", ""), ("not comparable", ""), ("not measured", "")]
    assert mnist.remark(mnist.rows[1].picked["fd_classifier"]) == "n 500, not 2,000"


def said_of(group):
    return [verdict(group, row)[1:] for row in group.rows]


def seeds_of(tmp_path, name, values, **flags):
    """Folders of one training with the seeds 0, 1, 2, ... whose intervals over samples are narrow."""
    lines = [{**LINE, "value": value, "interval": [value - 0.01, value + 0.01]} for value in values]
    places = [Path(folder(tmp_path, f"{name}{k}", [line])) for k, line in enumerate(lines)]
    return [with_family(place, seed=k, **flags) for k, place in enumerate(places)]


def test_single_trainings_are_never_worse(tmp_path):
    """Their samples may be; and one of the two that was repeated is not enough."""
    other = {**LINE, "value": 3.2, "interval": [3.1, 3.3]}
    (group,) = groups(models_of(tmp_path, a=[LINE], b=[other], c=[{**LINE, "value": 4, "interval": None}]))
    small = ["samples: no clear difference", "samples: behind, no interval"]
    assert said_of(group) == [("best value", ""), *(("one training only", words) for words in small)]
    twice = seeds_of(tmp_path, "twice", [1.0, 1.1], learning_rate=1e-2)
    once = seeds_of(tmp_path, "once", [2.0], learning_rate=1e-3)
    (group,) = groups(read_models([*twice, *once]))
    assert said_of(group)[2] == ("one training only", "samples score worse")
    assert 'class="verdict worse"' not in html_of(group.models)


def test_repeated_trainings_have_the_verdict_over_seeds(tmp_path):
    best = seeds_of(tmp_path, "best", [1.0, 1.1, 0.9], learning_rate=1e-2)
    near = seeds_of(tmp_path, "near", [1.0, 1.2, 1.1], learning_rate=1e-3)
    far = seeds_of(tmp_path, "far", [2.0, 2.1, 1.9], learning_rate=1e-4)
    (group,) = groups(read_models([*best, *near, *far]))
    said = said_of(group)
    assert said[:3] == [("same training", "samples score worse")] * 2 + [("best value", "")]
    assert said[3:] == [("inconclusive", "")] * 3 + [("worse", "")] * 3


def test_the_best_value_may_be_of_the_worse_training(tmp_path):
    lucky = seeds_of(tmp_path, "lucky", [0.9, *[3.0] * 8], learning_rate=1e-2)
    steady = seeds_of(tmp_path, "steady", [1.0] * 9, learning_rate=1e-3)
    (group,) = groups(read_models([*lucky, *steady]))
    assert {each[0] for each in said_of(group)[9:]} == {"better"}


def test_what_was_left_of_the_data_is_another_data_set(tmp_path):
    place = Path(folder(tmp_path, "one", [LINE]))
    with_family(place, dataset_name="uoft-cs/cifar10", classes=["airplane"], resolution=16)
    (model,) = read_models([str(place)])
    assert data_of(model) == "cifar10, airplane, 16x16"


def test_models_without_a_bound_are_named_with_the_reason(tmp_path):
    paths = [
        with_family(Path(folder(tmp_path, "gan", [LINE])), family="ddgan"),
        with_family(Path(folder(tmp_path, "plain", [LINE]))),
    ]
    text = html_of(read_models(paths))
    assert "gan (digits): models of the family ddgan have none" in text
    assert "plain (digits): it was not measured" in text


def test_targets_and_repeated_trainings_are_on_the_page(tmp_path):
    curve = [{**LINE, "step": step, "images_seen": 64 * step, "value": 100 / step} for step in (20, 50, 100)]
    paths = [with_family(Path(folder(tmp_path, f"seed{k}", curve)), seed=k) for k in range(2)]
    text = html_of(read_models(paths), goals=[("fd_classifier", 2.0)])
    assert "Images seen to reach fd_classifier = 2" in text
    assert "Which training is better?" in text
    assert "Which training is better?" not in html_of(read_models(paths[:1]))
    (group,) = json.loads(re.findall(r'id="numbers">(.*?)</script>', text, re.DOTALL)[0])
    assert [len(one["points"]) for one in group["curves"]] == [3, 3]


def process_of(rows=3, states=4, side=9, grey=True):
    """The figure of a process, and the images from noise to clean that it shows, (rows, states, C, H, W)."""
    images = torch.randint(0, 256, (2, rows, states, 1 if grey else 3, side, side), dtype=torch.uint8)
    times = torch.linspace(0, 1, states).tolist()
    return process_figure(*images, times), images[1]


@pytest.mark.parametrize(("rows", "states", "grey"), [(3, 4, True), (4, 9, False), (1, 5, True)])
def test_the_states_of_a_process_are_its_images_again(tmp_path, rows, states, grey):
    """Differential: the figure is drawn, cut, and compared with what was drawn."""
    figure, images = process_of(rows, states, grey=grey)
    place = tmp_path / "m"
    (place / "net").mkdir(parents=True)
    (place / "model_index.json").write_text('{"_class_name": "P", "net": ["x", "Y"]}')
    (place / "net" / "config.json").write_text('{"sample_size": 9}')
    figure.savefig(place / "process.png", dpi=150)
    frames = pictures.process(OutputFolder(place))
    assert len(frames.labels) == states
    array = np.asarray(frames.image)
    width = array.shape[1] // states
    for state in range(states):
        for row in range(rows):
            top, left = row // 2 * 10, state * width + row % 2 * 10
            shown_now = array[top : top + 9, left : left + 9].astype(int).reshape(9, 9, -1)
            # savefig may blur the edge of a pixel, not its middle
            expected = images[row, state].permute(1, 2, 0).numpy()
            assert np.abs(shown_now - expected).max() <= 2


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n0000"])
def test_a_damaged_picture_gives_none(tmp_path, content):
    path = tmp_path / "samples.png"
    path.write_bytes(content)
    assert pictures.opened(path) is None
    assert pictures.opened(tmp_path / "missing.png") is None


def test_a_picture_of_another_layout_gives_no_slider(tmp_path):
    models = models_of(tmp_path, one=[LINE])
    picture(tmp_path / "one" / "process.png", (300, 500))
    assert pictures.process(models[0].folder) is None


def test_a_huge_picture_is_not_opened(tmp_path, monkeypatch):
    picture(tmp_path / "samples.png")
    monkeypatch.setattr(pictures, "LARGEST", 1599)
    assert pictures.opened(tmp_path / "samples.png") is None


def test_pictures_become_smaller_until_the_page_fits(tmp_path, monkeypatch):
    models = models_of(tmp_path, one=[LINE], two=[LINE])
    for model in models:
        picture(model.folder.samples, (400, 400), grey=False)
    whole = len(html_of(models).encode())
    bare = len(html_of(models_of(tmp_path / "bare", one=[LINE], two=[LINE])).encode())
    sizes = []
    for limit in (whole, (whole + bare) // 2, bare + 15_000):
        monkeypatch.setattr(page_module, "MOST_BYTES", limit)
        text = html_of(models)
        sizes.append(len(text.encode()))
        assert sizes[-1] <= limit
    assert whole > sizes[1] > sizes[2]
    assert page_module.LEFT_OUT in text


def test_a_picture_keeps_its_levels_of_grey():
    grey = np.repeat(np.arange(0, 256, 17, dtype=np.uint8)[None], 20, 0)
    (url,) = pictures.urls([Image.fromarray(grey)], 10_000)
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert (np.asarray(image.convert("L")) == grey).all()


def test_a_slider_is_only_where_something_was_drawn(tmp_path):
    models = models_of(tmp_path, one=[LINE], two=[LINE])
    sheets = Image.new("L", (30, 10))
    drawn = {"one": Drawn(Frames(sheets, ("1 call", "4 calls", "8 calls"), (1, 4, 8)), "seeds 0 to 3")}
    assert 'id="calls"' not in html_of(models)
    text = html_of(models, drawn | {"two": Drawn(None, "its folder has no weights to draw with")})
    assert 'data-calls="1 4 8"' in text
    assert "Not drawn for this page: its folder has no weights to draw with." in text


def test_each_model_draws_the_same_seeds_in_few_and_many_calls(tmp_path):
    """Differential: a sheet of the page against the pipeline itself."""
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1,
        norm_num_groups=2, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    stock = DDPMPipeline(net, DDPMScheduler(timestep_spacing="trailing"))
    pipeline, place = as_ours(stock, "unconditional").with_sampler("ddim"), tmp_path / "one"
    stock.save_pretrained(place)
    (place / "run.json").write_text('{"family": "unconditional"}')
    (place / "config.yaml").write_text("sampler: ddim\nddpm_num_inference_steps: 10\nseed: 0\n")
    (drawn,) = draw(read_models([str(place)]), 3).values()
    assert drawn.frames.values == (1, 2, 5, 10)
    assert drawn.said == "seeds 0 to 2, ddim"
    pipeline.set_progress_bar_config(disable=True)
    images = to_uint8(pipeline(seeds=range(3), num_inference_steps=5, output_type="pt").images).numpy()
    width = drawn.frames.image.width // 4
    sheet = np.asarray(drawn.frames.image)[:, 2 * width : 3 * width]
    for k, image in enumerate(images):
        top, left = k // 2 * 9, k % 2 * 9
        shown_now = sheet[top : top + 8, left : left + 8].astype(int)
        assert np.abs(shown_now - image[0]).max() <= 1  # rounding to 8 bits


def test_too_many_images_to_draw_are_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["--models", "x", "--draw", "65"])
    assert "--draw must be at most 64" in capsys.readouterr().err
