"""The few-step benchmark: the GAN's steps follow from its seconds, and the page says what was measured."""

import argparse
import json
import sys

import pytest
from entry import ROOT

from trilemma.training.output_folder import OutputFolder


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import few_steps
    import few_steps_page

    yield few_steps, few_steps_page
    ours = ("speed", "kept_table", "few_steps", "few_steps_page", "few_steps_table", "points")
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]


def cell(seed: int, calls: int, fd: float) -> dict:
    return {
        "model": "DDPM", "seed": seed, "sampler": "ddim", "steps": calls, "calls": calls, "fd": fd,
        "floor": 0.25, "interval": [0, 1], "coverage": 0.5, "recall": 0.75, "seconds_per_image": 0.002,
    }  # fmt: skip


def points_cell(model: str, seed: int, energy: float, spread: float) -> dict:
    chain, steps = ("shortcut", 10) if model == "VDM" else ("", 0)
    return {
        "model": model, "seed": seed, "chain": chain, "steps": steps, "energy": energy, "spread": spread,
    }  # fmt: skip


POINTS = {
    "hardware": {"name": "processor"},
    "torch": "2",
    "cells": [
        points_cell("fresh points", 0, 0.1, 1), points_cell("VDM", 2, 4, 0.5), points_cell("VDM", 0, 2, 1)
    ],
}  # fmt: skip
KEPT = {
    "n": 100,
    "seconds_per_step": {"unconditional": 0.04, "flow": 0.04, "consistency": 0.08, "ddgan": 0.2},
    "hardware": {"name": "processor"},
    "torch": "2",
    "trainings": {"DDPM 0": {"steps": 7800, "images": 249600, "commit": "a", "flags": "--preset digits"}},
    "cells": [cell(0, 50, 1.25), cell(1, 50, 1.75), cell(0, 2, 9.25)],
}


def study(scripts, tmp_path, monkeypatch, **options):
    results = tmp_path / "few_steps.json"
    results.write_text(json.dumps({"digits": KEPT}))
    monkeypatch.setattr(scripts[0], "RESULTS", results)
    given = dict(data="digits", num_samples=100, output_dir=str(tmp_path), train_data_dir=None) | options
    return scripts[0].Study(argparse.Namespace(**given))


def test_the_gan_has_the_seconds_of_diffusion_and_consistency_model(scripts, tmp_path, monkeypatch):
    made = study(scripts, tmp_path, monkeypatch)
    monkeypatch.setitem(made.recipes, "consistency", "--preset digits --no-distil")
    monkeypatch.setattr(scripts[0], "PARENT", {})
    seconds = made.steps("DDPM", 0) * 0.04 + made.steps("consistency", 0) * 0.08
    assert made.steps("DDGAN", 0) * 0.2 == pytest.approx(seconds, abs=0.1)


def test_a_study_of_the_zoo_is_of_models_of_these_families_and_trains_none(scripts, tmp_path, monkeypatch):
    few_steps = scripts[0]
    for name, models in few_steps.PUBLISHED.items():
        made = study(scripts, tmp_path, monkeypatch, data=name, train_data_dir=str(tmp_path))
        monkeypatch.setattr(few_steps.subprocess, "run", None)
        for model in models:
            folder = OutputFolder(made.train(model, 0))
            assert folder.read_run()["family"] == few_steps.FAMILY[model]
            assert ROOT / made.recipes[model].removeprefix("--config ") == folder.config


def test_what_was_measured_of_a_replaced_model_is_forgotten(scripts, tmp_path, monkeypatch):
    few_steps, (name, models) = scripts[0], next(iter(scripts[0].PUBLISHED.items()))
    same, again = list(models)[:2]
    made = study(scripts, tmp_path, monkeypatch, data=name, train_data_dir=str(tmp_path))
    for model in (same, again):
        made.kept["trainings"][f"{model} 0"] = made.training(model, 0)
    made.kept["trainings"][f"{again} 0"]["commit"] = "another"
    made.kept["trainings"]["gone 0"] = {}
    made.kept["cells"] = [cell(0, 50, 1.0) | {"model": model} for model in (same, again, "gone")]
    made.kept["seconds_per_step"] = {}
    made.keep()
    read = few_steps.Study(made.options)
    assert [each["model"] for each in read.kept["cells"]] == [same]
    assert list(read.kept["trainings"]) == [f"{same} 0"]
    assert "seconds_per_step" not in read.kept


def test_other_numbers_of_samples_are_refused(scripts, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"--num_samples 200: few_steps.json is of 100 samples"):
        study(scripts, tmp_path, monkeypatch, num_samples=200)


def test_the_page_has_means_and_ranges_over_seeds(scripts, tmp_path, monkeypatch):
    page = scripts[1]
    (tmp_path / "docs" / "images").mkdir(parents=True)
    text = tmp_path / "docs" / "few_steps.md"
    text.write_text("before\n<!-- digits -->\nold\n<!-- end -->\n<!-- swirl -->\n<!-- end -->\nafter\n")
    points = tmp_path / "points.json"
    points.write_text(json.dumps(POINTS))
    study(scripts, tmp_path, monkeypatch)
    results = tmp_path / "few_steps.json"
    values = {"ROOT": tmp_path, "RESULTS": results, "OF_POINTS": points}
    for name, value in values.items():
        monkeypatch.setattr(page, name, value)
    page.main()
    page.main()  # the same numbers give the same page
    lines = text.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    assert "| DDPM | `ddim` | 2 | 9.00 | 0.50 | 0.75 | 2 |" in lines
    assert "| DDPM | `ddim` | 50 | 1.25 (1.00..1.50) | 0.50 (0.50..0.50) | 0.75 (0.75..0.75) | 2 |" in lines
    assert "| DDPM | 0 | 7,800 | 249,600 | 312 | `--preset digits` |" in lines
    assert "| DDGAN | not run | | | | |" in lines
    assert "| VDM | 0, 2 | shortcut, 10 steps | 3.00 (2.00..4.00) | 0.75 (0.50..1.00) |" in lines
    assert "| fresh points |  |  | 0.10 | 1.00 |" in lines
    assert "| K = 10 |  | shortcut, 200 steps | not run | not run |" in lines
    assert (tmp_path / "docs" / "images" / "few-steps-digits.png").stat().st_size > 1000
    text.write_text("no lines")
    with pytest.raises(SystemExit, match="<!-- digits -->"):
        page.main()
