"""The acceptance test of the families: one that lives in `toy_family/` and that no other file knows.

Its files are looked up by its name. It is trained, sampled by seeds, measured and described on a card.
"""

import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.scoring.results import read
from trilemma.training import families
from trilemma.training.options.flags import build
from trilemma.training.output_folder import OutputFolder
from trilemma.training.sampling import sample

TOY = Path(__file__).with_name("toy_family")
FLOORS = {
    "trilemma.training.families": "training_families",
    "trilemma.pipelines": "pipelines",
    "trilemma.eval.bounds": "bounds",
    "trilemma.eval.pictures": "pictures",
    "trilemma.model_cards.wording": "wording",
}


@pytest.fixture(scope="module")
def column():
    """The family's files, each visible on its floor."""
    modules = dict(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for floor, folder in FLOORS.items():
            package = importlib.import_module(floor)
            patch.setattr(package, "__path__", [*package.__path__, str(TOY / folder)])
        importlib.invalidate_caches()
        yield
        for floor, folder in FLOORS.items():
            for path in (TOY / folder).glob("*.py"):
                sys.modules.pop(f"{floor}.{path.stem}", None)
                vars(importlib.import_module(floor)).pop(path.stem, None)
    assert not [name for name in sys.modules.keys() - modules.keys() if name.split(".")[-1] == "toy"]


@pytest.fixture(scope="module")
def trained(column, tmp_path_factory):
    """The output folder of a training by its entry point, with an evaluation and a card."""
    from trilemma.eval.scoring import after_training
    from trilemma.model_cards.rendering.render import write_card
    from trilemma.training.entry import main

    root = tmp_path_factory.mktemp("toy")
    flags = ["--output_dir", str(root / "out"), "--cache_dir", str(root / "cache"), "--cpu_threads", "1"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_toy.py", "--max_train_steps", "20", *flags])
        main("toy", "A toy.")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    values = dict(
        model=str(root / "out"), num_samples=100, feature_extractor="pixels", metrics=("fd", "bpd"),
        bpd_images=50, batch_size=50, cache_dir=str(root / "cache"),
    )  # fmt: skip
    after_training.evaluate(build(EvaluateConfig, values))
    write_card(root / "out")
    return root / "out"


def test_it_is_a_family_like_the_others(column):
    assert "toy" in families.names()
    assert set(FLOORS) == {floor for floor in FLOORS if families.column(floor, "toy")}
    with pytest.raises(ValueError, match=r"must be one of class_conditional, .*toy"):
        families.family("tyo")


@pytest.mark.parametrize(("flags", "message"), [
    (["--sampler", "ddim"], "--sampler must be one of pixels; got 'ddim'"),
    (["--p_uncond", "0.1"], "--p_uncond does not apply here"),
    (["--toy_scale", "0"], "--toy_scale must be greater than 0"),
    (["--eval_steps", "1", "--eval_metrics", "fdd"], "got 'fdd'"),
])  # fmt: skip
def test_its_flags_are_checked(column, capsys, monkeypatch, flags, message):
    from trilemma.training.entry import main

    monkeypatch.setattr(sys, "argv", ["train_toy.py", "--dry_run", *flags])
    with pytest.raises(SystemExit) as stop:
        main("toy", "A toy.")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_it_is_trained_and_its_folder_says_so(trained):
    folder = OutputFolder(trained)
    assert folder.family == "toy"
    assert folder.read_run()["steps"] == 20
    assert folder.read_config()["toy_scale"] == 0.5
    losses = [json.loads(line) for line in folder.scalars.read_text().splitlines()]
    losses = [line["loss"] for line in losses if "loss" in line]
    assert losses[-1] < losses[0] - 0.3
    for name in ("samples.png", "mean.png", "loss.png"):
        assert (trained / name).is_file()


def test_it_is_sampled_by_seeds(trained):
    from trilemma.eval.scoring.model_images import load_model

    pipeline = load_model(str(trained), torch.device("cpu"))
    assert (pipeline.family, pipeline.sampler) == ("toy", "pixels")
    images = sample(pipeline, range(5), batch_size=3)
    assert images.shape == (5, 1, 8, 8)
    assert torch.equal(images[3:], sample(pipeline, [3, 4], batch_size=1))
    assert not torch.equal(images[0], images[1])


def test_it_is_measured(trained):
    lines = {line.metric: line for line in read(OutputFolder(trained).results)}
    distance, bound = lines["fd_pixels"], lines["bpd_train"]
    assert (distance.measure, distance.sampler, distance.nfe, distance.step) == ("fd", "pixels", 1, 20)
    assert (bound.measure, bound.n, bound.sampler) == ("bpd", 50, None)
    assert bound.value == pytest.approx(lines["bpd_train_pixels"].value)
    assert lines["bpd_train_pixels"].measure == "pixels_bpd"
    assert 1 < bound.value < 8, "independent uniform bytes have 8"


def test_its_card_names_it(trained):
    from trilemma.model_cards.rendering.differences import Comparison, compare_card

    text = OutputFolder(trained).card.read_text()
    assert "A toy model of independent pixels of 8x8 grey images, trained on digits" in text
    assert "![images, and the mean of each pixel](mean.png)" in text
    assert "training/train_toy.py --preset digits" in text
    assert "title = {Independent pixels}" in text
    assert ModelCard(text).data.tags == ["diffusers", "trilemma", "toy", "independence"]
    count = 2 * len(read(OutputFolder(trained).results))
    assert compare_card(trained) == Comparison(count)


def test_a_stranger_runs_the_snippet(trained, tmp_path):
    """In a process of its own, where there is no toy family and no toolkit."""
    from trilemma.model_cards.rendering.render import render_card

    (snippet,) = re.findall(r"^```python\n(.*?)\n```$", render_card(trained, str(trained)), re.DOTALL | re.M)
    program = f"import sys\nsys.modules['trilemma'] = None\n{snippet}\nassert len(images) == 2"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sample.png").is_file()


def test_it_is_swept(column, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "trilemma.eval.sweep", raising=False)  # it has the families in its flags
    sweep = importlib.import_module("trilemma.eval.sweep")
    flags = ["--family", "toy", "--grid", "toy_scale=0.5,1", "--output_dir", str(tmp_path), "--dry_run"]
    try:
        sweep.main([*flags, "--sampler", "pixels"])
        listed = capsys.readouterr().out
        with pytest.raises(SystemExit, match=r"--sampler must be one of pixels, saved; got 'ddim'"):
            sweep.main([*flags, "--sampler", "ddim"])
        with pytest.raises(SystemExit, match=r"that of point toy_scale=0.5 has no classes"):
            sweep.main([*flags, "--classes", "3"])
    finally:
        sys.modules.pop("trilemma.eval.sweep")
    assert listed.count("-m trilemma.training.train_toy ") == 2
    assert not list(tmp_path.iterdir())


def test_its_numbers_come_out_again(trained, monkeypatch):
    from trilemma.model_cards.hub.recheck import recheck

    monkeypatch.setenv("TRILEMMA_CACHE", str(trained.parent / "cache"))
    checks = {check.line.metric: check.agrees for check in recheck(str(trained))}
    assert checks["fd_pixels"] is True
    assert checks["bpd_train"] is None
