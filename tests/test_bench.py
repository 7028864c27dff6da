"""The benchmark's harness: a case runs in turn, its ratios are right, and its files are written."""

import sys

import pytest
import torch
from entry import ROOT

from trilemma.training.options.command_line import parse


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from speed import harness

    yield harness
    for name in [name for name in sys.modules if name.split(".")[0] in ("speed", "recipes")]:
        del sys.modules[name]


def test_a_case_runs_interleaved_and_its_table_is_written(speed, tmp_path):
    order = []
    values = {"theirs": iter([9.0, 8.0, 4.0, 8.0, 4.0]), "ours": iter([9.0, 4.0, 2.0])}

    def run(name: str) -> float:
        order.append(name)
        return next(values[name])

    rows = {name: lambda name=name: run(name) for name in values}
    case = speed.Case("steps", "small", rows, rounds=2, clock="memory", warm=1)
    table = speed.Table("python benchmarks/bench.py", {"processor": "one", "versions": {"torch": "2"}})
    got = list(speed.run_cases([case, speed.Skipped("steps", "theirs", "it is not installed")], table))

    # Warm-up, a round, and a round in reversed order; the baseline comes twice in each.
    assert order == ["theirs", "ours", "theirs", "ours", "theirs", "theirs", "ours", "theirs"]
    row = got[0]
    assert (row.what, row.baseline, row.unit, row.rounds) == ("ours", "theirs", "MB", 2)
    assert (row.ratio, row.lowest, row.highest) == (2.0, 2.0, 2.0)  # 8 / 4, and 4 / 2
    assert row.tie == (0.5, 2.0)

    other = speed.Table("another command", table.machine)
    speed.write({"other": other, "steps": table}, tmp_path)
    assert speed.read(tmp_path) == {"other": other, "steps": table}
    text = (tmp_path / "bench.md").read_text()
    assert "| steps: small | ours | theirs | **2.00** | 2.00 to 2.00 | 0.50 to 2.00 | " in text
    assert "it is not installed" in text
    assert "## steps\n\n`python benchmarks/bench.py`. processor one; torch 2" in text


def test_no_file_is_no_table(speed, tmp_path):
    assert speed.read(tmp_path) == {}


def test_groups_have_names(speed):
    assert speed.chosen(["a", "b"], None) == ["a", "b"]
    assert speed.chosen(["a", "b"], ["b"]) == ["b"]
    with pytest.raises(ValueError, match="--only must be of a, b; got 'c'"):
        speed.chosen(["a", "b"], ["c"])


def test_operations_are_counted_outside_of_layers_and_of_the_backward_pass(speed):
    from speed.operations import STEPS, operations

    layer, x = torch.nn.Linear(2, 2), torch.randn(3, 2)

    def step(more: int) -> None:
        y = layer(x).sum()  # one operation outside: the sum
        for _ in range(more):
            y = y * 2
        y.backward()

    assert STEPS > 1
    assert operations(lambda: step(3)) - operations(lambda: step(0)) == 3
    assert operations(lambda: layer(x)) == 0


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_processes_train_what_their_setting_says(speed, tmp_path, whose):
    from speed import steps

    setting = steps.SETTINGS["digits"]._replace(batch=4)
    loop = getattr(steps, whose)(setting, tmp_path, 1)
    loop.step()
    assert (loop.loop if whose == "ours" else loop).images_seen == 4


def test_a_change_of_a_recipe_goes_over_the_base(speed):
    import recipes

    base = recipes.flags_of(recipes.SETTINGS["digits"], recipes.VARIATIONS[recipes.BASE], [])
    half = recipes.flags_of(recipes.SETTINGS["digits"], recipes.VARIATIONS["half the rate"], [])
    assert half == [*base, "--learning_rate", str(float(base[base.index("--learning_rate") + 1]) / 2)]
    flow = recipes.flags_of(recipes.SETTINGS["digits"], recipes.VARIATIONS["flow"], ["--seed", "1"])
    assert flow == [*recipes.SETTINGS["digits"].flags, "--seed", "1"]
    for data, setting in recipes.SETTINGS.items():
        source = [] if data == "digits" else ["--train_data_dir", "images"]
        for each in recipes.VARIATIONS.values():
            parse(each.family, "", [*recipes.flags_of(setting, each, source), "--output_dir", "out"])


def test_the_table_of_recipes_has_verdicts_and_the_best_first(speed):
    import recipes

    variations = {
        recipes.BASE: {"cost": 1.0, "steps": 10, "distances": {"0": 5.0, "1": 5.2}},
        "flow": {"cost": 1.1, "steps": 9, "distances": {"0": 1.0, "1": 1.2}},
        "Huber loss": {"cost": 1.0, "steps": 10, "distances": {"0": 5.1}},
    }
    study = {"machine": {"processor": "one"}, "variations": variations}
    rows = [line.split(" | ") for line in recipes.table({"digits": study}).splitlines() if " | " in line]
    assert [row[0].strip("| ") for row in rows[2:]] == ["flow", recipes.BASE, "Huber loss"]
    assert [row[-1].strip("| ") for row in rows[2:]] == ["better", "", "one training only"]
