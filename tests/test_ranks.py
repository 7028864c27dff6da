"""What processes agree on: decisions, errors, flags, folders and noise, and what they draw together."""

import ast
import errno
import json
import os
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from entry import ROOT
from test_architecture import SOURCES
from test_distributed import launch
from test_writing import resource_limit

from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.eval.scoring import image_output
from trilemma.eval.scoring.image_output import Parts, draw_to_files
from trilemma.pipelines.files import writing
from trilemma.pipelines.files.writing import aside_of, target_of
from trilemma.training.devices.ranks import seed_noise
from trilemma.training.loop import machine
from trilemma.training.options.command_line import parse

AGREE, DRAW = (str(ROOT / "tests" / f"two_ranks_{name}.py") for name in ("agree", "draw"))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes saw, whose folders are on disks of their own."""
    folder = tmp_path_factory.mktemp("machines")
    launch(2, AGREE, "check", str(folder), str(folder / "report.json"))
    return json.loads((folder / "report.json").read_text())


@pytest.mark.distributed
def test_one_process_decides_and_all_fail_together(seen):
    main, other = seen
    assert main["decided"] == other["decided"] == 0
    assert main["main fails"] == "OSError: the disk is gone"
    assert other["main fails"] == "ValueError: the disk is gone"
    assert main["one fails"] == "ValueError: the disk is gone (on process 1)"
    assert other["one fails"] == "OSError: the disk is gone"
    assert main["none fails"] == other["none fails"] == "returned done"


@pytest.mark.distributed
def test_what_differs_is_named(seen):
    for one in seen:
        assert (
            one["differ"]
            == "ValueError: processes differ; sow the same: --seed: 0 on process 0, 1 on process 1"
        )
        assert one["same"] == "returned None"
        assert one["one has more"].endswith("sow the same: --b: None on process 0, 1 on process 1")
        assert one["same code"] == "returned None"
        assert one["code"].endswith("versions on all machines: torch: 2.0 on process 0, 2.1 on process 1")


@pytest.mark.distributed
def test_a_signal_to_one_process_abandons_what_all_do_between_two_items(seen):
    """The one that receives it does not finish its item; the other finishes its own."""
    main, other = [one["stopped"] for one in seen]
    assert main == [0, 1, 2, 3, 0, "code 75", "code 75"]
    assert other == [0, 1, 2, 0, "code 75", "worked", "code 75"]


@pytest.mark.distributed
def test_a_folder_that_is_not_shared_is_an_error_on_all_and_leaves_nothing(seen):
    for one in seen:
        assert one["shared"] == "returned None"
        assert one["apart"].startswith("ValueError: all machines must share --output: process 1 on ")
        assert one["left"] == ["both"]


@pytest.mark.distributed
def test_whether_the_best_model_is_saved_is_decided_by_one_process(seen):
    """Saving is a collective, and results.jsonl lies where only the main process writes it."""
    assert [one["kept"] for one in seen] == [[1, 2, 4]] * 2


@pytest.mark.distributed
def test_the_checkpoint_to_resume_is_chosen_by_one_process(seen):
    assert [one["resumed"] for one in seen] == [2, 2]
    assert all("step-00000002 is damaged" in one["not there"] for one in seen)
    assert seen[0]["not there"].endswith("(on process 1)")


@pytest.mark.long
@pytest.mark.distributed
def test_a_training_on_machines_without_a_shared_folder_ends_at_the_start(tmp_path, tiny):
    done = launch(2, AGREE, "start", str(tmp_path), *tiny, "--output_dir", "runs/one", check=False)
    assert done.returncode
    assert "error: all machines must share --output_dir: process 1 on " in done.stderr
    assert "Traceback" not in done.stderr.split("error: all machines")[0]
    assert not [*(tmp_path / "0").iterdir(), *(tmp_path / "1").iterdir()]


@pytest.mark.long
@pytest.mark.distributed
def test_a_training_with_another_seed_on_one_process_ends_at_the_start(tmp_path, tiny):
    flags = [*tiny, "--output_dir", str(tmp_path / "out"), "--seed", "{rank}"]
    done = launch(2, AGREE, "start", str(tmp_path), *flags, check=False)
    assert done.returncode
    assert "with the same flags: --seed: 0 on process 0, 1 on process 1" in done.stderr
    assert not (tmp_path / "out").exists()


SEVERAL = [
    ("ACCELERATE_USE_FSDP", "true", "FSDP .* MULTI_GPU"),
    ("ACCELERATE_USE_DEEPSPEED", "True", "DeepSpeed .* MULTI_GPU"),
    ("ACCELERATE_USE_MEGATRON_LM", "1", "Megatron-LM .* MULTI_GPU"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config .* MULTI_GPU"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend .* --compile"),
    ("ACCELERATE_MIXED_PRECISION", "fp8", "fp8 .* --mixed_precision bf16"),
]


@pytest.mark.parametrize(("variable", "value", "message"), SEVERAL)
def test_what_would_train_something_else_is_refused(monkeypatch, tmp_path, variable, value, message):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(machine, "Accelerator", lambda **_: pytest.fail("built"))
    config = parse("unconditional", "", ["--preset", "digits", "--output_dir", str(tmp_path)])
    for make in (lambda: machine.make_accelerator(config), machine.evaluation_accelerator):
        with pytest.raises(ValueError, match=message):
            make()


def test_what_accelerate_launch_sets_by_itself_is_not_refused():
    usual = {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_CPU": "true"}
    for precision in ("no", "fp16", "bf16"):
        machine.refuse_unsupported({**usual, "ACCELERATE_MIXED_PRECISION": precision})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_one_file_opens_accelerate(path):
    """So every entry point refuses what is not supported."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    opened = [call for call in calls if isinstance(call, ast.Name) and call.id == "Accelerator"]
    assert not opened or path == ROOT / "training" / "loop" / "machine.py"


def test_no_two_ranks_of_any_two_seeds_share_noise():
    """accelerate's own rule gives (seed 0, rank 1) what (seed 1, rank 0) has."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    streams = set()
    for seed in range(4):
        for rank in range(4):
            seed_noise(seed, rank)
            streams |= {tuple(torch.randn(4).tolist()), tuple(np.random.rand(4)), (random.random(),)}
    assert len(streams) == 3 * 16
    seed_noise(3, 0)
    assert torch.equal(torch.randn(4), torch.randn(4, generator=torch.Generator().manual_seed(3)))
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])
    random.setstate(before[2])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **TINY)
    DDPMPipeline(net, DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)
    return folder


def draw(model, output, n=12):
    """In this process, one image at a time, as two processes do below: equal bytes are promised then."""
    sampling = SamplingConfig(num_samples=n, sampler="ddim", num_inference_steps=2)
    draw_to_files(ModelConfig(model=str(model), batch_size=1), sampling, str(output))
    return output.read_bytes()


@pytest.mark.long
@pytest.mark.distributed
def test_processes_that_were_killed_lose_no_row_of_an_array(model, tmp_path):
    """The parts that two processes wrote are kept, whatever number of processes goes on with them."""
    output = tmp_path / "two.npy"
    flags = ["--model", str(model), "--output", str(output), "--num_samples", "12", "--batch_size", "1"]
    flags += ["--sampler", "ddim", "--num_inference_steps", "2", "--cpu_threads", "1"]
    assert launch(2, DRAW, "kill", *flags, check=False).returncode
    parts = Parts(output.with_name("two.npy.parts"), (8, 8, 1))
    kept = [row for row, _ in parts.rows()]
    assert {1, 3} <= set(kept)  # of the process that was killed
    assert not {5, 7, 9, 11} & set(kept)
    launch(2, DRAW, "go on", *flags)
    assert output.read_bytes() == draw(model, tmp_path / "one.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"one.npy", "two.npy"}


@pytest.mark.long
def test_only_what_is_missing_is_drawn_again(model, tmp_path, monkeypatch):
    """A half-written record, one with a flipped bit and rows that were never drawn."""
    whole = draw(model, tmp_path / "whole.npy")
    drawn, write = [], Parts.write

    def some(drawing, count):
        for _, batch in zip(range(count), drawing, strict=False):
            drawn.append(int(batch[0]))
            yield batch

    def fail_after(count):
        def cut(self, drawing, rank):
            write(self, some(drawing, count), rank)
            raise OSError("the disk is gone")

        return cut

    monkeypatch.setattr(Parts, "write", fail_after(5))
    with pytest.raises(OSError, match="the disk is gone"):
        draw(model, tmp_path / "cut.npy")
    part = tmp_path / "cut.npy.parts" / "process-00000.part"
    size = part.stat().st_size // 5
    content = bytearray(part.read_bytes()[: 4 * size + 7])  # the fifth is half-written
    content[2 * size + 30] ^= 1
    part.write_bytes(content)
    drawn.clear()
    monkeypatch.setattr(Parts, "write", lambda self, drawing, rank: write(self, some(drawing, 99), rank))
    assert draw(model, tmp_path / "cut.npy") == whole
    assert drawn == [2, *range(4, 12)]
    array = np.load(tmp_path / "cut.npy")
    assert (array.shape, array.dtype) == ((12, 8, 8, 1), np.uint8)
    np.save(tmp_path / "again.npy", array)
    assert (tmp_path / "again.npy").read_bytes() == whole


def test_an_array_without_all_its_rows_is_not_written(model, tmp_path, monkeypatch):
    write = Parts.write

    def lost(self, drawing, rank):
        written = write(self, drawing, rank)
        with open(self.file_of(rank), "r+b") as file:
            file.truncate(7 * self.record.itemsize)
        return written

    monkeypatch.setattr(image_output.Parts, "write", lost)
    with pytest.raises(ValueError, match=r"5 of 12 images are missing .* number 7; .* process-00000.part"):
        draw(model, tmp_path / "x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy.parts"]
    monkeypatch.setattr(image_output.Parts, "write", write)
    draw(model, tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("name", "full"), [("x.npy", "process-0"), ("x.npy", "/.x.npy."), ("x", "drawing.json")]
)
def test_drawing_on_a_full_disk_names_the_file_and_goes_on_when_there_is_room(
    model, tmp_path, monkeypatch, name, full
):
    """No room for the images, for the array that they are put together in, or for their settings."""
    whole, output = draw(model, tmp_path / "whole.npy", 10), tmp_path / name
    sync, add = writing.os.fsync, image_output.write_all

    def fail(handle):
        if full in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    def fail_half_way(file, data):
        with resource_limit(100) if full == "process-0" else nullcontext():
            add(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", fail)
        patch.setattr(image_output, "write_all", fail_half_way)
        with pytest.raises(OSError, match=f"{output}.* could not be written"):
            draw(model, output, 10)
    assert not [path for path in tmp_path.rglob("*") if target_of(path.name)]
    sampling = SamplingConfig(num_samples=10, sampler="ddim", num_inference_steps=2)
    draw_to_files(ModelConfig(model=str(model), batch_size=1), sampling, str(output))
    if name == "x":
        assert len(list(output.iterdir())) == 10 + 1
    else:
        assert output.read_bytes() == whole


def test_what_a_killed_drawing_left_is_replaced(model, tmp_path):
    """Half a picture, an empty one, and an empty record of the settings; a file of another job stays."""
    output = tmp_path / "x"
    output.mkdir()
    (output / "drawing.json").write_text("")
    half, other = aside_of(output / "00000001.png"), aside_of(output / "00000700.png")
    for path in (half, other, output / "00000002.partial", output / "00000003.png"):
        path.write_bytes(b"")
    sampling = SamplingConfig(num_samples=4, sampler="ddim", num_inference_steps=2)
    draw_to_files(ModelConfig(model=str(model)), sampling, str(output))
    pictures = [f"{seed:08d}.png" for seed in range(4)]
    assert sorted(path.name for path in output.iterdir()) == [other.name, *pictures, "drawing.json"]
    assert all(path.stat().st_size for path in output.glob("*.png"))
