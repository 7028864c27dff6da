"""The main job, end to end through the entry point: train, kill, resume, stop, fine-tune, load with stock
diffusers.
"""

import fcntl
import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from diffusers import UNet2DModel
from entry import ROOT, environment, run, start
from PIL import Image
from safetensors.torch import load_file

from trilemma.training.loop.checkpoints import checkpoint_steps, find_checkpoint
from trilemma.training.loop.stop import CTRL_C, INTERRUPTED

SCRIPT = "training/train_unconditional.py"


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def scalars(folder):
    return [json.loads(line) for line in (folder / "logs" / "scalars.jsonl").read_text().splitlines()]


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_quick_start_folder(tmp_path, tiny):
    """`accelerate launch`, then everything the folder must hold, then a stranger who has only diffusers."""
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", str(ROOT / SCRIPT)]
    flags = [*tiny, "--max_train_steps", "8", "--sample_steps", "4", "--save_model_epochs", "1"]
    flags += ["--output_dir", str(out)]
    subprocess.run([*launch, *flags], check=True, env=environment(), cwd=tmp_path, capture_output=True)

    pictures = {"samples.png", "process.png", "loss.png", "schedules.png"}
    assert {"model_index.json", "config.yaml", "run.json"} | pictures <= {p.name for p in out.iterdir()}
    facts = json.loads((out / "run.json").read_text())
    assert (facts["steps"], facts["images_seen"]) == (8, 64)
    assert facts["seconds"] > 0
    assert {"device", "name", "processes"} <= facts["hardware"].keys()
    logged = {name for line in scalars(out) for name in line}
    wanted = "loss learning_rate ema_decay images_per_second gradient_norm validation_loss loss_q1 loss_q4"
    assert set(wanted.split()) <= logged
    assert list((out / "logs").rglob("events.out.tfevents*"))
    logs = [path.read_bytes() for path in (out / "logs").rglob("*") if path.is_file()]
    assert not any(str(tmp_path).encode() in log for log in logs), "logs are published"
    assert Image.open(out / "samples.png").size[0] > 50
    assert checkpoint_steps(out / "checkpoints") == [8]

    stranger = f"""
import sys
sys.modules["trilemma"] = None
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline
for kind in (DDPMPipeline, DDIMPipeline, DiffusionPipeline):
    pipe = kind.from_pretrained({str(out)!r})
    pipe.set_progress_bar_config(disable=True)
    image = pipe(batch_size=2, num_inference_steps=3, generator=torch.manual_seed(0)).images[0]
    assert image.size == (8, 8), image
"""
    subprocess.run([sys.executable, "-c", stranger], check=True, env=environment(), cwd=tmp_path)


def test_published_weights_are_the_average_and_the_checkpoint_keeps_the_raw_ones(tmp_path, tiny):
    out = tmp_path / "out"
    run(SCRIPT, *tiny, "--max_train_steps", "5", "--output_dir", str(out))
    _, state = find_checkpoint(out / "checkpoints", "latest")
    raw = {k.removeprefix("net."): v for k, v in state["method"]["objective"].items() if k.startswith("net.")}
    published = weights(out)
    names = list(UNet2DModel.from_pretrained(out, subfolder="unet").state_dict())
    averaged = dict(zip(names, state["ema"], strict=True))
    assert_same(published, averaged)
    assert any(not torch.equal(raw[n], averaged[n]) for n in names)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_killed_at_any_step_and_resumed_ends_with_the_same_weights(tmp_path, tiny, accumulation):
    flags = [
        *tiny,
        "--max_train_steps",
        "24",
        "--checkpointing_steps",
        "5",
        "--random_flip",
        "--sample_steps",
        "7",
    ]
    flags += ["--gradient_accumulation_steps", str(accumulation)]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "uncut"))
    cut = tmp_path / "cut"
    for step in sorted(random.Random(accumulation).sample(range(1, 24), 3)):
        killed = start(SCRIPT, *flags, "--output_dir", str(cut), signal_at=(step, signal.SIGKILL))
        assert killed.wait() == -signal.SIGKILL
    run(SCRIPT, *flags, "--output_dir", str(cut))
    assert_same(weights(tmp_path / "uncut"), weights(cut))
    steps = [line["step"] for line in scalars(cut) if "loss" in line]
    assert steps == list(range(1, 25))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, INTERRUPTED), (signal.SIGUSR1, INTERRUPTED), (signal.SIGINT, CTRL_C)],
)
def test_a_signal_writes_a_checkpoint_says_so_and_exits_with_the_documented_code(
    tmp_path, tiny, number, code
):
    out = tmp_path / "out"
    flags = [
        *tiny,
        "--max_train_steps",
        "100000",
        "--checkpointing_steps",
        "100000",
        "--output_dir",
        str(out),
    ]
    stopped = start(SCRIPT, *flags, signal_at=(3, number))
    assert stopped.wait() == code, stopped.output
    (step,) = checkpoint_steps(out / "checkpoints")
    assert step >= 3
    assert stopped.output.endswith(f"\nCheckpoint at step {step}; run the same command again.\n")
    assert "Traceback" not in stopped.output
    assert json.loads((out / "run.json").read_text())["steps"] == step


def test_changed_flags_are_listed_and_refused_on_resume(tmp_path, tiny):
    out = ["--output_dir", str(tmp_path / "out")]
    run(SCRIPT, *tiny, "--max_train_steps", "2", *out)
    before = weights(tmp_path / "out")
    again = run(
        SCRIPT, *tiny, "--max_train_steps", "2", "--learning_rate", "0.5", "--seed", "9", *out, check=False
    )
    assert again.wait() != 0
    assert "--learning_rate: 0.001 then, 0.5 now" in again.output
    assert "--seed: 0 then, 9 now" in again.output
    assert "--init_from" in again.output
    assert "Traceback" not in again.output
    assert_same(before, weights(tmp_path / "out"))
    free = run(SCRIPT, *tiny, "--max_train_steps", "2", "--logging_steps", "2", *out)
    assert "Resuming" in free.output


def test_a_warm_up_that_is_not_given_fits_the_run_and_stays_on_resume(tmp_path, tiny):
    place = tiny.index("--lr_warmup_steps")
    (tmp_path / "p").mkdir()
    for level in range(8):
        Image.new("L", (8, 8), 30 * level).save(tmp_path / "p" / f"{level}.png")
    own = ["--train_data_dir", str(tmp_path / "p"), "--validation_size", "0"]  # no preset has a warm-up
    flags = [*tiny[:place], *tiny[place + 2 :], *own]
    cut, uncut = ["--output_dir", str(tmp_path / "cut")], ["--output_dir", str(tmp_path / "uncut")]
    first = run(SCRIPT, *flags, "--max_train_steps", "20", *cut)
    assert "Warm-up of the learning rate: 2 steps, since the usual 5,000" in first.output
    rates = [line["learning_rate"] for line in scalars(tmp_path / "cut") if "learning_rate" in line]
    assert rates == pytest.approx([0, 5e-4, *[1e-3] * 18], rel=1e-6)  # they are logged in float32
    run(SCRIPT, *flags, "--max_train_steps", "40", *cut)  # alone it would take 4
    for name, steps in (("cut", None), ("uncut", "2")):
        if steps:
            run(SCRIPT, *flags, "--max_train_steps", "40", "--lr_warmup_steps", steps, *uncut)
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        assert config["lr_warmup_steps"] == 2
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "uncut"))


def test_a_run_inside_its_data_resumes_when_data_and_network_have_moved(tmp_path, tiny):
    """Its own plots are not data, and the fingerprint knows the copy."""
    (tmp_path / "p").mkdir()
    for level in range(6):
        Image.new("L", (8, 8), 40 * level).save(tmp_path / "p" / f"{level}.png")
    out = tmp_path / "p" / "run1"
    flags = [*tiny, "--validation_size", "0", "--train_data_dir"]
    run(SCRIPT, *flags, str(tmp_path / "p"), "--max_train_steps", "2", "--output_dir", str(out))
    assert (out / "samples.png").exists()
    shutil.copytree(tmp_path / "p", tmp_path / "copy", ignore=shutil.ignore_patterns("run1"))
    network = tmp_path / "network.json"
    network.write_text((tmp_path / "tiny.json").read_text())
    moved = [*flags, str(tmp_path / "copy"), "--model_config_name_or_path", str(network)]
    again = run(SCRIPT, *moved, "--max_train_steps", "3", "--output_dir", str(out))
    assert "at step 2" in again.output
    inside = run(SCRIPT, *flags, f"{tmp_path}/p/.", "--max_train_steps", "4", "--output_dir", str(out))
    assert "6 images of p" in inside.output
    assert "at step 3" in inside.output


def test_a_foreign_folder_is_left_alone(tmp_path, tiny):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for flags in ([], ["--overwrite_output_dir"]):
        flags = [*flags, *tiny, "--max_train_steps", "1", "--output_dir", str(tmp_path / "out")]
        done = run(SCRIPT, *flags, check=False)
        assert done.wait() != 0
        assert "--output_dir" in done.output
        assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.long
def test_a_folder_that_another_run_fills_is_left_alone(tmp_path, tiny):
    out = tmp_path / "out"
    flags = [*tiny, "--max_train_steps", "1", "--output_dir", str(out)]
    run(SCRIPT, *flags)
    before = weights(out)
    with open(out / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ([], ["--overwrite_output_dir"]):
            done = run(SCRIPT, *flags, *more, check=False)
            assert done.wait() != 0
            assert "is being filled by another run" in done.output
    assert_same(before, weights(out))
    run(SCRIPT, *flags, "--overwrite_output_dir")


def test_init_from_starts_from_the_weights_and_names_a_misfit(tmp_path, tiny):
    run(SCRIPT, *tiny, "--max_train_steps", "3", "--output_dir", str(tmp_path / "one"))
    (tmp_path / "digits.yaml").write_text("dataset_name: digits\n")
    flags = ["--config", str(tmp_path / "digits.yaml"), "--init_from", str(tmp_path / "one")]
    flags += ["--train_batch_size", "8", "--eval_batch_size", "4", "--max_train_steps", "1"]
    flags += ["--learning_rate", "1e-12", "--no-use_ema", "--ddpm_num_inference_steps", "10"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "two"))
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, atol=1e-6, rtol=0)
    misfit = run(SCRIPT, *flags, "--net", "unet_8", "--output_dir", str(tmp_path / "three"), check=False)
    assert "--init_from" in misfit.output
    assert "Traceback" not in misfit.output


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, tiny):
    out = tmp_path / "out"
    flags = [*tiny, "--max_train_steps", "50", "--learning_rate", "1e30", "--max_grad_norm", "0"]
    flags += ["--lr_warmup_steps", "0", "--output_dir", str(out)]
    done = run(SCRIPT, *flags, check=False)
    assert done.wait() != 0
    assert "not finite at step" in done.output
    assert not checkpoint_steps(out / "checkpoints")


@pytest.mark.parametrize("flag", ["bf16", "fp16"])
def test_mixed_precision_trains_on_cpu_or_says_why_not(tmp_path, tiny, flag):
    flags = [*tiny, "--max_train_steps", "2", "--output_dir", str(tmp_path / "out")]
    done = run(SCRIPT, *flags, "--mixed_precision", flag, check=False)
    if flag == "bf16":
        assert done.wait() == 0, done.output
        assert all(t.dtype == torch.float32 for t in weights(tmp_path / "out").values())
    elif done.wait():
        assert "fp16" in done.output
