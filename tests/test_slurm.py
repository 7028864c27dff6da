"""The SLURM scripts of examples/: the commands that they run, beside programs with the names of SLURM's."""

import os
import signal
import subprocess
import sys
import time

import pytest
from entry import ROOT

SCRIPTS = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripts need bash")

LOGGED = 'printf "%s" "${0##*/}" >> "$LOG"; printf " <%s>" "$@" >> "$LOG"; echo >> "$LOG"\n'
FAKES = {
    "scontrol": LOGGED + '[ "$1" = show ] && printf "%s\\n" node7 node8; exit 0\n',
    # As SLURM does, to the tasks of the job's step.
    "scancel": LOGGED + 'kill -USR1 $(cat "$LOG.task")\n',
    "torchrun": LOGGED + 'exec "$TASK"\n',
    "python": LOGGED + 'echo env $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT '
    '>> "$LOG"; exec "$TASK"\n',
    "srun": LOGGED + 'while [ "${1#--}" != "$1" ]; do shift; done; "$@" & echo $! > "$LOG.task"\n'
    'wait $!; code=$?; exit $code\n',
    "ends": 'exit "$CODE"\n',
    "waits": "trap 'exit \"$CODE\"' USR1; touch \"$LOG.waits\"; while :; do sleep 0.02; done\n",
}  # fmt: skip


@pytest.fixture
def submit(tmp_path):
    """Run a script as a job of two machines with four GPUs each; (its exit code, the commands it ran)."""
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}")
        (tmp_path / name).chmod(0o755)

    def run(script, code, notice=False):
        log = tmp_path / "log"
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "CODE": str(code),
            "TASK": "waits" if notice else "ends", "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS": "8", "SLURM_PROCID": "5",
            "SLURM_LOCALID": "1",
        }  # fmt: skip
        words = ["bash", str(script), "training/train_flow.py", "--output_dir", "/shared/my run"]
        job = subprocess.Popen(words, env=environment)
        if notice:
            while not (tmp_path / "log.waits").exists():
                assert job.poll() is None
                time.sleep(0.02)
            job.send_signal(signal.SIGUSR1)
        return job.wait(60), log.read_text().splitlines()

    return run


REQUEUE = "scontrol <requeue> <42>"
NOTICE = "scancel <--signal=USR1> <42>"


def test_there_are_scripts_and_bash_reads_them():
    assert [path.stem for path in SCRIPTS] == ["train", "train_tasks"]
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_one_launcher_on_each_machine(submit):
    code, commands = submit(SCRIPTS[0], 0)
    assert code == 0
    assert commands[0] == "scontrol <show> <hostnames> <node[7-8]>"
    words = (
        "<--nnodes> <2> <--nproc_per_node> <4> <--rdzv_backend> <c10d> <--rdzv_id> <42> <--rdzv_endpoint> "
        "<node7:29500> <--signals-to-handle> <SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1> "
        "<training/train_flow.py> <--output_dir> </shared/my run>"
    )
    assert commands[1:] == [f"srun <torchrun> {words}", f"torchrun {words}"]


def test_one_task_for_each_gpu(submit):
    code, commands = submit(SCRIPTS[1], 0)
    assert code == 0
    assert commands[-2:] == [
        "python <training/train_flow.py> <--output_dir> </shared/my run>",
        "env 5 1 8 4 node7:29500",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_run_that_stops_before_the_time_limit_goes_back_into_the_queue(submit, script):
    launched = 1 if script.stem == "train" else 75  # torchrun has no other code for a failure of a process
    code, commands = submit(script, launched, notice=True)
    assert code == launched
    assert commands[-2:] == [NOTICE, REQUEUE]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("code", "notice"), [(0, True), (1, False)], ids=["done in time", "failed"])
def test_a_run_that_is_done_or_failed_does_not(submit, script, code, notice):
    ended, commands = submit(script, code, notice)
    assert ended == code
    assert REQUEUE not in commands
    assert (NOTICE in commands) == notice


def test_a_failure_after_the_notice_is_no_stop_where_the_code_tells(submit):
    code, commands = submit(SCRIPTS[1], 1, notice=True)
    assert code == 1
    assert commands[-1] == NOTICE
