"""`--profile`: what the line says, and that the trace holds the parts of the steps."""

import json

from entry import run

from trilemma.training.devices.profile import PARTS, UNTIMED, Profile, summary


def test_shares_of_a_step_add_up():
    times = {
        "step": 2000.0, "data": 100.0, "forward": 500.0, "backward": 900.0, "EMA": 40.0, "aten::mm": 1000.0,
        "Optimizer.step#AdamW.step": 200.0, "Optimizer.zero_grad#AdamW.zero_grad": 20.0,
    }  # fmt: skip
    assert summary(times, 4) == (
        "Profile of 4 steps of 0.5 ms: forward 25%, backward 45%, optimizer 11%, EMA 2%, data 5%, "
        "waiting 0%, other 12%"
    )


def test_no_profile_says_and_writes_nothing(tmp_path):
    profile = Profile(tmp_path / "profile.json", 0)
    assert [profile.tick() for _ in range(2 * UNTIMED)] == [None] * (2 * UNTIMED)
    assert profile.close() is None
    assert not list(tmp_path.iterdir())


def test_a_profile_of_a_training(tmp_path, tiny):
    """Of two steps that are whole, each with every part."""
    flags = [*tiny, "--max_train_steps", str(UNTIMED + 3), "--profile", "2"]
    done = run("training/train_unconditional.py", *flags, "--output_dir", str(tmp_path / "out"))
    (line,) = (line for line in done.output.splitlines() if line.startswith("Profile of"))
    assert line.startswith("Profile of 2 steps of ")
    assert line.endswith(str(tmp_path / "out" / "profile.json"))
    names = [
        event.get("name")
        for event in json.loads((tmp_path / "out" / "profile.json").read_text())["traceEvents"]
    ]
    for part in {"step", "forward", "backward", "data", "EMA"}:
        assert names.count(part) == 2, part
    assert set(PARTS) - {"optimizer", "waiting"} <= set(names)
