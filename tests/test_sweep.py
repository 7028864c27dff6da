"""Sweeps: grids become points, done points are left alone, failures and signals leave the rest whole."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from entry import ROOT, environment, run

from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.options import samplers_of
from trilemma.eval.plots import charts
from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.results import REQUIRED, ResultLine, read
from trilemma.eval.studies import grid
from trilemma.eval.studies.grid import lines_of, make_all
from trilemma.eval.studies.jobs import Job, changed_flags, parse_training
from trilemma.eval.studies.processes import Children
from trilemma.eval.studies.questions import SWEEPS, Point, own_sweep, typed, words
from trilemma.eval.studies.repeats import mean_interval, verdict
from trilemma.eval.sweep import main
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.pipelines.networks.vdm_model import VDMModel
from trilemma.pipelines.vdm import VDMPipeline
from trilemma.training import progress
from trilemma.training.diffusion.process import SCHEDULES
from trilemma.training.loop.stop import CTRL_C, INTERRUPTED
from trilemma.training.networks.rows import NETS
from trilemma.training.options.parser import parse_flags

SCRIPT = "eval/sweep.py"


@pytest.mark.parametrize("name", SWEEPS)
def test_every_point_of_every_question_is_accepted_by_its_entry_point(name):
    row = SWEEPS[name]
    points = row.points()
    assert len({point.name for point in points}) == len(points) > 2
    for point in points:
        if point.family:
            parse_training(point, words(point.flags))  # which exits where a flag is refused
        assert point.flags.get("sampler", "ddim") in samplers_of(None)
        assert point.flags.get("net", "conv") in NETS
        assert point.flags.get("ddpm_beta_schedule", "linear") in SCHEDULES


def test_a_learned_schedule_stands_beside_the_same_model_with_a_fixed_one():
    models = [point for point in SWEEPS["schedules"].points() if point.family == "vdm"]
    assert [point.name for point in models] == ["vdm-linear", "vdm-learned"]
    fixed, learned = (changed_flags(parse_training(point, words(point.flags))) for point in models)
    assert (fixed.pop("gamma"), learned.pop("gamma")) == ("linear", "monotone")
    assert fixed == learned


def test_a_grid_is_all_combinations_the_last_flag_fastest():
    sweep = own_sweep(["loss_type=l2,l1", "ddpm_num_steps=10,100"], "unconditional")
    names = [point.name for point in sweep.points()]
    assert names == [f"loss_type={loss},ddpm_num_steps={t}" for loss in ("l2", "l1") for t in (10, 100)]
    assert sweep.x == "ddpm_num_steps"
    assert own_sweep(["loss_type=l2,l1"], "unconditional").x is None
    assert own_sweep(["guidance_scale=1,1.5"], None).family is None


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("loss_typ=l2", "Did you mean loss_type"),
        ("loss_type", "flag=value"),
        ("loss_type=l2,,l1", "flag=value"),
        ("random_flip=yes,no", "true or false"),
        ("loss_type=true", "switches"),
    ],
)
def test_bad_grids_are_refused_by_name(grid, message):
    with pytest.raises(ValueError, match=message):
        own_sweep([grid], "unconditional")
    with pytest.raises(ValueError, match="not a flag of how a model is sampled"):
        own_sweep(["loss_type=l2"], None)


def test_flags_go_to_a_command_line_and_back():
    assert words({"random_flip": "false", "compile": "true", "classes": "0 1"}) == [
        "--no-random_flip", "--compile", "--classes", "0", "1",
    ]  # fmt: skip
    for value in (True, ("a", "b c"), "a b", 0.5, ("x",)):
        flat = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        assert words({"flag": typed(value)})[1:] == ([] if value is True else flat)


def line(value):
    return dict.fromkeys(REQUIRED) | {
        "metric": "fd_pixels", "feature_extractor": "pixels", "value": value, "interval": None, "floor": None,
        "n": 9, "forced": False, "source": "run", "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def job(folder, name, *, train="pass", value=1.0, debiased=None, metrics=("fd_pixels",), **settings):
    """A point whose commands are this Python: `train`, then lines in its results and a mark that it ran."""
    place = folder / name
    lines = [line(value) | {"debiased": debiased, "metric": metric} for metric in metrics]
    told = "".join(json.dumps(each) + "\n" for each in lines)
    score = f"""
import pathlib
place = pathlib.Path({str(place)!r})
place.mkdir(exist_ok=True)
(place / "ran").open("a").write("x")
(place / "results.jsonl").open("a").write({told!r})
"""
    commands = [[sys.executable, "-S", "-c", code] for code in (train, score)]
    return Job(Point("unconditional", {"a": name}, name), place, *commands, settings)


def test_commands_of_a_sweep_keep_paths_with_spaces_whole(tmp_path, capsys):
    """What a dry run prints is what a shell takes apart again into the command."""
    model, output = tmp_path / "my model", tmp_path / "my sweep"
    scheduler = DDPMScheduler(num_train_timesteps=20, timestep_spacing="trailing")
    DDPMPipeline(
        UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **TINY), scheduler
    ).save_pretrained(model)
    main(["--model", str(model), "--grid", "seed=1,2", "--output_dir", str(output), "--dry_run"])
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(commands) == 2
    for command, name in zip(commands, ("seed=1", "seed=2"), strict=True):
        sampled = shlex.split(command)
        sampled = parse_flags(EvaluateConfig, "", sampled[sampled.index("trilemma.eval.evaluate") + 1 :])
        assert sampled.model.model == str(model)
        assert sampled.output.output == str(output / name / "results.jsonl")


def test_points_that_are_trained_are_sampled_alike_whatever_their_trainings_draw_with(tmp_path, capsys):
    """The digits' recipe draws its own samples with DPM-Solver++. test_model_images.py proves what 'saved'
    draws with; a recipe of the shortcut chain saves another pipeline than the other VDMs.
    """
    main(["--question", "schedules", "--output_dir", str(tmp_path), "--dry_run", "--", "--preset", "digits"])
    scored = [line for line in capsys.readouterr().out.splitlines() if "trilemma.eval.evaluate" in line]
    samplers = [line.split("--sampler ")[1].split()[0] for line in scored]
    assert samplers == ["saved"] * 5
    shortcut = ["--grid", "shortcut_steps=0,10", "--family", "vdm"]
    shortcut += ["--output_dir", str(tmp_path), "--dry_run"]
    main([*shortcut, "--", "--preset", "swirl-shortcut"])
    assert capsys.readouterr().out.count("--sampler saved") == 2
    main([*shortcut, "--sampler", "ancestral", "--", "--preset", "swirl-shortcut"])
    assert "saved" not in capsys.readouterr().out


def test_a_point_that_fails_is_shown_and_the_others_are_made_once(tmp_path, capsys):
    bad = "import sys\nfor i in range(30): print('line', i)\nsys.exit('the disk is full')"
    jobs = [job(tmp_path, "one", s=1), job(tmp_path, "two", train=bad, s=2), job(tmp_path, "three", s=3)]
    assert make_all(jobs, tmp_path) == ["two"]
    said = capsys.readouterr().out
    assert "the disk is full" in said
    assert "line 29" in said
    assert "line 5\n" not in said
    assert [told.extra["point"] for told in read(tmp_path / "results.jsonl")] == ["one", "three"]
    jobs[1] = job(tmp_path, "two", s=2)
    assert make_all(jobs, tmp_path) == []
    assert [told.extra["point"] for told in read(tmp_path / "results.jsonl")] == ["one", "three", "two"]
    assert [(tmp_path / name / "ran").read_text() for name in ("one", "two", "three")] == ["x"] * 3


def test_a_sweep_passes_on_what_a_point_says_last(tmp_path, monkeypatch, capsys):
    """Not what the log has of an earlier run."""
    monkeypatch.setattr(progress, "FIRST", 0.05)
    (tmp_path / "log").write_text("of an earlier run\n")
    code = "import time; time.sleep(0.5); print('drawing samples: image 3 of 9', flush=True); time.sleep(1)"
    with Children() as children:
        assert children.run([sys.executable, "-S", "-c", code], tmp_path / "log", "scoring seed=1") == 0
    said = capsys.readouterr().err
    assert re.search(r"^scoring seed=1: \d\d:\d\d so far, now drawing samples: image 3 of 9$", said, re.M)
    assert "earlier" not in said


def test_other_settings_are_measured_anew_and_only_new_lines_are_taken(tmp_path):
    make_all([job(tmp_path, "one", value=1.0, num_samples=10)], tmp_path)
    make_all([job(tmp_path, "one", value=2.0, num_samples=20)], tmp_path)
    found = read(tmp_path / "results.jsonl")
    assert [(told.value, told.extra["settings"]) for told in found] == [
        (1.0, {"num_samples": 10}),
        (2.0, {"num_samples": 20}),
    ]


def test_a_point_that_has_lost_a_line_is_measured_anew_and_its_old_lines_are_left_out(tmp_path):
    path, both = tmp_path / "results.jsonl", ("fd_pixels", "coverage_pixels")
    make_all([job(tmp_path, "one", metrics=both, s=1)], tmp_path)
    again = job(tmp_path, "one", metrics=both, value=2.0, s=1)
    assert [told.value for told in lines_of(again, tmp_path)] == [1.0, 1.0]
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert lines_of(again, tmp_path) == []
    make_all([again], tmp_path)
    found = lines_of(again, tmp_path)
    assert [(told.metric, told.value) for told in found] == [(metric, 2.0) for metric in both]
    assert len(read(path)) == 3


@pytest.mark.parametrize(
    ("places", "scale"), [((0, 1, 2), "linear"), ((0, 1000), "linear"), ((5, 50), "linear"), ((5, 51), "log")]
)
def test_every_point_of_a_curve_is_within_its_axis(places, scale):
    points = [
        (Point(None, {"seed": str(place)}), {"fd": ResultLine.from_json(line(1.0))}) for place in places
    ]
    axis = charts.sweep(points, ["fd"], "seed", "?").axes[0]
    assert axis.get_xscale() == scale
    low, high = axis.get_xlim()
    assert low <= min(places) < max(places) <= high


@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGINT, CTRL_C), (signal.SIGTERM, INTERRUPTED)])
def test_a_signal_reaches_the_training_as_sigterm_and_nothing_else_is_begun(tmp_path, number, ends_with):
    """A stand-in for a training: it says that it runs, waits for SIGTERM, and ends as a training does."""
    training = f"""
import os, pathlib, signal, time
def stop(number, frame):
    pathlib.Path({str(tmp_path / "checkpoint")!r}).write_text(str(number))
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({str(tmp_path / "started")!r}).touch()
time.sleep(600)
"""
    code = f"""
import sys
from pathlib import Path
from trilemma.eval.studies.grid import make_all
from trilemma.eval.studies.jobs import Job, Point
folder = Path({str(tmp_path)!r})
python = [sys.executable, "-S", "-c"]
jobs = [Job(Point(None, {{}}, n), folder / n, [*python, {training!r}], [*python, "pass"], {{}}) for n in "ab"]
make_all(jobs, folder)
"""
    sweep = subprocess.Popen([sys.executable, "-c", code], env=environment(), start_new_session=True)
    while not (tmp_path / "started").exists():
        assert sweep.poll() is None
        time.sleep(0.01)
    os.kill(sweep.pid, number)
    assert sweep.wait() == ends_with
    assert (tmp_path / "checkpoint").read_text() == str(int(signal.SIGTERM))
    assert {path.name for path in tmp_path.iterdir()} == {"started", "checkpoint", "a.log"}


def test_a_sweep_says_how_long_it_still_takes(tmp_path, capsys, monkeypatch):
    jobs = [Job(Point(None, {"seed": str(k)}), tmp_path / str(k), None, [], {}) for k in range(3)]
    monkeypatch.setattr(grid, "make", lambda *_: None)
    assert not make_all(jobs, tmp_path)
    printed = capsys.readouterr().out
    assert re.findall(r"about \d\d:\d\d left for (\d of \d) points", printed) == ["2 of 3", "1 of 3"]


@pytest.mark.parametrize("trains", [True, False])
def test_what_fails_at_every_point_is_found_before_the_first(tmp_path, trains):
    refuse = [sys.executable, "-c", "import sys; sys.exit('no ' + sys.argv[-1])"]
    job = Job(Point(None, {}, "a"), tmp_path / "a", refuse if trains else None, refuse, {})
    with pytest.raises(SystemExit, match=r"(?s)nothing was started: .*no --dry_run"):
        grid.check_first([job], tmp_path)


@pytest.mark.long
def test_a_grid_trained_and_scored_by_the_entry_points(tmp_path, tiny):
    """A point that is trained, the same command again, and a way to sample what came out."""
    (tmp_path / "digits.yaml").write_text("dataset_name: digits\n")
    out = tmp_path / "out"
    score = ["--metrics", "fd", "--feature_extractor", "pixels", "--num_samples", "70"]
    grid = ["--grid", "adam_beta2=0.99", "gradient_accumulation_steps=1"]
    sweep = [*grid, *score, "--output_dir", str(out)]
    flags = ["--", "--config", str(tmp_path / "digits.yaml"), *tiny, "--max_train_steps", "2"]
    first = run(SCRIPT, *sweep, "--sampler", "ddim", "--num_inference_steps", "2", *flags)
    (told,) = read(out / "results.jsonl")
    name = "adam_beta2=0.99,gradient_accumulation_steps=1"
    assert (told.extra["point"], told.metric, told.n, told.nfe) == (name, "fd_pixels", 70, 2)
    assert told.extra["training_seconds"] > 0
    assert told.extra["settings"]["training"]["max_train_steps"] == 2
    assert (out / name / "model_index.json").is_file()
    assert f"| {name} |" in first.output
    question = "adam_beta2-gradient_accumulation_steps"
    assert (out / f"{question}.png").is_file()
    assert name in (out / f"{question}.md").read_text()

    again = run(SCRIPT, *sweep, "--sampler", "ddim", "--num_inference_steps", "2", *flags)
    assert "done before" in again.output
    assert len(read(out / "results.jsonl")) == 1
    listed = run(SCRIPT, *sweep, "--dry_run", *flags)
    assert f"{name}: to do" in listed.output  # another sampler

    grid = ["--model", str(out / name), "--grid", "sampler=ddim", "num_inference_steps=2"]
    run(SCRIPT, *grid, *score, "--output_dir", str(tmp_path / "samplers"))
    (other,) = read(tmp_path / "samplers" / "results.jsonl")
    assert other.value == pytest.approx(told.value)
    assert (tmp_path / "samplers" / "sampler-num_inference_steps.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of --question and --grid"),
        (["--question", "samplers"], "give its --model"),
        (["--question", "losses", "--model", "x"], "--model has no effect"),
        (["--question", "losses", "--", "--output_dir", "x"], "the sweep's own --output_dir"),
        (["--question", "losses", "--", "--learning_rat", "1"], "Did you mean --learning_rate"),
        (["--question", "losss"], "--question"),
        (["--question", "losses", "--", "--loss_type", "l2"], "--loss_type has no effect"),
        (["--grid", "random_flip=true,false", "--", "--no-random_flip"], "--random_flip has no effect"),
        (["--question", "samplers", "--model", "m/m", "--sampler=ddim"], "--sampler has no effect"),
        (["--grid", "seed=0,1", "--model", "m/m", "--seed", "0"], "--grid seed="),
        (["--question", "losses", "--metrics", "fd", "covrage"], "--metrics must be one of fd, "),
        (
            ["--question", "losses", "--sampler", "ancestral"],
            "point loss_type=l2: --sampler must be one of ddim, ddpm",
        ),
        (
            ["--question", "targets", "--sampler", "euler_ancestral"],
            "point prediction_type=sample: --sampler must be one of",
        ),
        (
            ["--question", "losses", "--guidance_scale", "2"],
            "class-conditional models; that of point loss_type=l2 has no classes",
        ),
        (
            ["--question", "schedules", "--sampler", "ddim"],
            "point vdm-linear: --sampler must be one of ancestral, shortcut",
        ),
        (["--grid", "learning_rate=1,2", "--repeat_seeds", "3"], "two different seeds or more; got 3"),
        (["--grid", "learning_rate=1,2", "--repeat_seeds", "0", "0"], "two different seeds or more; got 0 0"),
        (["--grid", "seed=0,1", "--repeat_seeds", "0", "1"], "both set the seed"),
        (["--question", "samplers", "--model", "m/m", "--repeat_seeds", "0", "1"], "nothing is trained"),
        (["--question", "losses", "--repeat_seeds", "0", "1", "--", "--seed=3"], "--seed has no effect"),
        (["--grid", "sampler=bogus", "--model", "m/m"], "point sampler=bogus: --sampler must be one of"),
        (["--grid", "num_inference_steps=2,x", "--model", "m/m"], "the flags of point num_inference_steps=x"),
        (["--question", "samplers", "--model", "/no/such"], "'/no/such': there is no such folder"),
    ],
)
def test_bad_commands_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main(flags)
    assert refused.value.code
    assert message in f"{refused.value}{capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def test_every_point_is_trained_with_each_seed_and_draws_samples_of_its_own(tmp_path, capsys):
    seeds = ["--repeat_seeds", "0", "7", "3", "--num_samples", "50", "--seed", "4"]
    grid_flags = ["--grid", "loss_type=l2,l1", "--output_dir", str(tmp_path / "out"), "--dry_run"]
    main([*grid_flags, *seeds, "--", "--preset", "digits"])
    said = capsys.readouterr().out
    names = [f"loss_type={loss},seed={seed}" for loss in ("l2", "l1") for seed in (0, 7, 3)]
    assert re.findall(r"^(\S+): to do", said, re.MULTILINE) == names
    trained = re.findall(r"train_unconditional .* --seed (\d+)", said)
    drawn = re.findall(r"evaluate .* --seed (\d+)", said)
    assert (trained, drawn) == (["0", "7", "3"] * 2, ["4", "54", "104"] * 2)


def test_repeated_points_get_an_interval_and_a_verdict(tmp_path, capsys):
    """The page of a sweep says of its points what `eval/compare.py` says of their folders."""
    row = replace(own_sweep(["loss_type=l2,l1"], "unconditional"), seeds=("0", "1", "2"))
    values = {"l2": (1.0, 1.1, 0.9), "l1": (2.0, 2.2, 1.9)}
    jobs = []
    for point in row.points():
        value = values[point.flags["loss_type"]][int(point.flags["seed"])]
        made = job(tmp_path, point.name, value=value, setting=point.name)
        jobs.append(replace(made, point=point))
    assert make_all(jobs, tmp_path) == []
    grid.report("loss", row, jobs, tmp_path)
    page = (tmp_path / "loss.md").read_text()
    said, verdict_said = verdict(values["l2"], values["l1"], "lower")
    assert verdict_said == "better"
    assert f"| fd | loss_type=l2 against loss_type=l1 | {said} | better |" in page
    mean, error, half = mean_interval(values["l2"])
    interval = f"{number(mean)} ({number(mean - half)} .. {number(mean + half)})"
    assert f"| loss_type=l2 | fd | 3 | {interval} | {number(error)} |" in page
    assert page.count("| loss_type=l2,seed=") == 3
    assert "| better |" in capsys.readouterr().out


def test_the_page_says_where_plain_values_are(tmp_path):
    row = own_sweep(["loss_type=l2,l1"], "unconditional")
    for debiased in (None, 0.5):
        folder = tmp_path / str(debiased)
        folder.mkdir()
        jobs = [job(folder, point.name, debiased=debiased, setting=point.name) for point in row.points()]
        jobs = [replace(one, point=point) for one, point in zip(jobs, row.points(), strict=True)]
        assert make_all(jobs, folder) == []
        grid.report("loss", row, jobs, folder)
        said = (folder / "loss.md").read_text()
        assert ("`value` of `results.jsonl`" in said) == (debiased is not None)


def test_a_sampler_that_the_model_does_not_take_is_refused(tmp_path, capsys):
    scheduler = DDPMScheduler(prediction_type="sample")
    DDPMPipeline(UNet2DModel(sample_size=8, **TINY), scheduler).save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out"), "--dry_run", "--grid"]
    main([*flags, "sampler=ddim,heun"])
    assert capsys.readouterr().out.count("to do") == 2
    with pytest.raises(SystemExit, match=r"euler_ancestral cannot sample .* --prediction_type sample"):
        main([*flags, "sampler=ddim,euler_ancestral"])
    network = {**TINY, "_class_name": "UNet2DModel"}
    save_bundle(VDMPipeline(VDMModel(network, sample_size=8, in_channels=1)), tmp_path / "vdm")
    with pytest.raises(SystemExit, match="must be one of ancestral, shortcut, saved; got 'ddpm'"):
        main(["--question", "samplers", "--model", str(tmp_path / "vdm"), *flags[2:5]])
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(tmp_path):
    command = [sys.executable, str(ROOT / SCRIPT), "--question", "losses"]
    wrong = environment(WORLD_SIZE="2")
    done = subprocess.run(command, capture_output=True, text=True, env=wrong, cwd=tmp_path, check=False)
    assert "--launcher" in done.stderr
