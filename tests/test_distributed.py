"""Two gloo processes: one model, each rank its own images and noise, the same schedule, agreement on when to
stop.
"""

import json
import subprocess
import sys

import pytest
import torch
from entry import ROOT, command, environment, run
from PIL import Image, ImageChops
from test_train_unconditional import SCRIPT, assert_same, scalars, weights

from trilemma.eval.plots.sheets import sheet
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.loop.checkpoints import checkpoint_steps
from trilemma.training.loop.stop import INTERRUPTED
from trilemma.training.sampling import sample

pytestmark = pytest.mark.distributed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def launch(processes, *words, check=True):
    done = subprocess.run(
        [*TORCHRUN, str(processes), *words], capture_output=True, text=True,
        env=environment(ACCELERATE_USE_CPU="true"),
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def reports(tmp_path, processes, *flags):
    path = tmp_path / f"report-{processes}.json"
    flags = [*flags, "--output_dir", str(tmp_path / f"out-{processes}"), "--cpu_threads", "1"]
    worker = str(ROOT / "tests" / "two_ranks.py")
    launch(processes, worker, str(path), *flags, "--seed", "0", "--logging_steps", str(processes))
    return json.loads(path.read_text())


def test_two_ranks_are_one_model(tmp_path, tiny):
    flags = [
        *tiny,
        "--max_train_steps",
        "12",
        "--gradient_accumulation_steps",
        "2",
        "--lr_scheduler",
        "cosine",
    ]
    two = reports(tmp_path, 2, *flags)
    (one,) = reports(tmp_path, 1, *flags)

    assert two[0]["weights"] == two[1]["weights"]
    assert not set(two[0]["noise"]) & set(two[1]["noise"])
    assert not set(two[0]["x0"]) & set(two[1]["x0"])
    assert len(one["rates"]) == 12
    assert one["rates"] == two[0]["rates"] == two[1]["rates"]

    def losses(processes):
        lines = scalars(tmp_path / f"out-{processes}")
        return torch.tensor([line["loss"] for line in lines if "loss" in line])

    # Other noise, so not equal number by number: the same course within the spread of such small batches.
    torch.testing.assert_close(losses(1)[-3:].mean(), losses(2)[-3:].mean(), rtol=0.2, atol=0)


@pytest.mark.long
def test_two_ranks_stop_together_and_resume_exactly(tmp_path, tiny):
    flags = [*tiny, "--max_train_steps", "24", "--checkpointing_steps", "100", "--sample_steps", "8"]
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    launch(2, *command(SCRIPT, *flags, "--output_dir", str(uncut))[1:])

    worker = [str(ROOT / "tests" / "two_ranks_agree.py"), "notice", str(tmp_path)]
    done = launch(2, *worker, *flags, "--output_dir", str(cut), check=False)
    assert f"exitcode  : {INTERRUPTED}" in done.stderr
    (step,) = checkpoint_steps(cut / "checkpoints")
    assert 5 <= step < 24

    launch(2, *command(SCRIPT, *flags, "--output_dir", str(cut))[1:])
    assert_same(weights(uncut), weights(cut))


ENDING = """
import sys
from pathlib import Path
import torch
from trilemma.training.devices.ranks import agreement
from trilemma.training.loop.machine import closing_groups, distribute, evaluation_accelerator
from trilemma.training.loop.stop import StopSignal

def threads():
    return [p for p in Path("/proc/self/task").glob("*/comm") if "gloo" in p.read_text()]

def work(end):
    accelerator = evaluation_accelerator(1)
    stop, net = StopSignal(agreement(accelerator)), distribute(accelerator, torch.nn.Linear(1, 1))
    net(torch.ones(1, 1)).sum().backward()
    with stop:
        stop.check()
        assert threads()
        if end:
            try:
                raise KeyError
            except KeyError as problem:
                raise end from problem

end = {"stop": SystemExit(75), "error": RuntimeError("wrong")}.get(sys.argv[1])
try:
    with closing_groups():
        work(end)
except (SystemExit, RuntimeError) as problem:
    assert problem is end
assert not torch.distributed.is_initialized() and not threads(), threads()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for threads in /proc")
@pytest.mark.parametrize("end", ["well", "stop", "error"])
def test_no_thread_of_a_process_group_outlives_a_run(tmp_path, end):
    """One that does can end the program with SIGABRT after all its work was done."""
    (tmp_path / "script.py").write_text(ENDING)
    assert "arning" not in launch(2, str(tmp_path / "script.py"), end).stderr


def test_another_number_of_processes_is_refused_on_resume(tmp_path, tiny):
    out = ["--output_dir", str(tmp_path / "out"), "--max_train_steps", "2"]
    launch(2, *command(SCRIPT, *tiny, *out)[1:])
    done = run(SCRIPT, *tiny, *out, check=False)
    assert done.wait() != 0
    assert "processes: 2 then, 1 now" in done.output


def test_samples_do_not_depend_on_the_number_of_processes(tmp_path, tiny):
    """The published model draws the same sheet from the same seeds, whoever drew it."""
    out = ["--output_dir", str(tmp_path / "out"), "--max_train_steps", "2", "--eval_batch_size", "5"]
    launch(2, *command(SCRIPT, *tiny, *out)[1:])
    pipeline = UnconditionalPipeline.from_pretrained(tmp_path / "out").with_sampler("dpmsolver++")
    again = sheet(sample(pipeline, range(5), batch_size=2, num_inference_steps=10))
    drawn = Image.open(tmp_path / "out" / "samples.png")
    assert ImageChops.difference(again.convert("L"), drawn.convert("L")).getextrema()[1] <= 1
