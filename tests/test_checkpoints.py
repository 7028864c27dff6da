"""Checkpoints: whole or not there, damage named, the one before taken, a full disk survived."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from conftest import TINY
from diffusers import UNet2DModel

from trilemma.training.loop.checkpoints import (
    DamagedCheckpoint,
    checkpoint_path,
    checkpoint_steps,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    set_newer_aside,
)
from trilemma.training.loop.resume import (
    changed_flags,
    changed_network,
    configuration,
    moved_network,
    plain,
)
from trilemma.training.options.command_line import parse
from trilemma.training.options.flags import flatten


def state(step):
    return {"step": step, "weights": torch.full((1000,), float(step)), "nested": {"a": [1, 2.5, "x", None]}}


def test_round_trip_and_limit(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert checkpoint_steps(tmp_path) == [20, 30]
    path, found = find_checkpoint(tmp_path, "latest")
    assert path.name == "step-00000030"
    torch.testing.assert_close(found["weights"], state(30)["weights"])
    assert found["nested"] == state(30)["nested"]
    assert find_checkpoint(tmp_path, "step-00000020")[1]["step"] == 20
    assert not list(tmp_path.glob(".partial*"))


def test_nothing_to_resume(tmp_path):
    assert find_checkpoint(tmp_path / "none", "latest") is None


def test_unknown_name_lists_what_there_is(tmp_path):
    save_checkpoint(tmp_path, 5, state(5), keep=2)
    with pytest.raises(ValueError, match="step-00000005"):
        find_checkpoint(tmp_path, "step-00000006")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "no state", "bad manifest"])
def test_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, caplog, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step), keep=5)
    newest = checkpoint_path(tmp_path, 2)
    data = (newest / "state.pt").read_bytes()
    if damage == "truncated":
        (newest / "state.pt").write_bytes(data[:-100])
    elif damage == "flipped":
        (newest / "state.pt").write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "no state":
        (newest / "state.pt").unlink()
    else:
        (newest / "manifest.json").write_text("{")
    assert find_checkpoint(tmp_path, "latest")[1]["step"] == 1
    assert "step-00000002" in caplog.text
    with pytest.raises(DamagedCheckpoint, match="step-00000002"):
        load_checkpoint(newest)


def test_all_damaged_is_an_error_with_a_way_out(tmp_path):
    save_checkpoint(tmp_path, 1, state(1), keep=1)
    (checkpoint_path(tmp_path, 1) / "state.pt").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="--overwrite_output_dir"):
        find_checkpoint(tmp_path, "latest")


def test_leftover_of_a_killed_save_is_ignored_and_replaced(tmp_path):
    save_checkpoint(tmp_path, 1, state(1), keep=2)
    (tmp_path / ".partial-00000002").mkdir()
    (tmp_path / ".partial-00000002" / "state.pt").write_bytes(b"half")
    assert find_checkpoint(tmp_path, "latest")[1]["step"] == 1
    save_checkpoint(tmp_path, 2, state(2), keep=2)
    assert find_checkpoint(tmp_path, "latest")[1]["step"] == 2


def test_full_disk_is_an_error_and_the_previous_checkpoint_stays_whole(tmp_path):
    """A limit on the size of files stands in for the full disk: the write fails half-way."""
    save_checkpoint(tmp_path, 1, state(1), keep=1)
    code = f"""
import resource, torch
from pathlib import Path
from trilemma.training.loop.checkpoints import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, {resource.RLIM_INFINITY}))
try:
    save_checkpoint(Path({str(tmp_path)!r}), 2, {{"weights": torch.zeros(100_000)}}, keep=1)
except OSError as problem:
    print("refused:", problem)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "refused: the checkpoint of step 2 could not be written" in ran.stdout, ran.stderr
    assert "step 1 is whole" in ran.stdout
    assert checkpoint_steps(tmp_path) == [1]
    assert find_checkpoint(tmp_path, "latest")[1]["step"] == 1
    assert not list(tmp_path.glob(".partial*"))


def test_an_older_checkpoint_can_be_resumed_without_losing_either_branch(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep=5)
    set_newer_aside(tmp_path, 1)
    assert checkpoint_steps(tmp_path) == [1]
    save_checkpoint(tmp_path, 2, {"step": "new"}, keep=2)
    assert find_checkpoint(tmp_path, "latest")[1]["step"] == "new"
    assert load_checkpoint(tmp_path / "left-step-00000003")["step"] == 3


# Data and network configurations that have moved


def changes(before, after, compare=changed_flags):
    """What is named for two command lines."""
    old, new = (parse("unconditional", "", list(flags)) for flags in (before, after))
    return compare(plain(flatten(old)), new)


def test_where_the_data_are_may_change():
    """The fingerprint of the images decides whether they are the same."""
    assert not changes(["--train_data_dir", "p"], ["--train_data_dir", "/home/me/p/"])
    hub = ["--dataset_name", "a/b", "--dataset_config_name", "x", "--dataset_revision", "y"]
    assert not changes(hub, ["--train_data_dir", "p"])
    assert changes(hub, [*hub, "--seed", "1"]) == ["--seed: 0 then, 1 now"]
    assert changes(hub, [*hub, "--resolution", "8"]) == ["--resolution: None then, 8 now"]


def network(**options):
    return UNet2DModel(**{key: value for key, value in TINY.items() if key[0] != "_"} | options)


def test_networks_are_compared_by_what_they_were_made_from(tmp_path):
    before = configuration(network(in_channels=1, out_channels=1))
    assert before["_class_name"] == "UNet2DModel"
    network(in_channels=1, out_channels=1).save_pretrained(tmp_path)
    again = configuration(type(network()).from_pretrained(tmp_path))
    assert not changed_network(before, again)
    other = configuration(network(in_channels=1, out_channels=1, norm_eps=1e-3))
    assert changed_network(before, other) == ["the network's norm_eps: 1e-05 then, 0.001 now"]
    assert changed_network(before, {**before, "_class_name": "PlainUNet2DModel"}) == [
        "the network's class_name: UNet2DModel then, PlainUNet2DModel now"
    ]


def test_checkpoints_that_do_not_hold_their_network_are_compared_by_files(tmp_path):
    data, (old, new, other) = ["--dataset_name", "a/b"], (tmp_path / f"{name}.json" for name in "abc")
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.1", "block_out_channels": [8, 16]}
    old.write_text(json.dumps(config))
    new.write_text(json.dumps({**config, "_diffusers_version": "0.2"}, indent=4))
    other.write_text(json.dumps({**config, "_class_name": "PlainUNet2DModel"}))

    def differ(before, after):
        return changes(before, after, moved_network)

    def flags(path):
        return [*data, "--model_config_name_or_path", str(path)]

    assert not differ(flags(old), flags(new))
    message = [f"--model_config_name_or_path: {old} then, {other} now"]
    assert differ(flags(old), flags(other)) == message
    assert differ(data, flags(new))
    assert differ(flags(new), data)
    old.unlink()
    assert differ(flags(old), flags(new))
    assert not differ(flags(old), flags(old))
