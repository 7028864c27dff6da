"""The product on a CUDA device that holds no data: mixed devices, lost precision, float64, host waits.

Each script of `pretend_cuda/` runs in a process of its own, since the device has to be there before torch is
imported. It needs g++ and a CPU build of PyTorch: in a CUDA build, PyTorch's own CUDA has the device's place.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from entry import ROOT, environment

HERE = Path(__file__).parent / "pretend_cuda"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="there is no g++ to compile the device guard with"
    ),
    pytest.mark.skipif(torch.version.cuda is not None, reason="needs a CPU build of PyTorch"),
]

METHODS = (
    "unconditional", "unconditional mmd", "unconditional hybrid", "unconditional vlb",
    "unconditional min-SNR", "class-conditional", "vae", "vdm", "vdm monotone", "vdm of T steps",
    "vdm shortcut", "flow", "flow with classes", "consistency with guidance", "consistency from a flow",
    "ddgan", "ddgan with classes",
)  # fmt: skip

FP16 = {"ddgan with classes": 3}
"""Under fp16, how often it is read whether an update was skipped: once for each update, so 1 for others."""

ONE_OF_EACH = (
    "unconditional", "unconditional hybrid", "class-conditional", "vae", "vdm monotone", "vdm of T steps",
    "flow with classes", "consistency from a flow", "ddgan with classes",
)  # fmt: skip

BY_FAMILY = {
    "unconditional": ["loss.png", "process.png", "samples.png", "schedules.png"],
    "class_conditional": ["guidance.png", "loss.png", "process.png", "samples.png", "schedules.png"],
    "vdm": ["loss.png", "process.png", "samples.png", "schedules.png"],
    "vae": ["interpolations.png", "loss.png", "reconstructions.png", "samples.png"],
    "ddgan": ["loss.png", "process.png", "samples.png", "schedules.png"],
}
RESULTS = {"unconditional": 2, "class_conditional": 1}


def results_of(script: str, *arguments: str) -> dict:
    """What a script of `pretend_cuda/` prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULTS "))


@pytest.fixture(scope="module")
def steps():
    return results_of("steps.py", "no", "bf16", "fp16", "float32-only")


CASES = [(name, "no") for name in METHODS] + [
    (name, kind) for kind in ("bf16", "fp16", "float32-only") for name in ONE_OF_EACH
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_step_a_validation_an_average_and_samples(steps, name, kind):
    result = steps[f"{name}|{kind}"]
    assert "error" not in result, result["error"]
    assert result["odd"] == {}  # losses, logs, weights, averages and images are float32 on the device
    assert result["validated"] == 12
    if kind != "float32-only":
        fp16 = {"training/devices/precision.py": FP16.get(name, 1)} if kind == "fp16" else {}
        assert result["waits"] == fp16  # the host waits for the device in no other step


@pytest.mark.parametrize("kind", ["float64", "float32-only"])
def test_samplers_guidance_bounds_extractors_and_metrics(kind):
    results = results_of("evaluation.py", kind)
    assert len(results) > 20
    errors = {name: error for name, error in results.items() if error}
    assert not errors, "\n\n".join(f"{name}: {error}" for name, error in errors.items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    names = [f"{family}|no" for family in BY_FAMILY]
    names += ["unconditional|fp16", "ddgan|bf16", "unconditional|float32-only", "vdm|float32-only"]
    return names, results_of("runs.py", str(tmp_path_factory.mktemp("runs")), *names)


def test_whole_runs(runs):
    names, results = runs
    assert sorted(results) == sorted(names)
    for name in names:
        family, kind = name.split("|")
        result = results[name]
        assert "error" not in result, f"{name}: {result['error']}"
        assert result["checkpoints"] == [2]
        assert result["pictures"] == BY_FAMILY[family]
        assert {"loss", "learning_rate", "validation_loss", "images_seen"} <= set(result["logged"])
        assert ("skipped_steps" in result["logged"]) == (kind == "fp16")
        assert result["results"] == RESULTS.get(family, 0)
