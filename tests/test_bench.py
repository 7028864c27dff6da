"""The benchmark's harness: a case runs in turn, its ratios are right, and its files are written."""

import json
import sys

import pytest
from entry import ROOT


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from speed import harness

    yield harness
    for name in [name for name in sys.modules if name.split(".")[0] == "speed"]:
        del sys.modules[name]


def test_a_case_runs_interleaved_and_its_table_is_written(speed, tmp_path):
    order = []
    values = {"theirs": iter([9.0, 8.0, 4.0, 8.0, 4.0]), "ours": iter([9.0, 4.0, 2.0])}

    def run(name: str) -> float:
        order.append(name)
        return next(values[name])

    rows = {name: lambda name=name: run(name) for name in values}
    case = speed.Case("steps", "small", rows, rounds=2, clock="memory", warm=1)
    table = speed.Table({"processor": "one", "versions": {"torch": "2"}})
    got = list(speed.run_cases([case, speed.Skipped("steps", "theirs", "it is not installed")], table))

    # Warm-up, a round, and a round in reversed order; the baseline comes twice in each.
    assert order == ["theirs", "ours", "theirs", "ours", "theirs", "theirs", "ours", "theirs"]
    row = got[0]
    assert (row.what, row.baseline, row.unit, row.rounds) == ("ours", "theirs", "MB", 2)
    assert (row.ratio, row.lowest, row.highest) == (2.0, 2.0, 2.0)  # 8 / 4, and 4 / 2
    assert row.tie == (0.5, 2.0)

    speed.write(table, tmp_path, "python benchmarks/bench.py")
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert stored["command"] == "python benchmarks/bench.py"
    assert stored["rows"][0]["ratio"] == 2.0
    assert stored["skipped"][0]["why"] == "it is not installed"
    text = (tmp_path / "bench.md").read_text()
    assert "| steps: small | ours | theirs | **2.00** | 2.00 to 2.00 | 0.50 to 2.00 | " in text
    assert "it is not installed" in text
    assert "processor one; torch 2" in text


def test_groups_have_names(speed):
    assert speed.chosen(["a", "b"], None) == ["a", "b"]
    assert speed.chosen(["a", "b"], ["b"]) == ["b"]
    with pytest.raises(ValueError, match="--only must be of a, b; got 'c'"):
        speed.chosen(["a", "b"], ["c"])
