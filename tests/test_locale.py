"""Text is UTF-8 whatever the locale: in the code, and in a run with names outside ASCII under LC_ALL=C."""

import ast
import json
import os
import subprocess
import sys

import pytest
from entry import ROOT, command, environment
from PIL import Image

from trilemma.training.output_folder import OutputFolder

FLOORS = ("pipelines", "training", "eval", "model_cards", "trilemma", "benchmarks")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens a file, or runs a program, as text without saying its encoding."""
    names = {keyword.arg for keyword in call.keywords}
    function, constants = call.func, [a.value for a in call.args if isinstance(a, ast.Constant)]
    constants += [k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)]
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if "encoding" in names or name not in ("open", "read_text", "write_text", "run", "Popen", "check_output"):
        return False
    if name in ("run", "Popen", "check_output"):
        return bool(names & {"text", "universal_newlines"})
    if isinstance(function, ast.Attribute):
        owner = getattr(function.value, "id", "")
        if owner in ("Image", "os", "zipfile", "archive", "tarfile"):
            return False
        return name != "open" or not any(isinstance(c, str) and "b" in c for c in constants)
    return name == "open" and not any(isinstance(c, str) and "b" in c for c in constants)


@pytest.mark.parametrize("floor", FLOORS)
def test_every_text_file_is_opened_with_its_encoding(floor):
    wrong = []
    for path in sorted((ROOT / floor).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and opens_text(node):
                if isinstance(node.func, ast.Name) and node.func.id in own | imported:
                    continue  # a function of ours, such as output_folder.write_text
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


@pytest.mark.long
def test_a_run_with_names_outside_ascii(tmp_path, tiny):
    """Options from a file, folders, class names, records, card."""
    for index, name in enumerate(("\u00e4pfel", "\u68a8")):
        folder = tmp_path / "gr\u00f6\u00dfe" / name
        folder.mkdir(parents=True)
        Image.linear_gradient("L").resize((8, 8)).rotate(90 * index).save(folder / "a.png")
    out, options = tmp_path / "out", tmp_path / "\u00f6.yaml"
    lines = {
        "model_config_name_or_path": tiny[1], "train_data_dir": tmp_path / "gr\u00f6\u00dfe",
        "output_dir": out, "max_train_steps": 2, "train_batch_size": 2, "eval_batch_size": 2,
        "ddpm_num_inference_steps": 2, "cache_dir": tmp_path / "cache",
    }  # fmt: skip
    options.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()), encoding="utf-8")
    words = command("training/train_class_conditional.py", "--config", str(options))
    for _ in range(2):  # and once more, to resume
        done = subprocess.run(words, env=environment(**ASCII), capture_output=True)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert b"Resuming from" in done.stdout + done.stderr
    folder = OutputFolder(out)
    assert folder.read_config()["train_data_dir"] == str(tmp_path / "gr\u00f6\u00dfe")
    assert folder.read_index()["class_names"] == {"0": "\u00e4pfel", "1": "\u68a8"}
    assert "\u00e4pfel" in folder.card.read_text(encoding="utf-8")
    assert json.loads(folder.scalars.read_text(encoding="utf-8").splitlines()[-1])["step"] == 2


@pytest.mark.parametrize("family", ["unconditional", "vae"])
def test_a_dry_run_prints_what_its_output_reads_back(tmp_path, family):
    script = str(ROOT / f"training/train_{family}.py")
    words = [sys.executable, script, "--train_data_dir", "/gr\u00f6\u00dfe/\u68a8", "--dry_run"]
    variables = {**os.environ, **ASCII}
    first = subprocess.run(words, env=variables, capture_output=True, check=True).stdout
    (tmp_path / "c.yaml").write_bytes(first)
    words = [sys.executable, script, "--config", str(tmp_path / "c.yaml"), "--dry_run"]
    assert subprocess.run(words, env=variables, capture_output=True, check=True).stdout == first
