"""Plug-ins: `--plugin file.py` runs a file of the user's, which adds rows to the toolkit's tables.

The file has a function `add(rows)`; `trilemma/plugins.py` says what `rows` can do, and docs/extending.md
shows it. Plug-ins are run before anything else is parsed, so that `--help` and the choices of every flag have
the new rows. No torch here, unless a plug-in imports it.
"""

import argparse
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from trilemma.training.options.yaml_file import read_options
from trilemma.training.progress import loading_libraries


class Plugin(NamedTuple):
    """A plug-in that was run: its file, the file's sha256, and (table, name) of its rows."""

    path: Path
    sha256: str
    added: tuple[tuple[str, str], ...]


_loaded: dict[str, Plugin] = {}
"""By the name of the file: a checkpoint knows a plug-in by its name and contents, wherever it lies."""


def load_from(argv: Sequence[str], with_config: bool = False) -> None:
    """Run the plug-ins that a command line names, itself or, `with_config`, in its --config; ValueError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", nargs="+", action="extend", default=[])
    parser.add_argument("--config", default=None)
    try:
        named, _ = parser.parse_known_args(list(argv))
    except SystemExit:  # what is wrong is said when everything is parsed
        return
    paths = list(named.plugin)
    if with_config and named.config and Path(named.config).is_file() and not paths:
        listed = read_options(named.config).get("plugin")
        paths = [listed] if isinstance(listed, str) else listed or []
    load(paths)


def load(paths: Sequence[str | Path]) -> None:
    """Run plug-ins, each once in a process; ValueError names the file, and the line where it failed."""
    for path in map(Path, paths):
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as problem:
            raise ValueError(f"--plugin {str(path)!r} cannot be read: {problem.strerror}") from problem
        before = _loaded.get(path.name)
        if before is None:
            _loaded[path.name] = Plugin(path.resolve(), sha256, _run(path))
        elif before.sha256 != sha256:
            raise ValueError(
                f"--plugin {str(path)!r}: another file of this name, or an earlier state of it, was run "
                "before; give it another name, or start Python anew"
            )


def _run(path: Path) -> tuple[tuple[str, str], ...]:
    """Execute a plug-in and its `add`; the rows that it added."""
    name = f"plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or not path.stem.isidentifier():
        raise ValueError(f"--plugin must be a file with a name such as my_metric.py; got {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes in it are found by the name of their module
    try:
        with loading_libraries():
            spec.loader.exec_module(module)
            rows = importlib.import_module("trilemma.plugins").Rows(module)
            _add_of(module)(rows)
            return rows.keep()
    except Exception as problem:
        del sys.modules[name]
        raise ValueError(f"--plugin {path}{_line(problem, path)}: {_words(problem)}") from problem


def _add_of(module: ModuleType):
    add = getattr(module, "add", None)
    if not callable(add):
        raise ValueError("it has no function add(rows); docs/extending.md shows one")
    return add


def _line(problem: BaseException, path: Path) -> str:
    """', line 3', the innermost line of this file that led to an error; '' without one."""
    if isinstance(problem, SyntaxError) and problem.filename == str(path.resolve()):
        return f", line {problem.lineno}"
    frames = traceback.extract_tb(problem.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
    return f", line {numbers[-1]}" if numbers else ""


def _words(problem: BaseException) -> str:
    text = problem.msg if isinstance(problem, SyntaxError) else str(problem)
    return text if type(problem) is ValueError else f"{type(problem).__name__}: {text}"


def located(problem: BaseException) -> str:
    """The message of an error, with file and line of the plug-in that raised it, if one did."""
    for plugin in _loaded.values():
        if line := _line(problem, plugin.path):
            return f"--plugin {plugin.path.name}{line}: {_words(problem)}"
    return str(problem)


def paths() -> tuple[str, ...]:
    """The files of all plug-ins that were run."""
    return tuple(str(plugin.path) for plugin in _loaded.values())


def digests() -> dict[str, str]:
    """Name of a plug-in's file -> its sha256, of all that were run."""
    return {name: plugin.sha256 for name, plugin in sorted(_loaded.items())}


def also(table: str) -> str:
    """', a, b' for the rows that plug-ins added to a table, for the help of a flag; '' for none."""
    names = [name for plugin in _loaded.values() for kind, name in plugin.added if kind == table]
    return "".join(f", {name}" for name in names)
