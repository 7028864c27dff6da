"""A pipeline as a folder for strangers: `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

`save_pretrained` of a class of our own copies no code. This puts the file of the pipeline at the root of the
folder and that of each custom component into the component's folder, and names them in `model_index.json`:

    "_class_name": ["pipeline_class_conditional", "ClassConditionalPipeline"]
    "net": ["modeling_networks", "MyNet"]

for `pipeline_class_conditional.py` and `net/modeling_networks.py`. diffusers runs all such files flat in one
folder of its cache, where files of one name overwrite each other: hence names made from that of the source,
and no imports but those a stranger has. Pipelines that diffusers can load by itself get no code.
"""

import ast
import importlib
import inspect
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from diffusers import DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import get_relative_imports

INDEX = "model_index.json"
IMPORTABLE = {"torch", "numpy", "PIL", "diffusers", "transformers"}  # what someone with diffusers has
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def save_bundle(pipeline: DiffusionPipeline, folder: str | Path) -> Path:
    """Save `pipeline` with its code into `folder`, which may hold other files (results, logs, checkpoints).

    All is written beside the folder first and then moved, `model_index.json` last: a folder that has one is
    whole. What an earlier bundle put there is replaced.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        pipeline.save_pretrained(stage / "new", safe_serialization=True)
        _add_code(pipeline, stage / "new")
        _check_files(stage / "new")
    except BaseException:
        shutil.rmtree(stage)
        raise
    _move_into_place(stage / "new", folder, replaced=stage / "old")
    shutil.rmtree(stage)
    return folder


def check_standalone(source: Path) -> None:
    """Raise unless `source` imports only what a stranger has, and nothing relative to itself."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), source)):
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.split(".")[0] not in IMPORTABLE | sys.stdlib_module_names:
                raise ValueError(
                    f"{source}, line {node.lineno} imports {name!r}; files shipped with a model may import "
                    f"the standard library and {', '.join(sorted(IMPORTABLE))}: move what it needs into it"
                )
    if get_relative_imports(source):  # diffusers goes by lines, and so finds them in a docstring too
        raise ValueError(f"{source}: diffusers takes a line of a docstring for a relative import; reword it")


def _add_code(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Copy the files of custom classes into the saved `folder` and name them in its index."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    components = pipeline.components
    for name, value in index.items():
        if name not in components:
            if isinstance(value, list):
                raise ValueError(f"{name}: diffusers takes a list in {INDEX} for a component; make it a dict")
        elif value[0] is None and components[name] is not None:
            raise ValueError(f"{name}: diffusers cannot save a component of {type(components[name])}")
        elif value[0] is not None and not _is_stock(*value):
            index[name] = [_copy_code(sys.modules[value[0]], "modeling_", folder / name), value[1]]
    kind = type(pipeline)
    # A pipeline of ours may save itself under the name of a stock one.
    if kind.__module__.split(".")[0] != "diffusers" and index["_class_name"] == kind.__name__:
        index["_class_name"] = [_copy_code(sys.modules[kind.__module__], "pipeline_", folder), kind.__name__]
    _write_json(folder / INDEX, index)
    for path in folder.glob("*/*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "_name_or_path" in content:
            _write_json(path, content)


def _write_json(path: Path, content: dict) -> None:
    """As diffusers writes it, without the path on this machine that a loaded pipeline remembers."""
    public = {key: value for key, value in content.items() if key != "_name_or_path"}
    path.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_stock(library: str, class_name: str) -> bool:
    """Does this entry of the index name a class that a stranger's diffusers finds without help?"""
    if library in ("diffusers", "transformers"):
        return True
    if library in sys.modules:
        return False
    if class_name in dir(importlib.import_module(f"diffusers.pipelines.{library}")):
        return True
    raise ValueError(
        f"{class_name} is defined in a folder called {library!r}, which diffusers takes for its own; "
        f"rename the folder"
    )


def _copy_code(module: ModuleType, prefix: str, folder: Path) -> str:
    """Copy the module's file into `folder`; returns the name under which it is to be imported."""
    try:
        source = Path(inspect.getsourcefile(module))
    except TypeError:
        raise ValueError(f"{module.__name__} has no file to ship; define its classes in a .py file") from None
    check_standalone(source)
    name = prefix + re.sub(r"\W", "_", source.stem.removeprefix(prefix))
    shutil.copyfile(source, folder / f"{name}.py")
    return name


def _check_files(folder: Path) -> None:
    pickles = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in PICKLES]
    if pickles:
        raise ValueError(f"only safetensors are shipped, a pickle can run code: {', '.join(pickles)}")


def _move_into_place(new: Path, folder: Path, replaced: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    replaced.mkdir()
    entries = {entry.name for entry in new.iterdir()}
    outgoing = sorted((_bundled(folder) | entries) - {INDEX})
    for name in [INDEX, *outgoing]:
        if (folder / name).exists():
            (folder / name).rename(replaced / name)
    for name in [*sorted(entries - {INDEX}), INDEX]:
        (new / name).rename(folder / name)


def _bundled(folder: Path) -> set[str]:
    """What the bundle in `folder`, if any, consists of: component folders and the pipeline's file."""
    if not (folder / INDEX).exists():
        return set()
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    lists = {name: value[0] for name, value in index.items() if isinstance(value, list)}
    return {f"{module}.py" if name == "_class_name" else name for name, module in lists.items()}
