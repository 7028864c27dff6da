"""What a run logs, after it was killed and goes on."""

import json

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trilemma.training.loop.records import RunLog
from trilemma.training.options.command_line import parse
from trilemma.training.output_folder import OutputFolder


def log(out, start, last):
    """Log steps start + 1 to last as one run does, which is then killed."""
    config = parse("unconditional", "", ["--preset", "digits", "--output_dir", str(out)])
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(out / "logs"))
    runlog = RunLog(accelerator, OutputFolder(out), config, "unconditional")
    runlog.start(start, 9, 0.0)
    for step in range(start + 1, last + 1):
        runlog.write({"loss": float(step + start)}, step)
    return runlog


def test_each_step_is_there_once_after_a_resume(tmp_path):
    for start, last in ((0, 6), (3, 7), (0, 2), (2, 4)):
        log(tmp_path, start, last)
    lines = [json.loads(line) for line in (tmp_path / "logs" / "scalars.jsonl").read_text().splitlines()]
    expected = [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)]
    assert [(line["step"], line["loss"]) for line in lines] == expected
    shown = EventAccumulator(str(tmp_path / "logs" / tmp_path.name)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == expected


def test_results_that_are_dropped_are_kept_aside_and_said(tmp_path, caplog):
    """Also a line that is torn; one with a step that is no number is left to the reader, who names it."""
    path = tmp_path / "results.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": "x"}\n{"step": 5, "val')
    log(tmp_path, 3, 4)
    assert path.read_text() == '{"step": 2}\n{"step": "x"}\n'
    aside = tmp_path / "results.dropped.jsonl"
    assert aside.read_text() == '{"step": 4}\n{"step": 5, "val\n'
    assert (
        f"2 lines of results.jsonl are damaged or of steps after 3, where this run goes on; moved to {aside}"
        in (caplog.text)
    )


def test_logs_that_cannot_be_written_are_named(tmp_path, monkeypatch, capfd):
    """TensorBoard writes in a thread of its own, whose traceback would be printed."""
    runlog = log(tmp_path, 0, 1)
    (tracker,) = runlog.accelerator.trackers

    def full(*_):
        raise OSError(28, "No space left on device")

    files = tracker.writer.file_writer.event_writer._async_writer._writer
    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match=r"logs could not be written .No space left on device"):
        runlog.write({"loss": 1.0}, 2)
    assert "Traceback" not in capfd.readouterr().err
