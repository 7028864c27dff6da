"""Published studies: the table is whole, its commands are accepted, and a study runs and is resumed."""

import json
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trilemma.eval import reproduce
from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.features.train_judges import ROWS
from trilemma.eval.options import ModelConfig
from trilemma.eval.reproductions import page, plan
from trilemma.eval.reproductions.cells import DATA, Cell, Published
from trilemma.eval.reproductions.figures import OF_DDPM, on_the_way, write_figures
from trilemma.eval.reproductions.page import Measured, against
from trilemma.eval.reproductions.plan import BUDGETS, Budget, Planned, Planner, local_copies
from trilemma.eval.reproductions.published import STUDIES
from trilemma.eval.reproductions.run import jobs_of, public, without_repeats
from trilemma.eval.scoring.results import REQUIRED, ResultLine, read
from trilemma.eval.studies.jobs import check_scoring
from trilemma.training.networks.rows import NETS
from trilemma.training.options.parser import parse_flags
from trilemma.training.output_folder import OutputFolder

CELLS = [cell for study in STUDIES.values() for cell in study.cells]
ALL = [(budget, cell) for budget in BUDGETS for cell in CELLS]


@pytest.fixture
def everything_here(monkeypatch):
    """A machine with a GPU, the Hub, and a speed that makes every estimate 0."""
    monkeypatch.setattr(plan, "_has_gpu", lambda: True)
    monkeypatch.setattr(plan, "_on_hub", lambda name: True)
    monkeypatch.setattr(plan, "forward_seconds", lambda *facts: 0.0)


def planner(budget, folder="none", folders=(), seeds=(0,)):
    return Planner(BUDGETS[budget], Path(folder), dict(folders), seeds, None, 1)


def test_every_study_has_a_source_and_cells_of_its_own():
    assert len(STUDIES) == 5
    assert all(study.source and study.about and study.cells for study in STUDIES.values())
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert cell.data in DATA
        assert bool(cell.why) != bool(cell.study), "a cell is run, or says why it is not"
        assert not cell.why or not cell.ours
        assert all(net in NETS for arm in cell.arms.values() for net in arm.nets or DATA[cell.data].nets)


def test_published_values_are_those_of_the_reports():
    values = {cell.name: (cell.published.value, cell.published.spread) for cell in CELLS}
    assert values["mnist-ddpm"] == (6.06, 0.70)
    assert values["cifar10-ddpm"] == (49.5, 2.6)
    assert (values["mnist-loss"][0], values["cifar10-loss"][0]) == (0.0175, 0.0336)
    guided = [[values[f"{data}-guidance-{w}"][0] for w in ("0", "0.5", "1")] for data in ("mnist", "cifar10")]
    assert guided == [[5.56, 7.27, 9.74], [47.18, 42.73, 39.52]]
    assert values["planes-seconds-for-ten"][0] == 90
    assert [values[f"cited-{name}"][0] for name in ("score-sde", "biggan", "edm")] == [2.20, 14.73, 1.97]
    printed = [cell for cell in CELLS if cell.published.value is not None]
    assert all(f"{cell.published.value:g}" in cell.published.text for cell in printed)


@pytest.mark.parametrize(("budget", "cell"), ALL, ids=lambda value: getattr(value, "name", value))
def test_every_command_is_accepted_and_both_recipes_see_as_much(everything_here, budget, cell):
    """Planning parses the flags of the training with its own parser, `check_scoring` those of scoring."""
    here = [] if budget == "gpu" else [name for name, row in DATA.items() if row.hub]
    planned = planner(budget, folders=dict.fromkeys(here, "/folder"))(cell)
    assert bool(planned.jobs) != bool(planned.why)
    check_scoring(jobs_of(planned), ModelConfig())
    for name, arm in cell.arms.items():
        (job,) = planned.jobs[name]
        flags = job.settings["training"]
        seen = flags["max_train_steps"] * arm.batch
        assert 0 <= BUDGETS[budget].images_of(cell) - seen < arm.batch, "the same images to within a step"
        assert flags["train_data_dir" if cell.data in here else "dataset_name"]
        asked = job.score[job.score.index("trilemma.eval.evaluate") + 1 :]
        asked = parse_flags(EvaluateConfig, "", asked)
        sampling, judge = asked.sampling, asked.score.judge
        if judge is not None:
            side = flags.get("resolution") or DATA[cell.data].side
            assert (ROWS[judge].resolution or DATA[cell.data].side) == side, "its own size of images"
        assert sampling.sampler != "ddpm" or sampling.num_inference_steps == arm.calls, "few steps are DDIM's"


def test_milestones_are_the_study_s_epochs(everything_here):
    for name, epochs, halved in (("mnist-ddpm", 60, (20, 40)), ("cifar10-ddpm", 90, (30, 60))):
        cell = next(cell for cell in CELLS if cell.name == name)
        training = planner("gpu")(cell).jobs["study"][0].settings["training"]
        steps = training["max_train_steps"]
        assert steps == epochs * DATA[cell.data].images // 128
        assert training["lr_milestones"] == [round(epoch / epochs * steps) for epoch in halved]
        assert training["learning_rate"] == 2e-5
        assert BUDGETS["gpu"].samples == cell.published.n == 12_800


def test_the_smallest_budget_has_smaller_images_and_a_short_warm_up(everything_here):
    """A recipe keeps the size that it names itself, the airplanes' 16, at every budget."""
    for name, sides in (("cifar10-ddpm", (16, None)), ("planes-T20", (16, 16)), ("mnist-ddpm", (None, None))):
        cell = next(cell for cell in CELLS if cell.name == name)
        planned = [planner(budget, folders={cell.data: "/folder"})(cell) for budget in ("cpu-small", "cpu")]
        assert tuple(p.jobs["ours"][0].settings["training"].get("resolution") for p in planned) == sides
        assert [p.reduced for p in planned] == [16 if name == "cifar10-ddpm" else None, None]
        warm = [p.jobs["ours"][0].settings["training"]["lr_warmup_steps"] for p in planned]
        assert warm == [BUDGETS["cpu-small"].images // 64 // 10, 100]


def test_recipes_of_one_name_are_one_training(everything_here):
    trainings = {}
    for budget, cell in ALL:
        for job in jobs_of(planner(budget)(cell)):
            flags = trainings.setdefault((budget, job.folder), job.settings["training"])
            assert flags == job.settings["training"], job.folder


def test_cells_that_a_budget_makes_equal_are_one(everything_here):
    """Three lengths of one training: all three at the longest budget, one at the shortest."""
    lengths = [cell for cell in CELLS if cell.name.startswith("vdm-")]
    left = {
        budget: [planned.why for planned in without_repeats([planner(budget)(cell) for cell in lengths])]
        for budget in ("cpu-small", "gpu")
    }
    same = "at this budget it has the trainings of vdm-500"
    assert left == {"cpu-small": ["", same, same], "gpu": ["", "", ""]}
    others = [planner("cpu-small")(cell) for cell in CELLS if cell not in lengths]
    assert without_repeats(others) == others


def test_a_finished_cell_stays_although_its_estimate_grew(everything_here, monkeypatch):
    monkeypatch.setattr(plan, "forward_seconds", lambda *facts: 1.0)
    cell = next(cell for cell in CELLS if cell.name == "mnist-ddpm")
    assert "the budget allows" in planner("cpu")(cell).why
    monkeypatch.setattr(plan, "lines_of", lambda job, folder: ["a line"])
    assert planner("cpu")(cell).jobs


@pytest.mark.parametrize(
    ("names", "kinds", "of_ddpm"),
    [
        (("vdm-500", "vdm-2000"), ["samples", "bound"], False),
        (("mnist-ddpm-elbo",), ["samples", "bound"], True),
        (("mnist-ddpm",), ["samples", "process"], False),
    ],
)
def test_figures_show_every_training_with_its_first_seed(everything_here, tmp_path, names, kinds, of_ddpm):
    cells = [planner("gpu", tmp_path, seeds=(0, 1))(cell) for cell in CELLS if cell.name in names]
    first = {jobs[0].folder for planned in cells for jobs in planned.jobs.values()}
    for shade, folder in enumerate(sorted(first)):
        (folder / "logs").mkdir(parents=True)
        lines = [{"step": k, "seconds": k, "bpd": 9 - k, "validation_bpd": 8 - k} for k in (1, 2, 3)]
        (folder / "logs" / "scalars.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for picture in ("samples.png", "process.png"):
            Image.new("L", (60, 60), 40 * shade).save(folder / picture)
    told = write_figures("steps", cells, tmp_path)
    assert [each["file"].rpartition("-")[2] for each in told] == [f"{kind}.png" for kind in kinds]
    assert told[1]["caption"].endswith(OF_DDPM) == of_ddpm
    with Image.open(tmp_path / told[0]["file"]) as sheet:
        shades = {shade: count for count, shade in sheet.convert("L").getcolors()}
    assert all(shades.get(40 * shade, 0) > 5000 for shade in range(len(first)))


def test_samples_by_epoch_are_the_sheets_nearest_to_the_study_s(everything_here, tmp_path):
    """Of 12 epochs 5, 9 and 12; a small budget shows the same shares of its steps."""
    cell = next(cell for cell in CELLS if cell.name == "mnist-cosine")
    planned = planner("cpu-small", tmp_path)(cell)
    command = planned.jobs["study"][0].train
    assert dict(pairwise(command))["--sample_steps"] == "16"
    assert "--sample_steps" not in planned.jobs["ours"][0].train, "which is also a training of other studies"
    assert on_the_way(planned) == {}
    run = OutputFolder(planned.jobs["study"][0].folder)
    run.sheets.mkdir(parents=True)
    run.run.write_text(json.dumps({"steps": 200}))
    for step in range(16, 201, 16):
        Image.new("L", (60, 60), step).save(run.sheet(step))
    name = run.path.name
    assert on_the_way(planned) == {f"{name}, step {step}": run.sheet(step) for step in (80, 144, 192)}
    (told,) = write_figures("schedules", [planned], tmp_path)
    assert "epochs 5, 9, 12 of 12 (mnist)" in told["caption"]
    with Image.open(tmp_path / told["file"]) as sheet:
        shades = {shade: count for count, shade in sheet.convert("L").getcolors()}
    assert all(shades[step] > 5000 for step in (80, 144, 192))
    cars = next(cell for cell in CELLS if cell.name == "stanford_cars-linear")
    (job,) = planner("gpu")(cars).jobs["study"]
    flags = dict(pairwise(job.train))
    three_epochs = int(flags["--max_train_steps"]) * 3 // 69
    assert int(flags["--sample_steps"]) == three_epochs, "which divide 27, 63 and 69"


def test_what_is_missing_is_not_run_here(monkeypatch):
    cell, points = CELLS[0], next(cell for cell in CELLS if cell.data == "swirl")
    monkeypatch.setattr(plan, "_on_hub", lambda name: False)
    monkeypatch.setattr(plan, "forward_seconds", lambda *facts: 0.0)
    assert "--data mnist=folder" in planner("cpu")(cell).why
    assert not planner("cpu")(cell).jobs
    assert planner("cpu", folders={"mnist": "/folder"})(cell).jobs
    assert planner("cpu")(points).jobs, "points are embedded"
    monkeypatch.setattr(plan, "_has_gpu", lambda: False)
    assert planner("gpu")(points).why == "no GPU here"
    monkeypatch.setattr(plan, "forward_seconds", lambda *facts: 1.0)
    assert "the budget allows" in planner("cpu")(points).why
    assert planner("cpu")(points, chosen=False).why == "left out by --cells"


def test_a_seed_that_no_training_takes_is_refused(everything_here, capsys):
    points = next(cell for cell in CELLS if cell.data == "swirl")
    with pytest.raises(SystemExit):
        planner("cpu", seeds=(2**32,))(points)
    assert "--seed must be less than 4294967296" in capsys.readouterr().err


def test_the_estimate_counts_passes_of_the_network(everything_here, monkeypatch):
    monkeypatch.setattr(plan, "forward_seconds", lambda *facts: 1.0)
    cell = next(cell for cell in CELLS if cell.name == "mnist-guidance-1")
    budget = Budget(1000, (0,), 10, 20, None)
    made = Planner(budget, "none", {}, (0, 1), None, 1)
    assert made.seconds(cell) == 2 * (3 * 1000 + 2 * 20 * 10 + 3 * 1000 + 2 * 20 * 10)


def test_the_estimate_counts_the_chain_of_a_shortcut_model(everything_here, monkeypatch):
    monkeypatch.setattr(plan, "forward_seconds", lambda *facts: 1.0)
    cell = next(cell for cell in CELLS if cell.name == "swirl-shortcut")
    made = Planner(Budget(None, (0,), 10, 10, None), "none", {}, (0,), None, 1)
    assert made.seconds(cell) == 3 * 11 * cell.images + 10 * 10 + 3 * cell.images + 10 * 10


def test_the_course_of_a_bound_is_logged_on_test_images(everything_here):
    """And the distance of the same trainings is another cell of theirs, which costs nothing more."""
    for name, bound in (("mnist-vae-elbo", True), ("vdm-500", True), ("mnist-ddpm", False)):
        cell = next(cell for cell in CELLS if cell.name == name)
        flags = planner("cpu")(cell).jobs["study"][0].settings["training"]
        assert cell.bound == bound
        assert flags.get("validation_split") == ("test" if bound else None)
        assert (flags["validation_size"] > 0) == bound
    by_name = {cell.name: planner("cpu")(cell).jobs for cell in CELLS if cell.study}
    for elbo in [name for name in by_name if name.endswith("-elbo")]:
        jobs = [
            [(job.folder, job.settings) for job in by_name[name]["ours"]]
            for name in (elbo, elbo.replace("-elbo", "-distance"))
        ]
        assert jobs[0] == jobs[1]


def test_a_forward_pass_is_timed():
    assert 0 < plan.forward_seconds("mlp", 1, 2, 8) < 10


def test_calls_are_divisors_of_the_recipe_s():
    budget = Budget(None, (0,), 10, 30, None)
    calls = {arm.calls: budget.calls_of(arm) for cell in CELLS for arm in cell.arms.values()}
    assert all(most % few == 0 and few <= 30 for most, few in calls.items())
    assert calls[1000] == 25
    assert calls[1] == 1


LINE = dict.fromkeys(REQUIRED) | {
    "metric": "fid_12800", "measure": "fd", "feature_extractor": "inception", "value": 6.0, "n": 12_800,
    "interval": None, "floor": None, "forced": False, "source": "run", "created": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "changes", "images", "says"),
    [
        ([6.0, 6.1, 6.2], {}, 1000, "agrees"),
        ([6.5, 6.51, 6.52], {}, 1000, "agrees"),  # within the study's own +- 0.7
        ([7.0, 7.01, 7.02], {}, 1000, "higher here"),
        ([3.0, 3.1, 3.2], {}, 1000, "lower here"),
        ([9.0, 9.1, 9.2], {}, 1000, "higher here"),
        ([7.06], {}, 1000, "here minus published: 1; one training only"),
        ([6.0, 6.1], {"feature_extractor": "classifier"}, 1000, "not comparable; here: classifier features"),
        ([6.0, 6.1], {"n": 250}, 1000, "not comparable; here: n 250"),
        ([6.0, 6.1], {"nfe": 20}, 1000, "not comparable; here: 20 calls"),
        ([6.0, 6.1], {"n": 250}, 10, "not comparable; here: 1.00% of the study's images, n 250"),
    ],
)
def test_only_like_is_compared_with_what_was_published(plain, changes, images, says):
    """Published distances are plain ones: the debiased ones, here all 0, do not matter."""
    line = ResultLine.from_json(LINE | {"nfe": 1000} | changes)
    measured = Measured([0.0] * len(plain), line, images, [1.0], [], plain)
    published = Published("FID 6.06", 6.06, 0.7, 12_800, calls=1000)
    assert against(Cell("a", "mnist", published, 1000), measured) == says
    smaller = against(Cell("a", "mnist", published, 1000), measured, 16)
    assert smaller.startswith("not comparable; here: ")
    assert "images of 16x16" in smaller
    assert against(Cell("a", "mnist", Published(), 1000), measured) == "no figure to compare with"
    length = against(Cell("a", "mnist", published, 1000, length_known=False), measured)
    assert "the study does not say how long it trained" in length
    seconds = against(Cell("a", "mnist", published, 1000, measure="seconds"), measured)
    assert seconds.startswith("not comparable; here: another machine")


def test_the_plain_value_of_a_debiased_distance_is_kept(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    run = {"images_seen": 640, "seconds": 5.0, "evaluation_seconds": 3.0}
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    line = ResultLine.from_json(LINE | {"value": 6.0, "debiased": 4.0, "floor": 0.5})
    monkeypatch.setattr(page, "lines_of", lambda job, folder: [line])
    job = SimpleNamespace(folder=tmp_path / "run", train=(), score=())
    cell = Cell("a", "mnist", Published("FID 6", 6.0, n=12_800), 640)
    told = page.row(Planned(cell, {"study": [job]}), tmp_path)
    assert (told["study"]["estimates"], told["study"]["plain"]) == ([4.0], [6.0])
    assert told["study"]["training_seconds"] == [2.0], "sheets and validation are no training"
    assert told["against_published"] == "here minus published: 0; one training only"
    about = {"command": "a", "budget_text": "b", "hardware": "", "remark": None, "figures": {"steps": []}}
    text = page.page({"steps": [told]}, about)
    assert "| a | 12,800 | 0.5 | 6 |  | 640 | 100.00% |" in text
    assert STUDIES["steps"].note in text


@pytest.mark.parametrize(
    ("measure", "study", "ours", "says"),
    [
        ("seconds", 10 * 0.5, 10 * 0.25, "better"),
        ("loss", 19.5, 19.5 / 2, "better"),  # the last tenth of twenty
        ("bpd", 3.0, 1.5, "better"),
        ("recall", 3.0, 1.5, "worse"),
    ],
)
def test_a_cell_is_read_from_its_jobs(tmp_path, monkeypatch, measure, study, ours, says):
    """Ours has half of what the study has; of bits per dimension, those of held-out images are taken."""
    arms, lines = {}, {}
    for name, share in (("study", 1), ("ours", 0.5)):
        arms[name] = [SimpleNamespace(folder=tmp_path / f"{name}{k}", train=(), score=()) for k in (0, 1)]
        for seed, job in enumerate(arms[name]):
            scale = share * (1 + seed * 1e-6)  # trainings that hardly differ
            (job.folder / "logs").mkdir(parents=True)
            (job.folder / "run.json").write_text('{"images_seen": 640, "seconds": 1.0}')
            losses = "".join(json.dumps({"step": k, "loss": scale * k}) + "\n" for k in range(1, 21))
            (job.folder / "logs" / "scalars.jsonl").write_text(losses)
            common = LINE | {"measure": measure if measure in ("bpd", "recall") else "fd", "value": 3 * scale}
            common |= {"seconds_per_image": 0.5 * scale, "reference_split": "test"}
            of_training = [common | {"reference_split": "train", "value": 9.0}] if measure == "bpd" else []
            lines[job.folder] = [ResultLine.from_json(line) for line in (*of_training, common)]
    monkeypatch.setattr(page, "lines_of", lambda job, folder: lines[job.folder])
    told = page.row(Planned(Cell("a", "mnist", Published(), 1000, measure=measure), arms), tmp_path)
    assert told["study"]["estimates"] == pytest.approx([study, study], rel=1e-5)
    assert told["ours"]["estimates"] == pytest.approx([ours, ours], rel=1e-5)
    assert told["ratio"] == pytest.approx(0.5, rel=1e-5)
    assert (told["verdict"], told["share"]) == (says, 0.64)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["guidnce"], "must be one of"),
        (["guidance", "--budget", "cpu-tiny"], "--budget"),
        (["guidance", "--cells", "mnist-dpm"], "Did you mean mnist-ddpm"),
        (["guidance", "--data", "mnst=/"], "--data takes name=folder"),
        (["guidance", "--data", "mnist=/no/such"], "there is no folder '/no/such'"),
        (["guidance", "--data", "swirl=/"], "embedded"),
    ],
)
def test_bad_commands_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        reproduce.main(flags)
    assert message in f"{refused.value}{capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def test_the_page_shows_no_folder_of_this_machine(tmp_path):
    assert public(["--study", "steps", "--data", "mnist=/home/me/mnist"]) == [
        "steps",
        "--data",
        "mnist=folder",
    ]
    assert local_copies([f"mnist={tmp_path}"]) == {"mnist": str(tmp_path)}


@pytest.mark.long
def test_a_study_runs_is_resumed_and_says_what_it_did_not_run(tmp_path, monkeypatch, capsys):
    """The chain on the swirl at two steps of training; then the same command, and then a second seed."""
    monkeypatch.setattr(Budget, "images_of", lambda self, cell: 512)
    monkeypatch.setitem(plan.BUDGETS, "cpu-small", Budget(512, (0,), 64, 10, None))
    out = tmp_path / "out"
    command = ["steps", "--cells", "swirl-shortcut", "--output_dir", str(out), "--cpu_threads", "1"]
    reproduce.main([*command, "--dry_run"])
    assert "swirl-shortcut-2-0: to do" in capsys.readouterr().out
    assert not out.exists()
    reproduce.main(command)
    folder = out / "cpu-small"
    told = json.loads((folder / "reproduce.json").read_text())
    by_name = {cell["cell"]: cell for cell in told["studies"]["steps"]}
    cell = by_name["swirl-shortcut"]
    assert (cell["images"], cell["n"], cell["verdict"]) == (512, 64, "one training only")
    assert cell["study"]["nfe"] == cell["ours"]["nfe"] == 10
    assert by_name["gan-T8"]["not_run"] == "left out by --cells"
    lines = read(folder / "results.jsonl")
    values = {line.extra["point"]: line.estimate for line in lines}
    assert cell["study"]["estimates"] == [values["swirl-shortcut-2-0"]]
    text = (folder / "reproduce.md").read_text()
    assert re.search(r"\| swirl-shortcut \|.* one training only \|", text)
    assert "| gan-T8 | black images | left out by --cells |" in text
    assert str(tmp_path) not in text
    ((words, picture),) = re.findall(r"!\[(.+)\]\((.+)\)", text)
    assert words == "samples of the trainings of steps"
    with Image.open(folder / picture) as sheet:
        inner = np.asarray(sheet.convert("L"))[40:]  # below the titles
    assert (inner < 128).sum() > 20, "the points of two models"
    assert [figure["file"] for figure in told["figures"]["steps"]] == [picture]

    capsys.readouterr()
    reproduce.main(command)
    assert capsys.readouterr().out.count("done before") == 2
    assert len(read(folder / "results.jsonl")) == len(lines)
    reproduce.main([*command, "--seeds", "0", "1"])
    printed = capsys.readouterr().out
    assert printed.count("done before") == 2
    told = json.loads((folder / "reproduce.json").read_text())
    cell = next(cell for cell in told["studies"]["steps"] if cell["cell"] == "swirl-shortcut")
    assert len(cell["ours"]["estimates"]) == 2
    assert cell["verdict"] in ("better", "worse", "inconclusive")
