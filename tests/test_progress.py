"""What long work says, in a log and on a terminal."""

import io
import os
import sys
import time

import pytest

from trilemma.training import progress
from trilemma.training.progress import Progress, counted, each


class Terminal(io.StringIO):
    """A terminal, as far as it says so."""

    def isatty(self):
        return True


@pytest.fixture
def log(monkeypatch, capsys):
    """What was said so far on a standard error that is no terminal; a line after a twentieth of a second."""
    monkeypatch.setattr(progress, "FIRST", 0.05)
    said = []

    def text():
        said.append(capsys.readouterr().err)
        return "".join(said)

    return text


def test_work_that_is_done_at_once_says_nothing_in_a_log(log):
    assert list(each(range(3), "counting", 3, "image")) == [0, 1, 2]
    with Progress("looking"):
        pass
    time.sleep(0.1)
    assert log() == ""


def test_a_log_gets_lines_and_no_carriage_returns(log):
    with Progress("training", 2000, "step") as work:
        work.update(500)
        work.note(loss="0.5")
        time.sleep(0.3)
        work.update(1500)
    lines = log().split("\n")
    assert lines[0].startswith("training: step 500 of 2,000 (25%), 00:0")
    assert "loss 0.5" in lines[0]
    assert lines[-2].startswith("training: done, step 2,000 of 2,000 in 00:0")
    assert "\r" not in log()


def test_numbers_are_counted_as_they_are_spoken():
    assert [counted(number, "step") for number in (0, 1, 1000)] == ["0 steps", "1 step", "1,000 steps"]


def test_work_that_ended_early_is_not_done(log):
    with Progress("training", 2000, "step") as work:
        work.update(500)
        time.sleep(0.3)
    assert log().startswith("training: step 500 of 2,000")
    assert "done" not in log()


def test_work_that_is_not_counted_says_what_it_is(log):
    with Progress("drawing the pictures"):
        time.sleep(0.2)
    assert log().startswith("drawing the pictures: 00:00 so far\n")


def test_of_nested_work_the_innermost_speaks_and_a_pause_counts_for_no_rate(log):
    with Progress("training", 100, "step") as work:
        work.update(10)
        with work.pause("evaluation at step 10"):
            time.sleep(0.4)
        assert work.seconds < 0.3
    assert "evaluation at step 10: 00:00 so far" in log()
    assert "training: step" not in log()


def test_only_the_process_that_shows_speaks(log):
    with Progress("training", 10, "step", show=False) as work:
        work.update()
        with work.pause("evaluation"):
            time.sleep(0.2)
    assert (work.n, log()) == (1, "")


def test_work_that_failed_is_silent_afterwards(log):
    work = Progress("training", 10, "step")
    time.sleep(0.2)
    work.__exit__(ValueError, ValueError(), None)
    left = Progress("forgotten", 10, "step")
    del left
    said = log()
    time.sleep(0.2)
    assert log() == said
    assert "done" not in said
    assert "forgotten" not in said
    assert not progress._open


def test_a_terminal_gets_a_bar_whose_time_leaves_out_pauses(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", 10, "step") as work:
        work.update(2)
        with work.pause("evaluation"):
            time.sleep(0.3)
        assert time.time() - work.bar.start_t < 0.2
        work.note(loss="0.5")
    assert "training:" in terminal.getvalue()
    assert "loss=0.5" in terminal.getvalue()


def test_a_log_has_no_bars_of_libraries(monkeypatch, log):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "0")
    with progress.loading_libraries():
        time.sleep(0.1)
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "0"  # as the user has it
    assert "loading libraries" in log()
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
