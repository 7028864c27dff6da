"""The rules of docs/architecture.md, each a test."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from entry import ROOT

LAYERS = ["pipelines", "training", "eval", "model_cards"]
ZOO = ROOT / "model_cards" / "zoo"
"""Models, some with code as `save_pretrained` writes it."""
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py") if ZOO not in path.parents)
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
TOP = sorted((ROOT / "trilemma").glob("*.py"))
"""The toolkit from Python, above all floors."""
SHARED = ("shared", "samplers", "scheduled", "unconditional", "class_conditional")
"""What pipelines share; the last two are the pipelines of families that are sampled as they are."""
FILES = ROOT / "pipelines" / "files"
"""Readers and writers of files, for the toolkit alone: nothing shipped imports them."""
PIPELINES_MAY_IMPORT = {"torch", "numpy", "PIL", "diffusers", "safetensors"} | set(sys.stdlib_module_names)


def is_entry_point(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


UPWARD = (ROOT / "training" / "run.py", ROOT / "training" / "entry.py")
"""What entry points share, which may look upward as they do."""

ENTRY_POINTS = [path for path in SOURCES if is_entry_point(path)]


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports, and how many dots it began with."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", node.level) for alias in node.names]
    return found


def layer_of(path: Path) -> int:
    return [*LAYERS, "trilemma"].index(path.relative_to(ROOT).parts[0])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lower_layers_never_import_higher_ones(path):
    upward_allowed = is_entry_point(path) or path in UPWARD
    for module, level in imports(path):
        assert level == 0, f"relative import of {module}"
        assert not module.startswith("trilemma.api"), "the toolkit from Python is above all floors"
        parts = module.split(".")
        if parts[0] == "trilemma" and len(parts) > 1 and parts[1] in LAYERS and not upward_allowed:
            assert LAYERS.index(parts[1]) <= layer_of(path), f"{path} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_an_entry_point(path):
    names = {"trilemma." + ".".join(e.relative_to(ROOT).with_suffix("").parts) for e in ENTRY_POINTS}
    for module, _ in imports(path):
        assert not any(module == name or module.startswith(name + ".") for name in names), module


NOT_SHIPPED = {ROOT / "pipelines" / "__init__.py", *FILES.glob("*.py")}
SHIPPED = [path for path in sorted((ROOT / "pipelines").rglob("*.py")) if path not in NOT_SHIPPED]


@pytest.mark.parametrize("path", sorted(FILES.glob("*.py")), ids=lambda p: p.name)
def test_readers_and_writers_need_no_torch(path):
    for module, _ in imports(path):
        ours = module.startswith(("trilemma.pipelines.files.", "trilemma.pipelines.single_file."))
        others = {"huggingface_hub", "numpy", "safetensors", "yaml", *sys.stdlib_module_names}
        assert ours or module.split(".")[0] in others


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_pipelines_import_of_ours_only_what_they_share(path):
    for module, level in imports(path):
        assert level == 0
        shared = module.startswith(tuple(f"trilemma.pipelines.{name}." for name in SHARED))
        assert shared or module.split(".")[0] in PIPELINES_MAY_IMPORT, module


def test_nothing_beside_an_entry_point_shadows_a_dependency():
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    for folder in {path.parent for path in ENTRY_POINTS}:
        folders = {p.name for p in folder.iterdir() if p.is_dir()}
        assert not ({p.stem for p in folder.glob("*.py") if p.stem != "__init__"} | folders) & taken


def test_setup_lists_the_folders():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for path in SOURCES}
    assert listed == {"trilemma"} | {"trilemma." + ".".join(f.parts) for f in folders}
    mapped = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert mapped == {n: n.removeprefix("trilemma.").replace(".", "/") or "trilemma" for n in listed}


def test_an_editable_install_is_found_by_a_script_beside_the_clone(tmp_path):
    """The clone has the package's name, and the script's folder comes first on Python's path."""
    pytest.importorskip("setuptools", "77", reason="setuptools 77 or newer makes the install")
    clone, installed = tmp_path / "trilemma", tmp_path / "installed"
    clone.mkdir()
    for name in (*LAYERS, "trilemma", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (clone / name).symlink_to(ROOT / name)
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def python(folder: Path, *words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=folder, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    python(clone, "-c", build)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, installed, "zip")
    use = f"import site; site.addsitedir({str(installed)!r}); import trilemma; print(trilemma.__file__)"
    assert python(tmp_path, "-S", "-c", use).strip() == str(clone / "trilemma" / "__init__.py")


def test_left_out_dependencies_stay_out():
    text = (ROOT / "setup.cfg").read_text() + (ROOT / "constraints.txt").read_text()
    for name in ("torchvision", "torch-fidelity", "scikit-learn"):
        assert name not in text
    for path in SOURCES:
        assert not {module.split(".")[0] for module, _ in imports(path)} & {"scipy", "sklearn", "torchvision"}


@pytest.mark.parametrize("path", [*SOURCES, *TOP], ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} does not say what it decides"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name}"


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", [*SOURCES, *TOP, *BENCHMARKS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 300
    # Calls of pipelines and configurations of networks have the arguments that diffusers gives them.
    many = ("__call__", "__init__") if path.is_relative_to(ROOT / "pipelines") else ()
    for function in functions(path):
        assert function.end_lineno - function.lineno < 60, function.name
        names = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)} - {"self", "cls"}
        assert len(names) <= 7 or function.name in many, function.name


def test_folders_have_few_files():
    for folder in {path.parent for path in [*SOURCES, *BENCHMARKS]}:
        # Entry points, one for each family, are not counted.
        files = [p for p in folder.iterdir() if p.is_file() and not (p.suffix == ".py" and is_entry_point(p))]
        assert len(files) <= 12, folder
