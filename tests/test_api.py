"""The toolkit from Python: docs/api.md as it stands there, the messages, and what a call leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from diffusers import UNet2DModel
from entry import ROOT, TINY

import trilemma
from trilemma.pipelines.files.saved import INDEX
from trilemma.training.output_folder import OutputFolder

PIXELS = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4
SMALL = dict(
    cpu_threads=1, train_batch_size=8, eval_batch_size=4, ddpm_num_inference_steps=5, sampler="ddim",
    lr_warmup_steps=0, logging_steps=1,
)  # fmt: skip


def network(**changes) -> UNet2DModel:
    values = {key: value for key, value in TINY.items() if key[0] != "_"}
    torch.manual_seed(0)
    return UNet2DModel(**{"sample_size": 8, "in_channels": 1, "out_channels": 1, **values, **changes})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)  # one thread
    AcceleratorState._reset_state(reset_partial_state=True)  # what another test has left
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def code_blocks(page: str) -> str:
    """The Python of a page, on its own lines, so that a traceback names them."""
    inside, lines = False, []
    for line in (ROOT / "docs" / page).read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(lines)


def test_the_page_runs_as_it_stands(here, capsys):
    space = {}
    exec(compile(code_blocks("api.md"), "docs/api.md", "exec"), space)
    said = capsys.readouterr().out
    assert "unknown option --lr_schedluer. Did you mean --lr_scheduler?" in said
    assert {line.measure for line in space["lines"]} == {"fd", "precision", "recall", "density", "coverage"}
    assert (here / "digit.png").is_file()
    # Images of a name are their flags, so the run is that of the command line; those of a script are not.
    first, shapes = OutputFolder(Path("outputs/first")), OutputFolder(Path("outputs/shapes"))
    assert first.read_config()["dataset_name"] == "digits"
    assert first.read_config()["net"] == "unet_8", "the preset of the digits"
    assert "in_memory" not in first.read_run()
    assert shapes.read_run()["in_memory"] == {"images": "my shapes", "network": "UNet2DModel"}
    card = shapes.card.read_text()
    assert "trained on my shapes" in card
    assert "Trained by a script with `trilemma.train`, which gave it images and network of its own." in card
    assert "accelerate launch" not in card


def test_importing_the_package_is_cheap():
    program = (
        "import sys, trilemma; dir(trilemma); assert 'torch' not in sys.modules; "
        "import trilemma.training.options.flags; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = trilemma.trian


def test_train_gives_what_the_command_line_gives(here, monkeypatch):
    from trilemma.training.entry import main

    (here / "net.json").write_text(json.dumps(TINY))
    options = dict(
        dataset_name="digits", model_config_name_or_path="net.json", max_train_steps=4, validation_size=8,
        eval_steps=0, **SMALL,
    )  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_unconditional.py", *words, "--output_dir", "by_flags"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    main("unconditional", "")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    trilemma.train(**options, output_dir="by_call")
    weights = [here / name / "unet/diffusion_pytorch_model.safetensors" for name in ("by_flags", "by_call")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    configs = [OutputFolder(here / name).read_config() for name in ("by_flags", "by_call")]
    assert {**configs[0], "output_dir": None} == {**configs[1], "output_dir": None}


@pytest.mark.parametrize(("options", "message"), [
    (dict(max_train_steps="ten"), "--max_train_steps must be int; got 'ten'"),
    (dict(max_train_steps=1.5), "--max_train_steps must be int; got '1.5'"),
    (dict(max_train_steps=0), "--max_train_steps must be at least 1; got 0"),
    (dict(use_ema=None), "--use_ema must be bool; got null"),
    (dict(eval_metrics="fd"), "--eval_metrics must be a list of str; got 'fd'"),
    (dict(eval_steps=1, eval_metrics=["fdd"]), "--eval_metrics must be one of fd, .*Did you mean fd"),
    (dict(p_uncond=0.1), "--p_uncond does not apply here; it is a flag of .*train_class_conditional.py"),
    (dict(preset="digit"), "--preset must be one of digits, .*Did you mean digits"),
    (dict(config="none.yaml"), "--config none.yaml"),
    (dict(images="photos/"), r"images must come from load_images\(\.\.\.\); got 'photos/'"),
    (dict(family="uncond"), "the family must be one of class_conditional, "),
    (dict(resolution=16), "--resolution has no effect with images= in memory; give it to load_images"),
    (dict(network=UNet2DModel, net="unet_8"), "--net has no effect with network= in memory"),
    (dict(network=network(in_channels=3)), "network= does not fit .*need: in_channels 1, not 3"),
    (
        dict(network=network(), family="vae", sampler="decoder", ddpm_num_inference_steps=1),
        "network= is not for this family",
    ),
])  # fmt: skip
def test_options_are_checked_as_on_the_command_line(here, options, message):
    with pytest.raises(ValueError, match=message):
        trilemma.train(**{"images": trilemma.load_images(PIXELS), "output_dir": "out", **SMALL, **options})


@pytest.mark.parametrize(("arguments", "message"), [
    ((PIXELS.float(),), r"must be uint8 \(N, C, H, H\).*got float32 \(40, 1, 8, 8\)"),
    ((PIXELS[:, :, :4],), r"square .*got uint8 \(40, 1, 4, 8\)"),
    ((PIXELS[:0],), "there are no images"),
    ((PIXELS, LABELS + 1, "abcd"), "labels must be in 0..3; got 1..4"),
    ((PIXELS, LABELS / 2), "labels must be 40 integers; got float32"),
    ((PIXELS, None, "abcd"), "class_names are the names of labels"),
    (("digits", LABELS), "labels and class_names are for arrays"),
])  # fmt: skip
def test_images_that_cannot_be_used_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        trilemma.load_images(*arguments)


def test_images_of_an_array_are_those_of_their_source(here):
    """The fingerprint depends on what a model sees alone."""
    digits = trilemma.load_images("digits")
    pixels, labels = digits.__getitems__(range(len(digits)))
    same = trilemma.load_images(pixels, np.asarray(labels), digits.class_names)
    assert same.fingerprint == digits.fingerprint
    assert digits.subset(range(5)).options is None, "no options give a part"


def test_a_call_leaves_the_process_as_it_was_and_a_stopped_run_continues(here, monkeypatch):
    """Ctrl-C in the first call; the rest in a thread, where there are no signals; then another precision."""
    from trilemma.training.loop.records import RunLog

    images, options = trilemma.load_images(PIXELS), dict(output_dir="out", max_train_steps=6, **SMALL)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers], threading.excepthook, torch.get_num_threads()
    write = RunLog.write

    def write_and_stop(self, values, step, show=()):
        write(self, values, step, show)
        if step == 3 and "loss" in values:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("trilemma.training.run.draw_pictures", lambda *facts: None)  # to be quick
    monkeypatch.setattr(RunLog, "write", write_and_stop)
    with pytest.raises(trilemma.Interrupted) as stopped:
        trilemma.train(images, network=network(), **options)
    monkeypatch.setattr(RunLog, "write", write)
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert stopped.value.code == 130
    assert OutputFolder(Path("out")).read_run()["steps"] == 3
    assert before[0] == [signal.getsignal(number) for number in numbers]
    rest = threading.Thread(target=trilemma.train, args=(images,), kwargs=dict(network=network(), **options))
    rest.start()
    rest.join()
    trilemma.train(images, network=network(), **{**options, "output_dir": "uncut"})
    out, uncut = (Path(name, "unet/diffusion_pytorch_model.safetensors") for name in ("out", "uncut"))
    assert out.read_bytes() == uncut.read_bytes()
    trilemma.train(images, network=network(), **{**options, "output_dir": "b", "mixed_precision": "bf16"})
    assert OutputFolder(Path("b")).read_run()["hardware"]["mixed_precision"] == "bf16"
    assert not PartialState._shared_state
    assert before == (
        [signal.getsignal(number) for number in numbers], threading.excepthook, torch.get_num_threads()
    )  # fmt: skip


def test_a_second_stop_of_a_script_raises_and_does_not_kill():
    from trilemma.training.loop.stop import StopSignal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.notice.code == 130
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_model_of_images_in_memory_is_measured_with_them(here):
    images = trilemma.load_images(PIXELS, LABELS)
    scoring = dict(
        metrics=["diversity"], feature_extractor="pixels", num_samples=8,
        sampler="ddpm", num_inference_steps=2, cpu_threads=1,
    )  # fmt: skip
    trilemma.train(images, network=network(), output_dir="out", max_train_steps=1, **SMALL)
    (line,) = trilemma.evaluate("out", images, **scoring)
    (recorded,) = [json.loads(text) for text in Path("out/results.jsonl").read_text().splitlines()]
    assert recorded["value"] == line.value
    # The same pipeline in memory gives the same number, is left in training mode, and writes no file.
    pipeline = trilemma.load("out")
    pipeline.unet.train()
    files = sorted(here.glob("*"))
    (again,) = trilemma.evaluate(pipeline, images, **scoring)
    assert (again.value, again.source) == (line.value, "unconditional pipeline")
    assert pipeline.unet.training
    assert sorted(here.glob("*")) == files
    with pytest.raises(ValueError, match="a script trained this model on images in memory"):
        trilemma.evaluate("out", **scoring)
    with pytest.raises(ValueError, match="give one of --model and --images"):
        trilemma.evaluate(reference=images)


def test_the_objective_of_a_gan_is_refused_and_others_are_alike(here):
    images = trilemma.load_images(PIXELS)
    with pytest.raises(
        ValueError, match="ddgan models are not trained by descending one objective; use train"
    ):
        trilemma.make_objective(images, "ddgan", net="unet_8", cpu_threads=1)
    objective = trilemma.make_objective(images, network=network(), cpu_threads=1)
    losses, _ = objective(PIXELS[:3] / 127.5 - 1, None)
    assert losses.shape == (3,)
    folder = trilemma.save(objective.pipeline(objective.net), "mine")
    assert re.search('"DDPMPipeline"', (folder / INDEX).read_text())
