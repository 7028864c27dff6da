"""Averages of any length: their closed forms, and what snapshots give beside averages that were tracked."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from entry import run
from safetensors.torch import load_file, save_file
from scipy import integrate
from torch import nn

from trilemma.model_cards.averages import plan
from trilemma.pipelines.files.reading import FileError
from trilemma.training.average import LengthConfig
from trilemma.training.loop.ema import (
    EMA,
    drop_snapshots,
    ema_decay,
    kept_profiles,
    save_snapshot,
    snapshot_steps,
    weighted_sum,
)
from trilemma.training.options.command_line import parse
from trilemma.training.options.groups import EMAConfig
from trilemma.training.output_folder import OutputFolder
from trilemma.training.post_hoc import (
    TRACKS,
    UNIFORM,
    Profile,
    combine,
    decay_of,
    halflife_of,
    power_of,
    power_of_halflife,
    product,
    std_of,
)

STEPS = 160


def density(profile):
    return lambda tau: (profile.power + 1) * tau**profile.power / profile.step ** (profile.power + 1)


@pytest.mark.parametrize("std", [0.01, *TRACKS, 0.2, UNIFORM])
def test_length_and_half_life_are_those_of_the_profile(std):
    power = power_of(std)
    assert std_of(power) == pytest.approx(std, rel=1e-9)
    p = density(Profile(power, 1))
    mean, square = (integrate.quad(lambda t, k=k: t**k * p(t), 0, 1)[0] for k in (1, 2))
    assert (square - mean**2) ** 0.5 == pytest.approx(std, rel=1e-6)
    share = halflife_of(power)
    assert integrate.quad(p, 1 - share, 1)[0] == pytest.approx(0.5)
    assert power_of_halflife(share) == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize("a", [Profile(0.0, 3), Profile(6.9, 5)])
@pytest.mark.parametrize("b", [Profile(2.5, 4), Profile(17.0, 8)])
def test_products_are_integrals(a, b):
    whole = integrate.quad(lambda t: density(a)(t) * density(b)(t), 0, min(a.step, b.step))[0]
    assert product(a, b) == pytest.approx(whole)
    assert product(b, a) == pytest.approx(whole)


def test_what_is_tracked_is_the_integral_of_the_profile():
    """Each step's weights count as the profile's integral over the step, to float64's rounding."""
    net = nn.Linear(3, 2).double()
    average, seen = EMA(net, ema_decay(EMAConfig(ema_std=0.1), 8)), []
    for step in range(1, STEPS + 1):
        nn.init.normal_(net.weight)
        seen.append(net.weight.detach().clone())
        average.update(step)
    edges = (torch.arange(STEPS + 1).double() / STEPS) ** (power_of(0.1) + 1)
    expected = torch.einsum("k,kij->ij", edges.diff(), torch.stack(seen))
    torch.testing.assert_close(average.average[0], expected, rtol=1e-9, atol=1e-12)


def walk(folder: Path, every: int, tracked: dict[float, EMA], net: nn.Module, steps: int = STEPS) -> EMA:
    """Weights that wander ever more slowly, as in a training, with snapshots."""
    ema, random = EMA(net, lambda step: 0.0, tracks=True), torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for p in net.parameters():
                p += 0.1 * (1 - step / (steps + 1)) * torch.randn(p.shape, generator=random)
        ema.update(step)
        for average in tracked.values():
            average.update(step)
        if step % every == 0:
            save_snapshot(folder, step, ema)
    return ema


@pytest.mark.parametrize("std", [0.03, 0.05, 0.07, 0.15, 0.2, 0.25])
def test_snapshots_give_averages_that_were_not_tracked(tmp_path, std):
    net = nn.Linear(40, 30)
    tracked = {std: EMA(net, partial(decay_of, power_of(std)))}
    walk(tmp_path, 5, tracked, net)
    kept = kept_profiles(tmp_path)
    weights, error = combine(kept, Profile(power_of(std), STEPS))
    assert weights.sum() == pytest.approx(1)
    made, (weight, bias) = weighted_sum(tmp_path, weights.tolist()), tracked[std].average
    assert made.keys() == {"weight", "bias"}
    assert (made["weight"] - weight).norm() < 0.01 * weight.norm()
    assert (made["bias"] - bias).norm() < 0.01 * bias.norm()
    if std in TRACKS:  # the snapshot itself, but for float16: half a unit in 2^-10
        assert error < 1e-6
        assert (made["weight"] - weight).abs().max() <= 2**-11 * weight.abs().max() * 1.01
    assert std_of(power_of(std)) not in TRACKS or weights.argmax() == len(kept) - len(TRACKS) + TRACKS.index(
        std
    )


def test_a_step_without_an_update_counts_in_the_tracks(tmp_path):
    """They follow the weights whatever fp16 skips: their profile is that of all steps."""
    ema = EMA(nn.Linear(2, 2), lambda step: 0.5, tracks=True)
    own = ema.average[0].clone()
    with torch.no_grad():
        ema.parameters[0].add_(1.0)
    ema.update(1, skipped=torch.tensor(True))
    assert torch.equal(ema.average[0], own)
    assert all(torch.equal(track.average[0], ema.parameters[0]) for track in ema.tracks)


def test_snapshots_of_later_steps_are_dropped_and_damaged_ones_named(tmp_path):
    walk(tmp_path, 5, {}, nn.Linear(3, 2), 20)
    drop_snapshots(tmp_path, 12)
    assert snapshot_steps(tmp_path) == [5, 10]
    path = tmp_path / "step-00000010.safetensors"
    tensors = load_file(path)
    tensors["0.05 bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(FileError, match=r"step-00000010.*not finite"):
        weighted_sum(tmp_path, [0.25] * 4)
    path.write_bytes(b"half")
    with pytest.raises(FileError, match="step-00000010"):
        weighted_sum(tmp_path, [0.25] * 4)


def parent(tmp_path: Path, steps: int = 20) -> OutputFolder:
    folder = OutputFolder(tmp_path / "model")
    walk(folder.averages, 5, {}, nn.Linear(3, 2), 20)
    folder.index.write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    folder.run.write_text(json.dumps({"steps": steps, "images_seen": 160}))
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give lengths: --std, or --halflife"),
        ({"std": (0.1, 0.3)}, r"--std must be above 0 and at most 0.288675 .*got 0.3"),
        ({"halflife": (100.0,)}, "--halflife must be above 0 and at most half of the 160 images"),
        ({"halflife": (0.0,)}, "--halflife must be above 0"),
        ({"std": (0.05, 0.0500000001)}, "two of the lengths would have the folder std-0.05"),
        (
            {"std": (0.005,)},
            r"std-0.005: 4 snapshots leave its profile an error of \d+%; take a length nearer",
        ),
        ({"std": (0.1,), "output_dir": "."}, "exists; delete it"),
    ],
)
def test_lengths_that_cannot_be_made_are_refused_before_anything_is(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "std-0.1").mkdir()
    with pytest.raises(ValueError, match=message):
        plan(LengthConfig(**flags), parent(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "std-0.1"]


def test_a_length_is_written_as_it_was_typed(tmp_path):
    flags = LengthConfig(std=(0.07, 0.06), halflife=(10.0,), output_dir=str(tmp_path / "out"))
    plans = plan(flags, parent(tmp_path))
    assert [planned.std for planned in plans[:2]] == [0.07, 0.06]
    assert [planned.folder.path.name for planned in plans] == ["std-0.07", "std-0.06", "halflife-10"]
    assert plans[2].facts["halflife_images"] == pytest.approx(10)


def test_an_average_is_kept_only_of_the_training_that_it_was_made_of(tmp_path):
    model, flags = parent(tmp_path), LengthConfig(std=(0.1,), output_dir=str(tmp_path / "out"))
    (planned,) = plan(flags, model)
    planned.folder.path.mkdir(parents=True)
    planned.folder.run.write_text(json.dumps(model.read_run() | {"average": planned.facts}))
    assert [planned.made, plan(flags, model)[0].made] == [False, True]
    model.run.write_text(json.dumps(model.read_run() | {"seconds": 7.0}))  # trained again
    with pytest.raises(ValueError, match=r"std-0\.1 exists; delete it"):
        plan(flags, model)


def test_snapshots_of_another_step_than_the_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="end at step 20, and its model is of step 25: train"):
        plan(LengthConfig(std=(0.1,)), parent(tmp_path, steps=25))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ema_std", "0.3"], "--ema_std must be at most 0.288675"),
        (["--ema_std", "0.1", "--ema_halflife_images", "100"], "--ema_std and --ema_halflife_images are two"),
        (["--ema_std", "0"], "--ema_std must be greater than 0"),
        (["--no-use_ema", "--ema_std", "0.1"], "--ema_std has no effect"),
    ],
)
def test_a_length_that_cannot_be_tracked_is_refused(capsys, flags, message):
    with pytest.raises(SystemExit):
        parse("unconditional", "", flags)
    assert message in capsys.readouterr().err


def weights_of(folder: Path) -> torch.Tensor:
    file = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return torch.cat([file[name].flatten() for name in sorted(file)])


@pytest.mark.long
def test_a_training_its_resumption_and_its_averages(tmp_path, tiny):
    script = "training/train_unconditional.py"
    flags = ["--dataset_name", "digits", *tiny, "--eval_steps", "0", "--lr_scheduler", "constant"]
    flags = [word for word in flags if word not in ("--lr_warmup_steps", "3")]
    out = {name: str(tmp_path / name) for name in ("whole", "parts", "direct", "without", "made")}
    end = ["--max_train_steps", "60"]
    kept = ["--ema_snapshot_steps", "4"]
    run(script, *flags, *end, *kept, "--output_dir", out["whole"])
    run(script, *flags, *end, "--ema_std", "0.15", "--output_dir", out["direct"])

    run(script, *flags, *kept, "--max_train_steps", "30", "--output_dir", out["parts"])
    late = OutputFolder(tmp_path / "parts").averages / "step-00000099.safetensors"
    late.write_bytes(b"of a branch that was left")
    run(script, *flags, *kept, *end, "--output_dir", out["parts"])
    assert not late.exists()
    for step in range(4, 61, 4):
        name = f"averages/step-{step:08d}.safetensors"
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    run(script, *flags, "--max_train_steps", "1", "--output_dir", out["without"])
    refused = run(script, *flags, *kept, *end, "--output_dir", out["without"], check=False)
    assert "--ema_snapshot_steps: 0 then, 4 now, and its averages begin at step 1" in refused.output

    score = ["--metrics", "fd", "--feature_extractor", "pixels", "--num_samples", "70", "--cpu_threads", "1"]
    score += ["--sampler", "ddim", "--num_inference_steps", "2"]
    lengths = ["--std", "0.05", "0.15", "--output_dir", out["made"]]
    sweep = run("training/average.py", out["whole"], *lengths, "--", *score)
    assert "| std-0.05 |" in sweep.output
    made, direct = tmp_path / "made" / "std-0.15", weights_of(tmp_path / "direct")
    error = (weights_of(made) - direct).norm() / direct.norm()
    assert error < 0.01
    assert error < 0.2 * (weights_of(tmp_path / "whole") - direct).norm() / direct.norm()
    config, told = OutputFolder(made).read_config(), OutputFolder(made).read_run()
    own = OutputFolder(tmp_path / "direct").read_config()
    changed = {name for name in own if own[name] != config[name]}
    assert changed == {"output_dir"}
    assert told["steps"] == 60
    assert told["average"]["snapshots"] == 15
    assert (made / "samples.png").is_file()
    assert "--ema_std" in (made / "README.md").read_text()
    assert "fd_pixels" in (made / "README.md").read_text()
    before = (made / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    more = ["--std", "0.05", "0.15", "0.1", "--output_dir", out["made"]]
    (tmp_path / "made" / "std-0.1.partial").mkdir()  # of a run that was killed
    run("training/average.py", out["whole"], *more)
    assert (made / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before
    names = {path.name for path in (tmp_path / "made").iterdir() if path.is_dir()}
    assert names == {"std-0.05", "std-0.1", "std-0.15"}
    assert (tmp_path / "made" / "std-0.1" / "README.md").is_file()
    other = run(
        "training/average.py", out["whole"], *more, "--", *score, "--model", out["direct"], check=False
    )
    assert "after the --, --model has no place" in other.output
