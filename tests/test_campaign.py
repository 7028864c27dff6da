"""A small share of the campaign against bad inputs, kills and full disks, through its own command."""

import json
import subprocess
import sys

import pytest
from entry import ROOT, environment

CAMPAIGN = [sys.executable, str(ROOT / "benchmarks" / "campaign.py")]


def campaign(folder, *flags):
    return subprocess.run(
        [*CAMPAIGN, "--output_dir", str(folder), *flags], env=environment(), capture_output=True, text=True
    )


@pytest.mark.long
def test_nothing_goes_wrong_and_a_cut_campaign_goes_on(tmp_path):
    share = ("--bad_inputs", "14", "--kills", "0", "--full_disks", "2")
    first = campaign(tmp_path, *share)
    assert first.returncode == 0, first.stdout + first.stderr
    file = tmp_path / "trials.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 16
    assert not list((tmp_path / "trials").iterdir())
    file.write_text("".join(lines[:13] + lines[14:]))
    again = campaign(tmp_path, *share)
    assert again.returncode == 0, again.stdout + again.stderr
    new = file.read_text().splitlines(keepends=True)
    assert new[:15] == lines[:13] + lines[14:]
    assert json.loads(new[15])["name"] == "input 13"
    assert "| **all** | 16 |" in (tmp_path / "campaign.md").read_text()


def test_what_is_wrong_is_reported(tmp_path, monkeypatch):
    """Each verdict, from how a run ended and from what it left."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from hazards.runs import Outcome, Trial, verdict

    kept = tmp_path / "kept"
    kept.write_text("old")
    trial = Trial("a flag", "script", (), ("--seed",), untouched=(kept,))
    before = trial.state()
    assert verdict(trial, Outcome(0, "", 1.0), before)[0] == "silent"
    assert verdict(trial, Outcome(None, "", 1.0), before)[0] == "hang"
    assert verdict(trial, Outcome(1, "Traceback (most recent call last)\nE", 1.0), before)[0] == "traceback"
    assert verdict(trial, Outcome(-9, "", 1.0), before)[0] == "traceback"
    assert verdict(trial, Outcome(2, "wrong value", 1.0), before)[0] == "unnamed"
    assert verdict(trial, Outcome(2, "--seed x", 1.0), before) == ("refused", "")
    kept.write_text("half")
    assert verdict(trial, Outcome(2, "--seed x", 1.0), before) == ("half-written", "changed: kept")
