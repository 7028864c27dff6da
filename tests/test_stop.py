"""Signals: what ends at once, what is noted, and that no phase of a run swallows one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from entry import environment
from safetensors.torch import load_file
from test_train_unconditional import assert_same

from trilemma.eval.scoring import model_images
from trilemma.training import entry, run
from trilemma.training.loop.checkpoints import checkpoint_steps
from trilemma.training.loop.records import came_before
from trilemma.training.loop.stop import CTRL_C, INTERRUPTED, NOTICES, Stopped, StopSignal

CODES = [(number, CTRL_C if number == signal.SIGINT else INTERRUPTED) for number in NOTICES]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_is_noted_until_work_that_may_be_abandoned(number, code):
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    before, seen = [signal.getsignal(n) for n in NOTICES], []
    with StopSignal() as stop:
        stop.check()
        assert stop.attempt(lambda: 3) == stop.at_once(lambda: 3) == 3
        assert list(stop.each("abc")) == ["a", "b", "c"]
        send(number)
        for abandoned in (
            stop.check,
            lambda: stop.at_once(lambda: seen.append(1)),
            lambda: stop.attempt(lambda: seen.append(2)),
            lambda: seen.extend(stop.each([3])),
        ):
            with pytest.raises(Stopped) as stopped:
                abandoned()
            assert stopped.value.code == code
    assert not seen
    after = [signal.getsignal(n) for n in NOTICES]
    signal.signal(signal.SIGINT, outside)
    assert after == before  # a second Ctrl-C raises in a script that calls; for entry points see below


def test_work_that_may_be_abandoned_is_so_at_once():
    seen = []

    def work():
        send(signal.SIGTERM)
        seen.append("went on")

    def told(item):
        send(signal.SIGTERM)
        seen.append(item)

    ways = [
        lambda stop: stop.at_once(work),
        lambda stop: stop.attempt(work),
        lambda stop: list(map(seen.append, stop.each(work() for _ in range(3)))),
        lambda stop: list(map(told, stop.each(range(3)))),  # what is done with an item is finished
    ]
    for way in ways:
        with StopSignal() as stop, pytest.raises(Stopped):
            way(stop)
    assert seen == [0]


def test_several_processes_ask_once_in_some_steps_and_one_at_each(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr("trilemma.training.loop.stop.time.monotonic", lambda: now[0])

    def agree(*numbers):
        asked.append(step)
        return list(numbers)

    with StopSignal(agree) as stop:
        for step in range(1, 51):  # of 1 ms each, then of 0.4 s
            now[0] += 0.001 if step <= 31 else 0.4
            stop.check_after_step(due=step == 25)
        assert asked == [1, 11, 21, 25, 35, 41, 43, 45, 47, 49]
        send(signal.SIGTERM)
        step = 51
        with pytest.raises(Stopped):
            stop.check_after_step(due=False)
    with StopSignal() as stop:
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.check_after_step(due=False)


PROGRAM = """
import sys, time
from trilemma.training.loop.stop import *
with {block}:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


def program(block: str) -> subprocess.Popen:
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(block=block)], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_program_with_nothing_to_keep_ends_with_one_line(number, code):
    ended = program("ending_quietly(NOTICES)")
    ended.send_signal(number)
    assert ended.communicate()[1] == "Interrupted.\n"
    assert ended.returncode == code


def test_a_second_ctrl_c_ends_a_training_at_once():
    ended = program("ending_quietly(NOTICES), StopSignal()")  # as in an entry point
    ended.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert ended.poll() is None
    ended.send_signal(signal.SIGINT)
    assert ended.communicate()[1] == ""
    assert ended.returncode == -signal.SIGINT


def test_a_second_ctrl_c_kills_what_a_sweep_runs(tmp_path):
    code = "import signal as s, sys, time; s.signal(15, s.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(600)"
    command, started = [sys.executable, "-S", "-c", code, str(tmp_path / "started")], time.monotonic()
    script = f"""
import os, signal, threading, time
from pathlib import Path
from trilemma.eval.studies.processes import Children
def twice():
    while not Path({str(tmp_path / "started")!r}).exists():
        time.sleep(0.01)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
with Children() as children:
    threading.Thread(target=twice).start()
    code = children.run({command!r}, Path({str(tmp_path / "log")!r}))
print(code, children.stopped)
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert done.stdout == f"{-signal.SIGKILL} {CTRL_C}\n", done.stderr
    assert time.monotonic() - started < 300


# In each phase of a training, which runs in this process


def train(monkeypatch, *flags: str) -> int:
    """The exit code of a training."""
    AcceleratorState._reset_state(True)
    monkeypatch.setattr("sys.argv", ["train_unconditional.py", *flags, "--cpu_threads", "1"])
    before = signal.getsignal(signal.SIGINT)
    try:
        entry.main("unconditional", "A test.")
    except SystemExit as stop:
        return stop.code
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def told_in(function, number: int):
    """`function`, before whose first call the process receives a signal."""
    numbers = [number]

    def told(*args, **kwargs):
        while numbers:
            send(numbers.pop())
        return function(*args, **kwargs)

    return told


EVALUATED = [
    "--eval_steps", "2", "--eval_feature_extractor", "pixels", "--eval_num_samples", "10",
    "--eval_metrics", "fd", "--validation_steps", "2", "--eval_forward_batch", "4",
]  # fmt: skip


def lines(path: Path, *left_out: str) -> list[dict]:
    return [
        {name: value for name, value in json.loads(line).items() if name not in left_out}
        for line in path.read_text().splitlines()
    ]


def test_an_evaluation_that_a_signal_abandons_is_done_on_resume(tmp_path, tiny, monkeypatch, capsys):
    """In the second of its batches; the run ends as one that was not cut, with each number once."""
    flags = [*tiny, *EVALUATED, "--max_train_steps", "3", "--checkpointing_steps", "100"]
    cut, uncut = (tmp_path / name / "out" for name in ("cut", "uncut"))
    assert train(monkeypatch, *flags, "--output_dir", str(uncut)) == 0
    batches, seen = model_images.draw_batches, []

    def told(*args, **kwargs):
        for number, batch in enumerate(batches(*args, **kwargs)):
            seen.append(number)
            if seen == [0, 1]:
                send(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(model_images, "draw_batches", told)
    capsys.readouterr()
    assert train(monkeypatch, *flags, "--output_dir", str(cut)) == INTERRUPTED
    assert seen == [0, 1]
    assert capsys.readouterr().out.endswith("Checkpoint at step 2; run the same command again.\n")
    assert checkpoint_steps(cut / "checkpoints") == [2]
    assert not (cut / "results.jsonl").exists()
    assert train(monkeypatch, *flags, "--output_dir", str(cut)) == 0
    assert_same(*(load_file(out / "unet" / "diffusion_pytorch_model.safetensors") for out in (cut, uncut)))
    slow = ("seconds_per_image", "date", "created")
    assert lines(cut / "results.jsonl", *slow) == lines(uncut / "results.jsonl", *slow)
    steps = [
        sorted((line["step"], *line) for line in lines(out / "logs" / "scalars.jsonl"))
        for out in (cut, uncut)
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("trilemma.training.loop.sheets.sample", signal.SIGINT),  # a sheet, while it trains
        ("trilemma.training.run.draw_pictures", signal.SIGTERM),  # after the last step
        ("trilemma.training.run.save_bundle", signal.SIGINT),
        ("trilemma.training.run.write_card", signal.SIGTERM),
        ("trilemma.training.run.publish", signal.SIGINT),
    ],
)
def test_no_phase_swallows_a_signal(place, number, tmp_path, tiny, monkeypatch, capsys):
    out, published = tmp_path / "out", []
    flags = [*tiny, *EVALUATED, "--max_train_steps", "1", "--sample_steps", "1", "--output_dir", str(out)]
    flags += ["--push_to_hub", "--hub_model_id", "user/model", "--allow_unevaluated"]
    monkeypatch.setattr(run, "publish", lambda *_, **__: published.append(1))
    owner, name = place.rsplit(".", 1)
    monkeypatch.setattr(place, told_in(getattr(sys.modules[owner], name), number))
    assert train(monkeypatch, *flags) == dict(CODES)[number]
    assert capsys.readouterr().out.endswith("Checkpoint at step 1; run the same command again.\n")
    assert checkpoint_steps(out / "checkpoints") == [1]
    assert not published


@pytest.mark.parametrize(
    ("line", "left", "stays"),
    [
        ({"step": 5, "fd": 1.0}, ["evaluate"], True),
        ({"step": 7, "fd": 1.0}, [], False),
        ({"step": 6, "fd": 1.0}, [], True),
        ({"step": 6, "fd": 1.0}, ["evaluate", "save"], False),
        ({"step": 6, "validation_loss": 1.0}, ["evaluate"], True),
        ({"step": 6, "validation_loss": 1.0}, ["validate", "evaluate"], False),
        ({"step": 6, "loss": 1.0, "images_per_second": 2.0}, ["validate", "evaluate"], True),
        ({"step": None, "fd": 1.0}, ["evaluate"], True),
    ],
)
def test_lines_of_what_is_done_again_are_dropped(line, left, stays):
    assert came_before(line, 6, left) == stays
