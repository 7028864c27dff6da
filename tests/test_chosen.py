"""Threads, precision and compiling where the flags leave them open."""

import json
import signal
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training import entry
from trilemma.training.devices import chosen
from trilemma.training.devices.chosen import COMPILED, Size, settle, use_bf16, with_all_threads, work
from trilemma.training.loop.method import GradientDescent
from trilemma.training.networks.build import build_network
from trilemma.training.networks.rows import NETS
from trilemma.training.objectives.ddpm import DDPM, schedule_of
from trilemma.training.options.command_line import parse
from trilemma.training.options.ddpm import DDPMConfig, ProcessConfig
from trilemma.training.options.groups import OptimConfig
from trilemma.training.output_folder import OutputFolder

HAS_BF16 = chosen.has_bf16
SIZES = {"unet_8": (8, 1), "unet_28_small": (28, 1), "unet_16": (16, 3), "unet_cifar10": (32, 3)}


@pytest.fixture(autouse=True)
def settings():
    """A CPU that has bf16 and two threads, and nothing left of it afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with mock.patch.object(chosen, "has_bf16", return_value=True):
        yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)


def accelerator(precision: str = "no") -> Accelerator:
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=True, mixed_precision=precision)


def settled(
    folder, size: float, *flags: str, launched: str = "no", faster: bool = True, images: int = 1
) -> tuple:
    """Precision and threads of a run of this work an image with a batch of 32, and whether it is compiled."""
    config = parse("unconditional", "", ["--preset", "digits", "--output_dir", str(folder), *flags])
    torch.set_num_threads(2)
    one = accelerator(config.run.mixed_precision or launched)
    method = mock.Mock()
    asked, config = config, settle(config, one, OutputFolder(folder), Size(size, images), faster, method)
    assert config.run.mixed_precision == one.mixed_precision
    assert method.compile.called == bool(config.run.compile and not asked.run.compile)
    return one.mixed_precision, torch.get_num_threads(), bool(config.run.compile)


def size_of(name: str) -> int:
    side, channels = SIZES[name]
    with torch.device("meta"):
        return work(build_network(NETS[name], channels=channels, resolution=side), side * side)


def test_the_digits_have_one_thread_in_float32_and_larger_networks_all_in_bf16(tmp_path, capsys):
    assert settled(tmp_path, size_of("unet_8")) == ("no", 1, False)
    assert "--cpu_threads 2" in capsys.readouterr().out
    for name in ("unet_28_small", "unet_16", "unet_cifar10"):
        assert settled(tmp_path, size_of(name)) == ("bf16", 2, False), name
        assert "--mixed_precision no" in capsys.readouterr().out


def test_what_was_asked_for_stays(tmp_path, capsys):
    large = size_of("unet_28_small")
    assert settled(tmp_path, large, "--mixed_precision", "no") == ("no", 2, False)
    assert settled(tmp_path, 1.0, "--mixed_precision", "bf16") == ("bf16", 1, False)
    assert settled(tmp_path, 1.0, launched="bf16") == ("bf16", 1, False)
    assert settled(tmp_path, large, faster=False) == ("no", 2, False)  # a family that does not let it
    assert settled(tmp_path, 1.0, "--cpu_threads", "2") == ("no", 2, False)
    with mock.patch.object(chosen, "has_bf16", return_value=False):
        assert settled(tmp_path, large) == ("no", 2, False)


@pytest.mark.parametrize("before", [("no", 2), ("bf16", 1), ("no", 64)])
def test_a_run_that_is_resumed_keeps_both(tmp_path, before):
    (tmp_path / "checkpoints").mkdir()
    precision, threads = before
    hardware = {"device": "cpu", "processes": 1, "threads": threads, "mixed_precision": precision}
    (tmp_path / "run.json").write_text(json.dumps({"hardware": hardware}))
    for size in (1.0, size_of("unet_28_small")):
        assert settled(tmp_path, size) == (precision, min(threads, 2), False)


def test_a_run_of_hours_on_a_cpu_is_compiled(tmp_path, capsys):
    size, long = COMPILED / 1e6, {"images": 1_000_000}
    assert settled(tmp_path, size, **long)[2] is True
    assert "--no-compile" in capsys.readouterr().out
    assert settled(tmp_path, size, images=999_999)[2] is False
    assert settled(tmp_path, size, **long, faster=False)[2] is False  # a family that does not let it
    assert settled(tmp_path, size, "--no-compile", **long)[2] is False
    assert settled(tmp_path, 1.0, "--compile")[2] is True
    chosen.has_bf16.return_value = False
    with mock.patch.object(Accelerator, "device", SimpleNamespace(type="cuda")):
        assert settled(tmp_path, size, **long)[2] is False


@pytest.mark.parametrize("before", [True, False, None])
def test_a_run_that_is_resumed_is_compiled_if_it_was(tmp_path, before):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"compile": before}))
    for images in (1, 1_000_000):
        assert settled(tmp_path, COMPILED / 1e6, images=images)[2] is bool(before)
    assert settled(tmp_path, 1.0, "--no-compile")[2] is False


@pytest.mark.parametrize(("before", "flag"), [(None, []), (None, ["--no-compile"]), (False, []), (True, [])])
def test_a_run_that_is_resumed_has_the_same_option(tmp_path, before, flag):
    """So that its checkpoint fits, whichever way says that it is not compiled."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"compile": before}))
    config = parse("unconditional", "", ["--preset", "digits", "--output_dir", str(tmp_path), *flag])
    size = Size(COMPILED, 1)
    config = settle(config, accelerator(), OutputFolder(tmp_path), size, True, mock.Mock())
    assert config.run.compile is before


@pytest.mark.parametrize("kept", ["", "no yaml: ["])
def test_a_run_whose_config_is_lost_or_damaged_follows_the_rule(tmp_path, kept):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(kept)
    assert [settled(tmp_path, COMPILED, images=images)[2] for images in (0, 1)] == [False, True]


def test_an_evaluation_has_its_own_threads():
    config = parse("unconditional", "", ["--preset", "digits", "--cpu_threads", "2"])
    torch.set_num_threads(1)
    evaluate = with_all_threads(config, accelerator(), lambda x: (x, torch.get_num_threads()))
    assert evaluate(3) == (3, 2)
    assert torch.get_num_threads() == 1


def test_a_precision_chosen_late_trains_as_one_chosen_early():
    """Bit for bit, in bf16 and in float32; and the two differ."""

    def trained(early: str, late: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        one, net = accelerator(early), build_network(NETS["unet_8"], channels=1, resolution=8)
        objective = DDPM(net, schedule_of(ProcessConfig()), DDPMConfig(), UnconditionalPipeline)
        method = GradientDescent(objective, one, OptimConfig(lr_warmup_steps=0), 10)
        if late == "bf16":
            use_bf16(one)
        x0 = torch.rand(4, 1, 8, 8) * 2 - 1
        losses = [method.step(x0, None)["loss"] for _ in range(2)]
        losses.append(method.validate(x0, None, torch.Generator().manual_seed(0))["loss"])
        assert all(values.dtype is torch.float32 for values in losses)
        return [*losses, *net.parameters()]

    torch.set_num_threads(1)
    bf16, late, plain = trained("bf16", "bf16"), trained("no", "bf16"), trained("no", "no")
    assert all(map(torch.equal, bf16, late))
    assert not torch.equal(plain[1], late[1])  # at first the network answers 0 in any precision


@pytest.fixture
def train(tmp_path, tiny, monkeypatch):
    """Weights after training by the entry point into this folder, for these steps, with these flags."""

    def trained(name: str, steps: int, *flags: str) -> dict[str, torch.Tensor]:
        AcceleratorState._reset_state(True)
        places = ["--output_dir", str(tmp_path / name), "--cpu_threads", "1", "--max_train_steps", str(steps)]
        places += ["--lr_scheduler", "constant_with_warmup"]  # its rates are the same for any length
        monkeypatch.setattr("sys.argv", ["train_unconditional.py", *tiny, *places, *flags])
        before = signal.getsignal(signal.SIGINT)
        try:
            entry.main("unconditional", "A test.")
        finally:
            signal.signal(signal.SIGINT, before)
        return load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors")

    return trained


@pytest.mark.long
def test_a_run_that_chose_to_compile_resumes_compiled(tmp_path, train, monkeypatch, capsys):
    """Cut and resumed without the flag, as with the flag and uncut."""
    calls = []

    def compile_nothing(forward, **options):
        return lambda *arguments, **more: calls.append(1) or forward(*arguments, **more)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(chosen, "COMPILED", 1)
    train("cut", 2)
    assert "the network compiled" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "cut" / "config.yaml").read_text())["compile"] is True
    monkeypatch.setattr(chosen, "COMPILED", 1e30)
    calls.clear()
    cut = train("cut", 4)
    assert calls
    uncut = train("uncut", 4, "--compile")
    assert all(torch.equal(cut[name], uncut[name]) for name in uncut)
    calls.clear()
    train("plain", 2)
    assert not calls


@pytest.mark.long
def test_a_run_in_the_chosen_precision_resumes_in_it(tmp_path, train, monkeypatch, capsys):
    """Cut and resumed without the flag, also on hardware without bf16, as with the flag and uncut."""
    monkeypatch.setattr(chosen, "BFLOAT16", 1)
    train("cut", 2)
    assert "precision bf16" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "cut" / "config.yaml").read_text())["mixed_precision"] == "bf16"
    monkeypatch.setattr(chosen, "has_bf16", lambda _: False)
    cut, uncut = train("cut", 4), train("uncut", 4, "--mixed_precision", "bf16")
    assert all(torch.equal(cut[name], uncut[name]) for name in uncut)


def test_which_devices_have_bf16():
    for amx, avx, expected in ((True, False, True), (False, True, True), (False, False, False)):
        cpu = SimpleNamespace(
            _is_amx_tile_supported=lambda a=amx: a, _is_avx512_bf16_supported=lambda a=avx: a
        )
        with mock.patch.object(torch, "cpu", cpu):
            assert HAS_BF16(torch.device("cpu")) is expected
    assert not HAS_BF16(torch.device("mps"))
