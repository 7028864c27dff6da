"""The quick start where what only Unix has is missing: see `like_windows/sitecustomize.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from entry import ROOT, command, environment

from trilemma.eval.studies import grid
from trilemma.training.loop import stop

HERE = Path(__file__).parent / "like_windows"


def python(*arguments):
    """Run as on Windows, and return what was printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join([str(HERE), str(ROOT)])),
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
def test_the_quick_start_trains_resumes_and_reads_with_workers(tmp_path, tiny):
    flags = ["--dataset_name", "digits", *tiny, "--output_dir", str(tmp_path / "out")]
    flags += ["--checkpointing_steps", "1", "--dataloader_num_workers", "1", "--lr_scheduler", "constant"]
    flags = [flag for flag in flags if flag not in ("--lr_warmup_steps", "3")]
    script = command("training/train_unconditional.py", *flags)[1:]
    python(*script, "--max_train_steps", "2")
    printed = python(*script, "--max_train_steps", "3")
    assert "Resuming from" in printed
    assert (tmp_path / "out" / "checkpoints" / "step-00000003" / "state.pt").is_file()
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_sweep_and_an_evaluation_can_be_imported():
    python(
        "-c",
        "import trilemma.eval.studies.grid, trilemma.eval.scoring.after_training as after\n"
        "from trilemma.eval.studies.processes import Children, NOTICES\n"
        "from pathlib import Path\n"
        "import sys, tempfile\n"
        "children = Children()\n"
        "assert len(NOTICES) == 2\n"
        "assert children.run([sys.executable, '-c', 'pass'], Path(tempfile.mkdtemp()) / 'log') == 0\n",
    )


def test_a_sweep_and_a_training_end_with_one_code_after_a_signal():
    assert grid.INTERRUPTED == stop.INTERRUPTED == 75
