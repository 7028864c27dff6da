"""A pipeline as a folder for strangers: `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

The folder has the file of the pipeline at its root and that of each custom component in the component's
folder, and its index, `model_index.json`, names them:

    "_class_name": ["pipeline_class_conditional", "ClassConditionalPipeline"]
    "net": ["modeling_networks", "MyNet"]

for `pipeline_class_conditional.py` and `net/modeling_networks.py`. diffusers runs all such files in one flat
folder of its cache, where files of one name overwrite each other: hence names made from that of the source,
and no imports except what a stranger has. The families' pipelines write their code themselves
(`trilemma.pipelines.shared`); for other custom classes it is done here. Stock pipelines get no code.
"""

import ast
import importlib
import json
import logging
import sys
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from safetensors import SafetensorError

from trilemma.pipelines.files.reading import FileError, read_json
from trilemma.pipelines.files.saved import INDEX, PICKLES, parts, read_index
from trilemma.pipelines.files.staging import NEW, put_in_place, stage_in
from trilemma.pipelines.files.writing import naming
from trilemma.pipelines.shared import ship_code

logger = logging.getLogger(__name__)

IMPORTABLE = {"torch", "numpy", "PIL", "diffusers", "transformers"}  # what someone with diffusers has


def save_bundle(pipeline: DiffusionPipeline, folder: str | Path) -> Path:
    """Save `pipeline` with its code into `folder`, which may hold other files (results, logs, checkpoints).

    All is written to a stage inside the folder first and then moved, `model_index.json` last: a folder that
    has one is whole. What an earlier bundle put there is replaced.
    """
    folder = Path(folder).absolute()
    with naming(folder), stage_in(folder.resolve()) as stage:
        new = stage / NEW
        try:
            pipeline.save_pretrained(new, safe_serialization=True)
        except SafetensorError as problem:  # how a full disk is reported for weights
            raise OSError(str(problem)) from problem
        _check_index(pipeline, new)
        if not isinstance(read_json(new / INDEX)["_class_name"], list):
            ship_code(pipeline, new)
        _forget_paths(new)
        _check_files(new)
        put_in_place(stage, leaving=_bundled(folder), last=INDEX)
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
                    f"the standard library and {', '.join(sorted(IMPORTABLE))}: copy what it needs into it"
                )
    if get_relative_imports(source):  # diffusers goes by lines, and so finds them in a docstring too
        raise ValueError(f"{source}: diffusers takes a line of a docstring for a relative import; reword it")


def _check_index(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Raise unless diffusers can load every entry of the index of the saved `folder` from the Hub."""
    for name, value in read_json(folder / INDEX).items():
        component = pipeline.components.get(name)
        if name not in pipeline.components:
            if isinstance(value, list) and name != "_class_name":
                raise ValueError(f"{name}: diffusers takes a list in {INDEX} for a component; make it a dict")
        elif value[0] is None and component is not None:
            raise ValueError(f"{name}: diffusers cannot save a component of {type(component)}")
        elif value[0] is not None:
            _check_library(folder / name, *value)


def _forget_paths(folder: Path) -> None:
    """Remove the path on this machine that a loaded pipeline and its components remember."""
    for path in [folder / INDEX, *folder.glob("*/*.json")]:
        content = read_json(path)
        if "_name_or_path" in content:
            _write_json(path, content)


def _write_json(path: Path, content: dict) -> None:
    """As diffusers writes it, without the path on this machine."""
    public = {key: value for key, value in content.items() if key != "_name_or_path"}
    path.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_library(component: Path, library: str, class_name: str) -> None:
    """Raise if a custom class would be looked up in diffusers, since its folder is called as one of those."""
    if library in ("diffusers", "transformers") or library in sys.modules:
        return
    if (component / f"{library}.py").exists():  # the code is there
        return
    if class_name not in dir(importlib.import_module(f"diffusers.pipelines.{library}")):
        raise ValueError(
            f"{class_name} is defined in a folder called {library!r}, which diffusers takes for its own; "
            f"rename the folder"
        )


def _check_files(folder: Path) -> None:
    """Raise if the saved `folder` has a file that a stranger cannot or should not load."""
    for source in folder.rglob("*.py"):
        check_standalone(source)
    pickles = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in PICKLES]
    if pickles:
        raise ValueError(f"only safetensors are shipped, a pickle can run code: {', '.join(pickles)}")


def _bundled(folder: Path) -> set[str]:
    """What the bundle in `folder`, if any, consists of: component folders and the pipeline's file.

    Its index may be damaged, or come from somebody else and name what is no part of a pipeline: nothing is
    taken for a component but a folder that has a configuration of diffusers.
    """
    if not (folder / INDEX).exists():
        return set()
    try:
        index = read_index(folder / INDEX)
    except FileError as problem:
        logger.warning("%s; it is replaced, and what it may have named is left where it is", problem)
        return set()
    kind = index["_class_name"]
    code = {f"{kind[0]}.py"} if isinstance(kind, list) else set()
    return code | {name for name in parts(index) if any((folder / name).glob("*config.json"))}
