"""Comparisons of output folders: what may stand side by side, where targets were reached, the charts."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from trilemma.eval.plots.charts import quality_speed
from trilemma.eval.scoring.naming import metric_name
from trilemma.eval.scoring.results import SAMPLING, ResultLine
from trilemma.eval.studies.model_table import figures, pick, standard_protocols, trilemma, ways
from trilemma.eval.studies.models import read_models
from trilemma.eval.studies.tables import Marks, cell
from trilemma.eval.studies.targets import check_target, curve_of, parse_target, reach, section

LINE = {
    "metric": "fd_classifier", "value": 3.0, "interval": [0.5, 3.5], "floor": 0.4, "source": "m", "n": 2000,
    "seeds": "0..1999", "sampler": "ddim", "num_inference_steps": 50, "nfe": 50, "classes": None,
    "guidance_scale": None, "seconds_per_image": 0.01, "device": "cpu", "step": 100, "images_seen": 6400,
    "feature_extractor": "classifier", "extractor_sha256": "a" * 64, "resize": "none",
    "quantisation": "uint8", "reference": "digits", "reference_split": "train", "reference_n": 1733,
    "data_fingerprint": "f" * 64, "forced": False, "judge_accuracy": None, "commit": None, "created": "now",
}  # fmt: skip
BITS = {"feature_extractor": None, "sampler": None, "nfe": None, "seconds_per_image": None, "floor": None}
CPU = {"device": "cpu", "name": "one", "processes": 1, "threads": 1, "mixed_precision": "no"}


def folder(root, name, lines=(), scalars=(), hardware=CPU):
    place = root / name
    (place / "logs").mkdir(parents=True)
    (place / "net").mkdir()
    (place / "model_index.json").write_text(
        '{"_class_name": "P", "net": ["x", "Y"], "class_names": {"0": "a"}}'
    )
    save_file({"w": torch.zeros(3, 4), "b": torch.zeros(5)}, place / "net" / "model.safetensors")
    run = {"steps": 100, "images_seen": 6400, "seconds": 12.5, "hardware": hardware}
    (place / "run.json").write_text(json.dumps(run))
    for file, rows in (("results.jsonl", lines), ("logs/scalars.jsonl", scalars)):
        (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)


def table(*folders):
    models, marks = read_models(folders), Marks()
    return trilemma(models, standard_protocols(models), marks), marks.remarks


def rows(text):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_one_row_a_model_with_quality_coverage_speed_likelihood_and_cost(tmp_path):
    lines = [LINE, {**LINE, "metric": "coverage_classifier", "value": 0.9, "floor": None}]
    lines += [
        {**LINE, **BITS, "metric": "bpd_test", "value": 2.1},
        {**LINE, **BITS, "metric": "bpd_test_prior"},
    ]
    text, said = table(folder(tmp_path, "one", lines))
    (row,) = rows(text)
    assert row == {
        "model": "one", "sampling": "ddim, 50 steps", "fd_classifier": "3 (0.5 .. 3.5), floor 0.4",
        "coverage_classifier": "0.9 (0.5 .. 3.5)", "bpd_test": "2.1 (0.5 .. 3.5)", "NFE": "50",
        "s / image": "0.01", "training s": "12.5", "images seen": "6,400", "parameters": "17",
    }  # fmt: skip
    assert not said


def test_large_numbers_have_no_exponent():
    assert [cell(value) for value in (2701.4, 999.0, 0.12345, 192_000, None, "ddim")] == [
        "2,701", "999", "0.123", "192,000", "", "ddim"
    ]  # fmt: skip


def test_a_biased_value_stands_beside_the_estimate_and_its_floor_is_in_no_chart(tmp_path):
    """Of a line of an older file, which has no debiased value, the middle of the interval is shown."""
    older, newer = {**LINE, "interval": [2.5, 2.9]}, {**LINE, "interval": [0.0, 1.5], "debiased": 0.7}
    rounded = {**LINE, "value": 1.0, "interval": [0.98, 1 - 2**-53]}  # an end as older versions rounded it
    lines = (LINE, older, newer, rounded)
    assert [ResultLine.from_json(line).estimate for line in lines] == [3.0, 2.7, 0.7, 1.0]
    text, _ = table(folder(tmp_path, "old", [older]), folder(tmp_path, "new", [newer]))
    shown = [row["fd_classifier"] for row in rows(text)]
    assert shown == ["2.7 (2.5 .. 2.9), plain 3, floor 0.4", "0.7 (0 .. 1.5), plain 3, floor 0.4"]
    models = read_models([str(tmp_path / name) for name in ("old", "new")])
    (axis,) = figures(models, standard_protocols(models))["fd_classifier-speed"].axes
    assert axis.get_legend_handles_labels()[1] == ["old", "new"]


@pytest.mark.parametrize(
    "change",
    [{"n": 500}, {"extractor_sha256": "b" * 64}, {"data_fingerprint": "g" * 64}, {"reference_split": "test"}],
)
def test_what_was_measured_otherwise_is_marked_and_left_out_of_the_charts(tmp_path, change):
    folders = [folder(tmp_path, "odd", [{**LINE, **change}])]
    folders += [folder(tmp_path, name, [{**LINE, "value": 3.2}]) for name in ("usual", "third")]
    text, said = table(*folders)
    odd, usual, _ = rows(text)
    assert odd["fd_classifier"].endswith(" [1]")
    assert "[" not in usual["fd_classifier"]
    (name,) = change
    assert said[0].startswith(f"not comparable: {name}")
    models = read_models(folders)
    axis = figures(models, standard_protocols(models))["fd_classifier-speed"].axes[0]
    assert axis.get_legend_handles_labels()[1] == ["usual", "third", "floor"]


def test_the_chart_of_speed_has_one_line_a_model_with_the_calls_at_its_points(tmp_path):
    slow = {**LINE, "num_inference_steps": 50, "nfe": 99, "seconds_per_image": 0.02, "value": 2.0}
    fast = {**LINE, "num_inference_steps": 5, "nfe": 5, "seconds_per_image": 0.001, "value": 3.0}
    models = read_models([folder(tmp_path, "two ways", [slow, fast]), folder(tmp_path, "one way", [fast])])
    axis = figures(models, standard_protocols(models))["fd_classifier-speed"].axes[0]
    two, one, _ = axis.lines  # and the floor
    assert (list(two.get_xdata()), list(two.get_ydata())) == ([0.001, 0.02], [3.0, 2.0])
    assert (two.get_label(), one.get_label()) == ("two ways", "one way")
    assert [(text.get_text(), text.xy) for text in axis.texts] == [
        ("5", (0.001, 3.0)), ("99", (0.02, 2.0)), ("5", (0.001, 3.0))
    ]  # fmt: skip


def test_the_chart_against_calls_needs_no_numbers_beside_its_points(tmp_path):
    slow = {**LINE, "num_inference_steps": 50, "nfe": 99, "seconds_per_image": 0.001, "value": 2.0}
    fast = {**LINE, "num_inference_steps": 5, "nfe": 5, "seconds_per_image": 0.02, "value": 3.0}
    (model,) = read_models([folder(tmp_path, "two ways", [slow, fast])])
    axis = quality_speed({model.name: model.lines}, in_calls=True).axes[0]
    assert (list(axis.lines[0].get_xdata()), list(axis.lines[0].get_ydata())) == ([5, 99], [3.0, 2.0])
    assert axis.get_xlabel() == "network calls per image"
    assert {text.get_text() for text in axis.texts} == {""}


def test_the_line_of_the_standard_protocol_wins_over_newer_ones_and_the_newest_of_equals(tmp_path):
    lines = [LINE, {**LINE, "value": 3.5}, {**LINE, "n": 100, "value": 9.0}]
    models = read_models([folder(tmp_path, "one", lines), folder(tmp_path, "two", [LINE])])
    standard = standard_protocols(models)["fd_classifier"]
    way = tuple(LINE.get(name) for name in SAMPLING)
    assert pick(models[0], "fd_classifier", way, standard).value == 3.5


def test_ways_to_sample_are_rows_and_early_evaluations_are_not(tmp_path):
    heun = {**LINE, "sampler": "heun", "nfe": 99, "value": 2.0}
    early = {**LINE, "step": 50, "sampler": "euler"}
    images = {**LINE, "seeds": None, "sampler": None}
    (model,) = read_models([folder(tmp_path, "one", [early, LINE, heun, images])])
    assert [key[0] for key in ways(model)] == ["ddim", "heun"]
    first, second = rows(table(str(tmp_path / "one"))[0])
    assert (first["NFE"], second["NFE"]) == ("50", "99")
    assert second["fd_classifier"].startswith("2 ")


def test_seconds_of_another_machine_are_marked(tmp_path):
    other = {**CPU, "name": "another", "threads": 8}
    text, said = table(
        folder(tmp_path, "one", [LINE]),
        folder(tmp_path, "two", [{**LINE, "device": "cuda"}], hardware=other),
    )
    assert rows(text)[1]["training s"] == "12.5 [2]"
    assert rows(text)[1]["s / image"] == "0.01 [1]"
    assert "cuda" in said[0]
    assert "threads 8, not 1" in said[1]


def test_folders_of_one_name_are_told_apart_and_what_is_no_model_is_refused(tmp_path):
    one, two = (folder(tmp_path / place, "model", [LINE]) for place in "ab")
    assert [model.name for model in read_models([one, two])] == [one, two]
    with pytest.raises(ValueError, match="twice"):
        read_models([one, one])
    with pytest.raises(ValueError, match="--models"):
        read_models([str(tmp_path)])


def curve(values, metric="fd_classifier", **change):
    """Evaluations at images 100, 200, 400, ... (steps 1, 2, 4, ...)."""
    return [
        {**LINE, "metric": metric, "value": value, "step": 2**i, "images_seen": 100 * 2**i, **change}
        for i, value in enumerate(values)
    ]


def parsed(lines):
    return [ResultLine.from_json(line) for line in lines]


def test_a_target_between_two_evaluations_is_interpolated_in_the_logarithm_of_images():
    reached = reach(parsed(curve([8.0, 6.0, 4.0, 5.0])), 5.0, {1: 10.0, 2: 20.0, 4: 40.0})
    assert not reached.first
    assert reached.images == pytest.approx(100 * 2**1.5)
    assert reached.seconds == pytest.approx(10 * 2**1.5)
    # A curve that is a straight line in log images is met exactly, wherever the evaluations are.
    line = [
        {**LINE, "images_seen": n, "step": n, "value": 20 - 2 * math.log(n)} for n in (100, 333, 2000, 9000)
    ]
    assert reach(parsed(line), 8.0, {}).images == pytest.approx(math.exp(6))
    assert reach(parsed(line), 8.0, {}).seconds is None


def test_a_target_met_at_once_is_a_bound_and_one_never_met_is_none():
    assert reach(parsed(curve([4.0, 3.0])), 5.0, {1: 10.0}).first
    assert reach(parsed(curve([4.0, 3.0])), 4.0, {1: 10.0}).images == 100
    assert reach(parsed(curve([8.0, 6.0])), 5.0, {}) is None
    assert reach([], 5.0, {}) is None
    rising = parsed(curve([0.5, 0.7, 0.9], metric="coverage_classifier"))
    assert reach(rising, 0.8, {}).images == pytest.approx(100 * 2**1.5)


def test_a_curve_holds_only_what_was_measured_alike():
    later = [{**LINE, "n": 50_000, "value": 1.0, "step": 4, "images_seen": 400}]
    longest = curve_of(parsed(curve([8.0, 6.0, 4.0]) + later), "fd_classifier")
    assert [line.value for line in longest] == [8.0, 6.0, 4.0]
    again = curve_of(parsed(curve([8.0, 6.0]) + curve([7.0])), "fd_classifier")
    assert [line.value for line in again] == [7.0, 6.0]
    assert curve_of(parsed(curve([8.0])), "kid_classifier") == []


def test_savings_are_told_against_the_first_model(tmp_path):
    def logged(values):
        return [{"step": 2**i, "seconds": 10.0 * 2**i, "fd_classifier": v} for i, v in enumerate(values)]

    runs = {"scratch": [8.0, 7.0, 5.0], "tuned": [6.0, 5.0, 4.0], "stuck": [9.0, 9.0]}
    folders = [folder(tmp_path, name, curve(v), logged(v)) for name, v in runs.items()]
    folders.append(folder(tmp_path, "odd", curve([5.0], n=7), logged([5.0])))
    marks = Marks()
    text = section(read_models(folders), *parse_target("fd_classifier=5"), marks)
    scratch, tuned, stuck, odd = rows("\n".join(line for line in text.splitlines() if line.startswith("|")))
    assert scratch == {
        "model": "scratch",
        "images": "400",
        "training s": "40",
        "images saved": "",
        "seconds saved": "",
    }
    assert (tuned["images"], tuned["images saved"], tuned["seconds saved"]) == (
        "200",
        "200 (50%)",
        "20 (50%)",
    )
    assert stuck["images"].startswith("not within 200 images")
    assert (odd["model"], odd["images"], odd["images saved"]) == ("odd [1]", "<= 100", "")
    assert marks.remarks == ["not comparable: other n than the first model's curve"]


def test_the_bound_of_every_family_is_drawn_against_steps_and_seconds(tmp_path):
    logs = [{"step": s, "seconds": s / 2, "bpd": 5 - s} for s in (1, 2)] + [
        {"step": 2, "seconds": 1, "validation_bpd": 4}
    ]
    folders = [folder(tmp_path, "vdm", scalars=logs), folder(tmp_path, "vae", scalars=logs[:2])]
    folders.append(folder(tmp_path, "gan", [LINE], scalars=[{"step": 1, "seconds": 1, "loss": 1}]))
    models = read_models(folders)
    axes = figures(models, standard_protocols(models))["elbo"].axes
    assert [axis.get_xlabel() for axis in axes] == ["optimizer steps", "seconds of training"]
    for axis, x in zip(axes, ([1, 2], [0.5, 1.0]), strict=True):
        train, held_out = axis.lines[:2]
        assert (list(train.get_xdata()), list(train.get_ydata())) == (x, [4, 3])
        assert list(held_out.get_ydata()) == [4]
    assert axes[0].get_legend_handles_labels()[1] == ["vdm", "vae (no held-out images)"]


def test_a_target_is_reached_from_the_side_that_its_metric_is_worse_on(tmp_path):
    """confident_share=0.8 is not reached at 0.2, and what has no better end is no target."""
    assert reach(parsed(curve([0.2, 0.6], metric="confident_share")), 0.8, {}) is None
    assert reach(parsed(curve([0.2, 0.9], metric="confident_share")), 0.8, {}).images > 100
    assert reach(parsed(curve([0.4, 0.1], metric="modes_kl")), 0.2, {}).images > 100
    lines = [*curve([1.2], metric="diversity_classifier"), *curve([0.2], metric="confident_share")]
    models = read_models([folder(tmp_path, "one", lines)])
    check_target("confident_share", models)
    with pytest.raises(ValueError, match="neither a higher nor a lower diversity is better"):
        check_target("diversity_classifier", models)


@pytest.mark.parametrize("extractor", ["inception", "classifier", "pixels"])
@pytest.mark.parametrize("name", ["fd", "kid", "coverage", "modes"])
def test_a_line_of_an_older_version_is_what_it_was_measured_as(name, extractor):
    metric = metric_name(name, extractor, 10_000, "train", whole=True)
    line = ResultLine.from_json({**LINE, "metric": metric, "feature_extractor": extractor})
    assert (line.measure, line.column) == (name, name)


def test_the_chart_of_the_bound_is_drawn_wherever_the_logs_are(tmp_path):
    place = folder(tmp_path, "one", scalars=[{"step": 1, "seconds": 1, "bpd": 4.0}])
    (tmp_path / "one" / "logs").rename(tmp_path / "one" / "records")
    (tmp_path / "one" / "config.yaml").write_text("logging_dir: records\n")
    models = read_models([place])
    assert figures(models, standard_protocols(models)).keys() == {"elbo"}


@pytest.mark.parametrize("word", ["fd_classifier", "fd_classifier=", "fd=low", "=5", "fd=nan", "fd=-inf"])
def test_a_bad_target_is_refused_by_name(word):
    with pytest.raises(ValueError, match="--target"):
        parse_target(word)


def test_the_command_writes_the_page_and_its_charts(tmp_path, capsys):
    from trilemma.eval.compare import main  # which needs no process of its own: there is no torch in it

    logs = [{"step": 1, "seconds": 1, "bpd": 4.0, "fd_classifier": 3.0}]
    folders = [folder(tmp_path, name, [*curve([3.0]), LINE], logs) for name in ("one", "two")]
    out = tmp_path / "out"
    main(["--models", *folders, "--target", "fd_classifier=5", "--output_dir", str(out)])
    charts = {"elbo.png", "fd_classifier-speed.png"}
    assert {path.name for path in out.iterdir()} == {"comparison.md", "report.html"} | charts
    page = (out / "comparison.md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "![elbo](elbo.png)" in page
    with pytest.raises(SystemExit, match="--models"):
        main(["--output_dir", str(out)])
    with pytest.raises(SystemExit, match=r"they have fd_classifier\. Did you mean"):
        main(["--models", *folders, "--target", "fd_clasifier=5", "--output_dir", str(out)])


def test_a_folder_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="--models names a folder twice"):
        read_models([str(tmp_path / "model"), f"{tmp_path}/./model/"])
