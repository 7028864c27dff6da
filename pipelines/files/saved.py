"""The folder of a saved pipeline, looked at before anything in it is loaded or replaced.

Its index, `model_index.json`, names the folders of its parts and the files of their code. A folder may come
from anyone, so these names are checked, pickled weights are refused, and foreign code is recognised.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trilemma.pipelines.files.hub import patience
from trilemma.pipelines.files.names import inside
from trilemma.pipelines.files.reading import FileError, read_json

INDEX = "model_index.json"

PICKLES = {".bin", ".ckpt", ".joblib", ".msgpack", ".pickle", ".pkl", ".pt", ".pt2", ".pth"}
"""Endings of files that can run code when they are loaded, or that diffusers takes for such weights."""

CONFIGURATIONS = ("config.json", "scheduler_config.json")
"""What diffusers calls the configuration of a part."""

SIZES = {"sample_size", "in_channels", "out_channels", "num_train_timesteps"}
"""Entries of a configuration that decide how much memory is taken, and are shown in code on cards."""
LARGEST = 10**6

STOCK = ("diffusers", "transformers")
"""Libraries whose classes a part may be of; the code of any other class lies in the part's folder."""

PREFIXES = ("pipeline_", "modeling_")
"""How the names of shipped files begin, before that of the source."""
PACKAGES = ("trilemma.pipelines", "trilemma.pipelines.networks")
"""Where the toolkit has the sources."""


def index_path(source: str) -> Path:
    """The index of a folder, or of a model on the Hub, from which it is downloaded."""
    if Path(source).is_dir():
        return Path(source) / INDEX
    from huggingface_hub import hf_hub_download

    with patience():
        return Path(hf_hub_download(source, INDEX))


def read_index(path: Path) -> dict[str, Any]:
    """What a model_index.json says, its names checked; FileError names it."""
    index = read_json(path)
    for name, value in index.items():
        inside(path.parent, name, path)
        if name == "_class_name":
            _check_class(value, path)
        elif isinstance(value, list):
            _check_part(name, value, path)
    if "_class_name" not in index:
        raise FileError(f"{path} does not say which pipeline it is of (no _class_name); save the model again")
    return index


def read_configuration(path: Path) -> dict[str, Any]:
    """The configuration of a part, as diffusers saves it; FileError for a size that is none."""
    values = read_json(path)
    for key in SIZES & values.keys():
        sizes = values[key] if isinstance(values[key], list) else [values[key]]
        if not all(type(size) is int and 0 < size <= LARGEST for size in sizes if size is not None):
            raise FileError(f"{path}: {key} must be a whole number above 0; it is {repr(values[key])[:80]}")
    return values


def parts(index: Mapping[str, Any]) -> dict[str, list]:
    """Name of a component's folder -> [library or file of code, class]."""
    return {
        name: value
        for name, value in index.items()
        if isinstance(value, list) and name != "_class_name" and isinstance(value[0], str)
    }


def code_of(index: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files of code that the index names, whether or not they are there."""
    kind = index["_class_name"]
    files = [folder / f"{kind[0]}.py"] if isinstance(kind, list) else []
    return files + [
        folder / name / f"{library}.py" for name, (library, _) in parts(index).items() if library not in STOCK
    ]


def check_loadable(path: Path) -> dict[str, Any]:
    """The index of a pipeline to be loaded; FileError for pickled weights and for code that is not there.

    A library that is none of diffusers' would be looked up among all modules of this machine.
    """
    index = read_index(path)
    for file in code_of(index, path.parent):
        if not file.is_file():
            where = file.relative_to(path.parent).as_posix()
            raise FileError(f"{path} names the code {where}, which is not there; get the folder again")
    for name in parts(index):
        for configuration in (path.parent / name / file for file in CONFIGURATIONS):
            if configuration.is_file():
                read_configuration(configuration)
    check_weights(path.parent, parts(index))
    return index


def check_weights(folder: Path, names: Iterable[str]) -> None:
    """FileError for a part of the pipeline in `folder` whose weights are pickled only."""
    for name in names:
        place = folder / name
        files = sorted(place.iterdir()) if place.is_dir() else []
        pickled = [file for file in files if file.suffix.lower() in PICKLES]
        if pickled and not any(file.suffix == ".safetensors" for file in files):
            raise FileError(refusal(pickled[0]))


def refusal(file: Path | str) -> str:
    """Why pickled weights are not used, and what to do."""
    return (
        f"{file} is a pickle, which can run any code when it is loaded: where you trust it, load it with "
        "diffusers and save the pipeline again with save_pretrained(folder, safe_serialization=True), which "
        "writes safetensors"
    )


def foreign_code(index: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files of code that are not what this version of the toolkit ships under their names."""
    return [file for file in code_of(index, folder) if not _is_ours(file)]


def _is_ours(file: Path) -> bool:
    from trilemma.pipelines.single_file import single_file

    prefix = next((prefix for prefix in PREFIXES if file.stem.startswith(prefix)), None)
    name = file.stem.removeprefix(prefix or "")
    if prefix is None or not name.isidentifier():
        return False
    specs = [importlib.util.find_spec(f"{package}.{name}") for package in PACKAGES]
    sources = [Path(spec.origin) for spec in specs if spec and spec.origin]
    return any(file.read_bytes() == single_file(source).encode() for source in sources)


def _check_class(value: Any, path: Path) -> None:
    pair = isinstance(value, list) and len(value) == 2
    if not _is_class(value[1] if pair else value):
        raise FileError(f"{path}: _class_name must be a class, or a file and a class; it is {value!r:.80}")
    if pair:
        inside(path.parent, value[0], path)


def _check_part(name: str, value: list, path: Path) -> None:
    if len(value) != 2 or not (value[1] is None or value[0] is None or _is_class(value[1])):
        raise FileError(f"{path}: {name} must be a library and a class; it is {value!r:.80}")
    if value[0] is not None:
        inside(path.parent, value[0], path)


def _is_class(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier()
