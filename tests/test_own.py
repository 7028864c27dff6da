"""`--preset own --minutes N`: what is chosen for pictures of one's own, and that it stays on a resume."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from entry import run
from PIL import Image

from trilemma.training import entry as entry_point
from trilemma.training.families import family
from trilemma.training.images.image_set import load_images
from trilemma.training.networks import own
from trilemma.training.networks.own import ENOUGH, SHARE, Timed, choose, with_options
from trilemma.training.networks.rows import CANDIDATES, NETS, candidates
from trilemma.training.options.command_line import given, parse
from trilemma.training.options.resolved import resolved
from trilemma.training.output_folder import OutputFolder

SCRIPT = "training/train_class_conditional.py"


@pytest.mark.parametrize("side", range(1, 300))
def test_every_network_fits_the_images_where_one_does(side):
    row = next((names for largest, names in CANDIDATES.items() if side <= largest), ("unet_128",))
    fitting = [name for name in row if side % 2 ** (len(NETS[name]["block_out_channels"]) - 1) == 0]
    if fitting:
        assert candidates(side) == tuple(fitting)
    else:
        with pytest.raises(ValueError, match=rf"got {side}\. Use \d+|points are images of one pixel"):
            candidates(side)
    assert candidates(side, points=True) == ("mlp",)


@pytest.mark.parametrize(
    ("preset", "network"),
    [("own", "unet_28_small or unet_28 or unet_16 or unet_cifar10"), ("digits", "unet_8")],
)
def test_a_dry_run_names_the_networks_and_refuses_sizes_that_none_takes(tmp_path, pictures, preset, network):
    argv = ["--preset", preset, "--train_data_dir", str(pictures), "--cache_dir", str(tmp_path / "cache")]
    with pytest.raises(ValueError, match="--resolution must be a multiple of"):
        list(resolved(parse("unconditional", "", [*argv, "--resolution", "9"])))
    assert f"network: {network}" in resolved(parse("unconditional", "", [*argv, "--resolution", "16"]))


def test_the_largest_network_that_sees_enough_images_is_taken():
    enough = 60 * 10 * SHARE / ENOUGH * 32  # seconds of a step with which ten minutes are just enough
    timed = [Timed("a", 500_000, enough / 4), Timed("b", 2_000_000, enough * 0.99), Timed("c", 9, 2 * enough)]
    chosen = choose(timed, 10)
    assert (chosen["net"], chosen["learning_rate"]) == ("b", 1e-3)
    assert chosen["max_train_steps"] * 32 == pytest.approx(ENOUGH / 0.99, rel=1e-2)
    assert choose(timed, 1)["net"] == "a"
    assert choose(timed, 10, per_step=4 * 32)["net"] == "c"
    for name, rate in (("a", 2e-3), ("b", 1e-3), ("c", 2e-4)):
        parameters = {"a": 10**6, "b": 5 * 10**6, "c": 5 * 10**6 + 1}[name]
        assert choose([Timed(name, parameters, 1.0)], 10)["learning_rate"] == rate


@pytest.mark.parametrize("minutes", [1e-6, 0.01, 1, 60, 10_000])
def test_what_is_chosen_can_be_given(minutes):
    """Every value is one that the command line takes, for the shortest and the longest trainings."""
    chosen = choose([Timed("unet_8", 10, 0.1)], minutes)
    config = parse("unconditional", "", ["--dataset_name", "digits"])
    resolved = with_options(config, chosen)
    flags = [f"--{name}={value}" for name, value in chosen.items()]
    assert parse("unconditional", "", ["--dataset_name", "digits", *flags]).optim == resolved.optim
    assert resolved.run.max_train_steps == chosen["max_train_steps"] >= 1


@pytest.mark.parametrize(
    "typed", [[], ["--train_batch_size", "64"], ["--gradient_accumulation_steps", "4"], ["--net", "unet_28"]]
)
@pytest.mark.parametrize("minutes", [1, 100])
def test_the_steps_fit_the_time_whatever_is_given(monkeypatch, tmp_path, pictures, typed, minutes):
    """Two networks take a millisecond an image, the third a hundred times as much; timing takes its time."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now

    def seconds(method, images, config, device, end):
        of_one = 1e-3 * config.optim.train_batch_size * (100 if config.net.net == "unet_16" else 1)
        clock.now += of_one * 23
        return of_one

    monkeypatch.setattr(own, "_micro_batch_seconds", seconds)
    monkeypatch.setattr(own, "time", clock)
    argv = ["--preset", "own", "--minutes", str(minutes), *typed, "--resolution", "16"]
    argv += ["--train_data_dir", str(pictures), "--cache_dir", str(tmp_path / "cache")]
    config = parse("unconditional", "", argv)
    row, names, folder = family("unconditional"), given("unconditional", argv), OutputFolder(tmp_path)
    images = load_images(config.data)
    done = row.complete(config, names, images, Accelerator(cpu=True), folder, row.build)
    optim = done.optim
    images_seen = done.run.max_train_steps * optim.train_batch_size * optim.gradient_accumulation_steps
    assert images_seen * 1e-3 == pytest.approx((60 * minutes - clock.now) * SHARE, rel=0.01)
    assert done.net.net == ("unet_28_small" if minutes == 1 and "--net" not in typed else "unet_28")
    assert optim.train_batch_size == (64 if "--train_batch_size" in typed else 32)
    assert done.own.minutes is None


def test_timing_ends_after_its_share_of_the_time(monkeypatch, tmp_path, pictures):
    """Micro-batches that take 2 of 60 seconds: three fit into a tenth, and no other network is timed."""
    clock, steps = SimpleNamespace(now=0.0), []
    clock.monotonic = clock.perf_counter = lambda: clock.now

    class Slow:
        net = torch.nn.Linear(1, 1)

        def step(self, x0, labels):
            steps.append(x0)
            clock.now += 2
            return {"loss": torch.zeros(1)}

    monkeypatch.setattr(own, "time", clock)
    argv = ["--preset", "own", "--minutes", "1", "--train_data_dir", str(pictures), "--resolution", "16"]
    config = parse("unconditional", "", [*argv, "--cache_dir", str(tmp_path / "cache")])
    images = load_images(config.data)
    timed = own.time_networks(config, images, Accelerator(cpu=True), lambda *facts: Slow())
    assert [(one.name, one.seconds) for one in timed] == [("unet_28_small", 2.0)]
    assert len(steps) == 3


def test_a_schedule_without_a_warm_up_gets_none(monkeypatch, tmp_path, pictures):
    monkeypatch.setattr(own, "_micro_batch_seconds", lambda *facts: 1.0)
    argv = ["--preset", "own", "--lr_scheduler", "constant", "--train_data_dir", str(pictures)]
    config = parse("unconditional", "", [*argv, "--cache_dir", str(tmp_path / "cache")])
    row = family("unconditional")
    facts = given("unconditional", argv), load_images(config.data), Accelerator(cpu=True)
    done = row.complete(config, *facts, OutputFolder(tmp_path), row.build)
    assert done.optim.lr_warmup_steps is None


def test_what_is_given(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("net: unet_8\n")
    assert given("unconditional", ["--preset", "own", "--seed", "3"]) >= {"seed"}
    assert "prediction_type" not in given("unconditional", ["--preset", "own"])
    assert "net" in given("unconditional", ["--config", str(file)])


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            grey = rng.integers(0, 120, (8, 8), dtype=np.uint8) + (120 if name == "light" else 0)
            Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_a_folder_that_does_not_exist_is_refused_before_the_libraries_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--train_data_dir", str(tmp_path / "phtos")])
    monkeypatch.setattr(entry_point, "loading_libraries", lambda: pytest.fail("it loads the libraries"))
    with pytest.raises(SystemExit, match=r"^error: --train_data_dir '.*phtos' does not exist; pass a folder"):
        entry_point.main("unconditional", "")


def test_a_run_of_a_few_seconds_keeps_its_settings_and_its_own_flags(tmp_path, pictures):
    out, cache = tmp_path / "out", tmp_path / "cache"
    flags = ["--preset", "own", "--train_data_dir", str(pictures), "--output_dir", str(out)]
    flags += ["--cache_dir", str(cache), "--learning_rate", "1e-3", "--eval_batch_size", "4"]
    first = run(SCRIPT, *flags, "--minutes", "0.02")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert f"--net unet_8 --max_train_steps {config['max_train_steps']}" in first.output
    assert "less than the 60,000 images" in first.output
    assert "so few give little but noise" in first.output
    expected = {"net": "unet_8", "learning_rate": 1e-3, "prediction_type": "v_prediction", "minutes": None}
    assert expected.items() <= config.items()
    again = run(SCRIPT, *flags, "--minutes", "0.02")
    assert "stay. To train longer, use another --output_dir" in again.output
    assert f"at step {config['max_train_steps']}" in again.output
    assert yaml.safe_load((out / "config.yaml").read_text()) == config
    steps = [json.loads(line)["step"] for line in (out / "logs" / "scalars.jsonl").read_text().splitlines()]
    assert max(steps) == config["max_train_steps"]
