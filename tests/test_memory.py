"""Memory: networks see no more images at once than the flags say, and running out of it is one line."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pretend_cuda.methods import BATCH, METHODS, batch
from torch.testing import assert_close

from trilemma.eval import evaluate, generate
from trilemma.eval.scoring import after_training, image_output, model_images, while_training
from trilemma.model_cards import publish
from trilemma.model_cards.hub import recheck as hub_recheck
from trilemma.training import entry, families, run
from trilemma.training.devices.memory import OutOfMemory, in_parts, saying_what_to_lower
from trilemma.training.loop.method import GradientDescent
from trilemma.training.loop.sheets import draw
from trilemma.training.loop.stop import StopSignal
from trilemma.training.options.flags import build

CPU = torch.device("cpu")


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=True)


def watch(net):
    """The largest batches that convolutions and linear layers of a network saw, filled while it runs."""
    sizes = []

    def note(module, inputs):
        sizes.append(len(inputs[0]))

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(note)
    return sizes


@pytest.mark.parametrize("name", METHODS)
def test_validation_in_parts_is_that_of_the_whole(name, accelerator):
    torch.manual_seed(0)
    method = METHODS[name](accelerator)
    method.net.eval()
    sizes = watch(method.net)
    logs = []
    for method.forward_batch in (64, BATCH, 5):
        logs.append(method.validate(*batch(CPU, 20), torch.Generator().manual_seed(3)))
        assert 0 < max(sizes) <= method.forward_batch
        sizes.clear()
    for other in logs[1:]:  # the same times and noise, whatever the parts
        assert_close(other, logs[0], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_discriminator_takes_whole_groups_of_both_kinds(accelerator):
    method = METHODS["ddgan"](accelerator)
    sizes = watch(method.discriminator)
    method.validate(*batch(CPU, 20), torch.Generator())
    assert set(sizes) == {2 * BATCH, 40 - 4 * BATCH}


def test_parts_of_tensors_tuples_and_other_arguments():
    seen = []

    def function(x, scale, y, t):
        seen.append((len(x), len(y), t.ndim))
        return x * scale, y + t

    x, y = torch.arange(7.0), torch.arange(14.0).view(7, 2)
    first, second = in_parts(function, 3)(x, 2, y, torch.tensor(1.0))
    assert torch.equal(first, 2 * x)
    assert torch.equal(second, y + 1)
    assert seen == [(3, 3, 0), (3, 3, 0), (1, 1, 0)]


def config_of(tmp_path, **options):
    values = dict(
        output_dir=str(tmp_path), eval_batch_size=7, sampler="ddim", ddpm_num_inference_steps=2, **options
    )
    return build(families.family("unconditional").config, values)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (dict(train_batch_size=5), 5),
        (dict(train_batch_size=5, eval_forward_batch=3), 3),
        (dict(train_batch_size=2, eval_forward_batch=64), 7),
    ],
)
def test_sheets_are_bounded_by_the_training_batch_or_the_flag(options, most, accelerator, tmp_path):
    method = METHODS["unconditional"](accelerator)
    sizes = watch(method.net)
    images = draw(method, accelerator, config_of(tmp_path, **options), StopSignal())
    assert len(images) == 7
    assert max(sizes) == most


def test_evaluation_is_bounded_by_the_training_batch(accelerator, tmp_path, monkeypatch):
    class Seen(Exception): ...

    def draw_batches(*_, batch_size, **__):
        raise Seen(batch_size)

    monkeypatch.setattr(model_images, "draw_batches", draw_batches)
    monkeypatch.setattr(while_training, "score", lambda sticks, batches, *_, **__: list(batches))
    pipeline = METHODS["unconditional"](accelerator)
    pipeline = pipeline.pipeline(pipeline.net)
    for options, most in ((dict(train_batch_size=5), 5), (dict(train_batch_size=512), 250)):
        config = config_of(tmp_path, eval_steps=1, **options)
        evaluation = while_training.Evaluation(config, None, None, accelerator, None, StopSignal())
        with pytest.raises(Seen, match=f"^{most}$"):
            evaluation(pipeline, pipeline, 1, 1)


# Out of memory


def too_much(*_, **__):
    """The CPU's own error."""
    return torch.empty(1 << 50)


def too_much_for_a_gpu(*_, **__):
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB of which 1 GiB "
        "is free. Including non-PyTorch memory, this process has 7 GiB memory in use."
    )


@pytest.mark.parametrize(
    ("owner", "name", "flag"),
    [
        (GradientDescent, "step", "--gradient_accumulation_steps"),
        (GradientDescent, "validate", "--eval_forward_batch"),
        ("trilemma.training.loop.loop", "draw", "--eval_forward_batch"),
        (while_training, "score", "--eval_forward_batch"),
        (run, "draw_pictures", "--eval_forward_batch"),
        ("trilemma.training.loop.loop", "ema_of", "--train_batch_size"),
    ],
)
@pytest.mark.parametrize("error", [too_much, too_much_for_a_gpu])
def test_running_out_of_memory_in_training_is_one_line(owner, name, flag, error, tmp_path, monkeypatch, tiny):
    if isinstance(owner, str):
        monkeypatch.setattr(f"{owner}.{name}", error)
    else:
        monkeypatch.setattr(owner, name, error)
    flags = [
        "--dataset_name", "digits", *tiny, "--max_train_steps", "1", "--output_dir", str(tmp_path / "out"),
        "--sample_steps", "1", "--validation_steps", "1", "--eval_steps", "1", "--cpu_threads", "1",
        "--eval_feature_extractor", "pixels", "--eval_num_samples", "10",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train_unconditional.py", *flags])
    with pytest.raises(SystemExit) as stop:
        entry.main("unconditional", "A test.")
    line = stop.value.code  # a text is printed, and the exit code is then 1
    assert line.startswith("error: memory ran out (")
    assert flag in line
    assert "\n" not in line
    assert "allocate" in line
    assert ("CUDA" in line) is (error is too_much_for_a_gpu)


@pytest.mark.parametrize(
    ("main", "owner", "name"),
    [(evaluate.main, after_training, "evaluate"), (generate.main, image_output, "draw_to_files")],
)
def test_running_out_of_memory_in_an_evaluation_is_one_line(main, owner, name, monkeypatch):
    monkeypatch.setattr(owner, name, too_much)
    with pytest.raises(SystemExit) as stop:
        main(["--model", "x"])
    assert "lower --batch_size" in stop.value.code
    assert "\n" not in stop.value.code


def test_running_out_of_memory_in_a_check_of_a_published_model_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(hub_recheck, "recheck", too_much)
    with pytest.raises(SystemExit):
        publish.main(["--verify", "x"])
    line = capsys.readouterr().err
    assert "lower --batch_size" in line
    assert line.count("\n") == 1


def test_a_gpu_says_how_much_it_lacks():
    with pytest.raises(OutOfMemory) as error, saying_what_to_lower("lower this"):
        too_much_for_a_gpu()
    assert str(error.value) == ("memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB): lower this")


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="a bug") as error, saying_what_to_lower("nothing"):
        raise RuntimeError("a bug")
    assert not isinstance(error.value, OutOfMemory)
    outer, inner = saying_what_to_lower("second"), saying_what_to_lower("first")
    with pytest.raises(OutOfMemory, match="first"), outer, inner:  # the remedy of the inner block counts
        raise MemoryError
