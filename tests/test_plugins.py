"""Plug-ins: the files of docs/extending.md as they stand there, on the command line and from Python."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from entry import ROOT, environment, run

from trilemma.eval.metrics.table import METRICS
from trilemma.training import families
from trilemma.training.networks.rows import NETS
from trilemma.training.options import plugins
from trilemma.training.output_folder import OutputFolder

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
SMALL = [
    "--max_train_steps", "2", "--eval_batch_size", "4", "--ddpm_num_inference_steps", "2",
    "--train_batch_size", "8", "--lr_warmup_steps", "0", "--validation_size", "0", "--eval_steps", "0",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files of the page; what they add to this process goes away again."""
    from trilemma import pipelines
    from trilemma.training.networks.build import NETWORK_CLASSES

    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)  # one thread
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    tables = [METRICS, NETS, NETWORK_CLASSES, families.OUTSIDE, pipelines.LIKE, plugins._loaded]
    befores = [dict(table) for table in tables]
    yield tmp_path
    for table, before in zip(tables, befores, strict=True):
        for name in table.keys() - before.keys():
            del table[name]
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


def test_the_page_has_a_file_for_each_kind():
    assert set(FILES) == {"mean_shift.py", "two_layers.py", "charbonnier.py"}


def test_a_metric_and_a_network_on_the_command_line(here):
    """A changed plug-in is refused, a moved one would not be; a stranger loads the network."""
    both = ["--plugin", "two_layers.py", "--plugin", "mean_shift.py"]
    flags = [*SMALL, "--output_dir", "out", "--net", "two_layers", "--eval_num_samples", "8"]
    flags += ["--eval_steps", "2", "--eval_feature_extractor", "pixels", "--eval_metrics", "mean_shift"]
    run("training/train_unconditional.py", *both, *flags, cwd=here)
    out = OutputFolder(here / "out")
    assert out.read_config()["plugin"] == ["two_layers.py", "mean_shift.py"]
    assert set(out.read_run()["plugins"]) == {"two_layers.py", "mean_shift.py"}
    (line,) = [json.loads(text) for text in out.results.read_text().splitlines()]
    assert (line["measure"], line["metric"]) == ("mean_shift", "mean_shift_pixels")
    assert (out.best / "unet/modeling_two_layers.py").is_file(), "the metric chose the best model"
    card = out.card.read_text()
    assert "--net two_layers" in card
    assert "--plugin two_layers.py mean_shift.py" in card
    assert "mean_shift_pixels" in card

    (here / "moved").mkdir()
    shutil.move("two_layers.py", "moved/two_layers.py")
    both[1] = "moved/two_layers.py"
    Path("moved/two_layers.py").write_text(FILES["two_layers.py"] + "# changed\n")
    refused = run("training/train_unconditional.py", *both, *flags, cwd=here, check=False)
    assert re.search(r"--plugin two_layers.py: [0-9a-f]{8} then, [0-9a-f]{8} now", refused.output)
    assert "--plugin: " not in refused.output, "only the contents count, not the place"

    program = (
        "import sys; sys.modules['trilemma'] = None\nfrom diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained('out', trust_remote_code=True)\n"
        "print(len(pipeline(batch_size=2, num_inference_steps=2).images), type(pipeline.unet).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=here, capture_output=True, text=True, env=environment()
    )
    assert done.stdout.split() == ["2", "TwoLayers"], done.stderr


def test_help_and_choices_have_the_new_rows(here, capsys):
    from trilemma.eval.evaluate import main as evaluate
    from trilemma.training.options.command_line import parse

    files = ["--plugin", *FILES]
    with pytest.raises(SystemExit):
        parse("unconditional", "", [*files, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "unet_8_wide" in text
    assert "diversity, mean_shift (docs/metrics.md)" in text
    with pytest.raises(SystemExit):
        evaluate([*files, "--metrics", "mean_shit"])
    said = capsys.readouterr().err
    assert "bpd, mean_shift; got 'mean_shit'. Did you mean mean_shift?" in said
    with pytest.raises(SystemExit):
        parse("charbonnier", "", ["--softness", "0"])
    assert "--softness must be greater than 0" in capsys.readouterr().err


def test_a_sweep_hands_its_plugins_on(here, capsys):
    from trilemma.eval.sweep import main

    grid = ["--grid", "net=two_layers,unet_8_wide", "--metrics", "mean_shift", "--output_dir", "swept"]
    main(["--plugin", "two_layers.py", "mean_shift.py", *grid, "--dry_run", "--", *SMALL])
    commands = [line for line in capsys.readouterr().out.splitlines() if " -m " in line]
    assert len(commands) == 4
    for command in commands:
        assert f"--plugin {here / 'two_layers.py'} {here / 'mean_shift.py'}" in command


def test_a_family_is_its_own_entry_point_and_the_same_from_python(here):
    from trilemma import evaluate, load

    space = {}
    (call,) = re.findall(r"^```python\n(from trilemma import.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(call, "docs/extending.md", "exec"), space)
    flags = ["--output_dir", "by_file", "--softness", "0.1", "--max_train_steps", "10", "--eval_steps", "0"]
    flags += ["--eval_batch_size", "4", "--ddpm_num_inference_steps", "2"]
    run(str(here / "charbonnier.py"), *flags, "--dataset_name", "digits", cwd=here)
    folders = [OutputFolder(here / name) for name in ("by_file", "outputs/charbonnier")]
    for folder in folders:
        assert folder.family == "charbonnier"
        assert folder.read_config()["softness"] == 0.1
        assert "charbonnier" in folder.card.read_text()
    weights = [folder.path / "unet/diffusion_pytorch_model.safetensors" for folder in folders]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert space["pipeline"].family == "unconditional", "whose pipeline it has"
    scoring = dict(metrics=["mean_shift"], feature_extractor="pixels", num_samples=4, num_inference_steps=2)
    (line,) = evaluate("by_file", plugin=["mean_shift.py"], **scoring)
    assert line.measure == "mean_shift"
    families.OUTSIDE.clear()
    with pytest.raises(ValueError, match="is of the family charbonnier of a plug-in; give --plugin charb"):
        load("by_file")


@pytest.mark.parametrize(("text", "message"), [
    ("def add(rows):\n    rows.metric('a', print)\n", r"bad\.py, line 2: metric 'a': print must be a class"),
    ("x = 1\ny = x / 0\n", r"bad\.py, line 2: ZeroDivisionError: division by zero"),
    ("def add(rows)\n    pass\n", r"bad\.py, line 1: SyntaxError: expected ':'"),
    ("import numpy\nimport nowhere_at_all\n", r"bad\.py, line 2: ModuleNotFoundError: No module named"),
    ("add = 3\n", r"bad\.py: it has no function add\(rows\)"),
    ("def add(rows):\n    rows.network('unet_8', {})\n", r"line 2: there is a network 'unet_8'"),
    ("def add(rows):\n    rows.network('mine', {})\n    1 / 0\n", r"line 3: ZeroDivisionError"),
    ("def f(): 0\ndef add(rows):\n    rows.metric('fd', f)\n", "line 3: the measure 'fd' is one of"),
    ("def add(rows):\n    rows.family('vae', None, like='vae')\n", "line 2: there is a family 'vae'"),
])  # fmt: skip
def test_a_plugin_that_fails_names_its_file_and_line_and_adds_nothing(here, text, message):
    Path("bad.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        plugins.load(["bad.py"])
    assert "mine" not in NETS
    assert "plugin_bad" not in sys.modules


def test_a_plugin_that_fails_later_is_named_too(here, capsys):
    """An error that it raises while it scores; a file that is not there; one that has changed."""
    from trilemma.eval.evaluate import main

    Path("late.py").write_text(
        FILES["mean_shift.py"].replace("mean_shift", "late").replace("self.mark(index)", "int('many')")
    )
    flags = ["--images", "x.npy", "--reference", "digits", "--feature_extractor", "pixels"]
    np.save("x.npy", np.zeros((4, 8, 8, 1), np.uint8))
    number = FILES["mean_shift.py"].splitlines().index("        self.mark(index)") + 1
    with pytest.raises(SystemExit, match=rf"error: --plugin late.py, line {number}: invalid literal"):
        main(["--plugin", "late.py", *flags, "--metrics", "late"])
    with pytest.raises(SystemExit):
        main(["--plugin", "none.py", *flags])
    assert "--plugin 'none.py' cannot be read: No such file" in capsys.readouterr().err
    Path("late.py").write_text("def add(rows): pass\n")
    with pytest.raises(ValueError, match="or an earlier state of it, was run before"):
        plugins.load(["late.py"])
