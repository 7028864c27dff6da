"""A file of the toolkit as one file that needs no other: what it imports from `trilemma` is copied into it.

Only what is used, by whatever it uses, is copied, with comments and docstrings; the same source gives the
same text. Imports of ours stand at the top of a file in the form `from trilemma.x import name`.
"""

import ast
import importlib.util
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGE = "trilemma."
WIDTH = 110
Imports = dict[str, tuple[str | None, str, str | None]]
"""Name -> the module that it is imported from (None: it is a module), its name there, its `as` name."""


@dataclass
class Source:
    """A file, its text and its syntax tree."""

    path: Path
    names: set[str] = field(default_factory=set)  # what has to be copied from it

    @cached_property
    def text(self) -> str:
        """What the file contains."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def body(self) -> list[ast.stmt]:
        """The statements of the file."""
        return ast.parse(self.text, self.path).body

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """Name -> the class, function or assignment that defines it."""
        rows = {}
        for node in self.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                rows[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                rows |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        return rows

    @cached_property
    def imports(self) -> dict[str, tuple[str | None, ast.alias]]:
        """Name -> the module that it is imported from (None for a module itself) and the import's alias."""
        rows = {}
        for node in self.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                rows |= {(alias.asname or alias.name.split(".")[0]): (module, alias) for alias in node.names}
        return rows

    def pieces(self) -> list[str]:
        """The texts of the definitions to copy, in the order of the file, with comments right above them."""
        lines, pieces = self.text.splitlines(), []
        nodes = [self.definitions[name] for name in self.names]
        for node, after in zip(self.body, [*self.body[1:], None], strict=True):
            if node not in nodes:
                continue
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
            while first and lines[first - 1].startswith("#"):
                first -= 1
            documented = not isinstance(node, ast.FunctionDef | ast.ClassDef) and _is_text(after)
            pieces.append("\n".join(lines[first : after.end_lineno if documented else node.end_lineno]))
        return pieces


def single_file(path: Path) -> str:
    """The text of the file at `path` with all that it uses of `trilemma` in it."""
    main = Source(path)
    sources: dict[str, Source] = {}
    outside: Imports = {}
    for name, (module, alias) in main.imports.items():
        if _is_ours(module):
            _collect(module, alias, sources, outside)
        else:
            _add(outside, name, module, alias)
    if not sources:
        return main.text
    copied = [name for source in sources.values() for name in source.names]
    twice = {name for name in copied if copied.count(name) > 1 or name in {*main.definitions, *outside}}
    if twice:
        raise ValueError(f"{path}: one file cannot have two things called {', '.join(sorted(twice))}")
    lines = main.text.splitlines()
    last = max(node.end_lineno for node in main.body if isinstance(node, ast.Import | ast.ImportFrom))
    head = lines[: main.body[0].end_lineno if _is_text(main.body[0]) else 0]
    pieces = [piece for source in sources.values() for piece in source.pieces()]
    rest = "\n".join(lines[last:]).strip("\n")
    return "\n\n\n".join(["\n\n".join(["\n".join(head), _import_lines(outside)]), *pieces, rest]) + "\n"


def _open(module: str, sources: dict[str, Source]) -> Source:
    """The file of a module, put into `sources` after those that it imports, whose definitions it may need."""
    if module not in sources:
        source = Source(Path(importlib.util.find_spec(module).origin))
        for origin, _ in source.imports.values():
            if _is_ours(origin):
                _open(origin, sources)
        sources[module] = source
    return sources[module]


def _collect(module: str, alias: ast.alias, sources: dict[str, Source], outside: Imports) -> None:
    """Note that a definition of ours has to be copied, and all that it uses."""
    source, name = _open(module, sources), alias.name
    if alias.asname is not None or name not in source.definitions:
        raise ValueError(f"{name} must be a class, function or constant of {module}, imported without `as`")
    if name in source.names:
        return
    source.names.add(name)
    used = {part.id for part in ast.walk(source.definitions[name]) if isinstance(part, ast.Name)}
    for other in sorted(used & source.definitions.keys()):
        _collect(module, ast.alias(other), sources, outside)
    for other in sorted(used & source.imports.keys()):
        origin, imported = source.imports[other]
        if _is_ours(origin):
            _collect(origin, imported, sources, outside)
        else:
            _add(outside, other, origin, imported)


def _add(outside: Imports, name: str, module: str | None, alias: ast.alias) -> None:
    entry = (module, alias.name, alias.asname)
    if outside.setdefault(name, entry) != entry:
        raise ValueError(f"one file cannot import two things called {name}: {outside[name]} and {entry}")


def _import_lines(outside: Imports) -> str:
    """Imports as ruff sorts them: the standard library, then the rest; modules, then names of modules."""
    groups: dict[bool, list[str]] = {True: [], False: []}
    modules = [(name, asname) for module, name, asname in outside.values() if module is None]
    for name, asname in sorted(modules, key=_isort):
        line = f"import {name}" + (f" as {asname}" if asname else "")
        groups[name.split(".")[0] in sys.stdlib_module_names].append(line)
    for module in sorted({entry[0] for entry in outside.values()} - {None}, key=str.lower):
        names = [entry[1:] for entry in outside.values() if entry[0] == module]
        parts = [name + (f" as {asname}" if asname else "") for name, asname in sorted(names, key=_isort)]
        line = f"from {module} import {', '.join(parts)}"
        if len(line) > WIDTH:
            line = f"from {module} import (\n" + "".join(f"    {part},\n" for part in parts) + ")"
        groups[module.split(".")[0] in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(lines) for lines in groups.values() if lines)


def _isort(entry: tuple[str, str | None]) -> tuple[int, str]:
    """Constants, classes, functions: the order of names in a line."""
    return (0 if entry[0].isupper() else 1 if entry[0][0].isupper() else 2, entry[0])


def _is_ours(module: str | None) -> bool:
    return module is not None and module.startswith(PACKAGE)


def _is_text(node: ast.stmt | None) -> bool:
    """Is this statement a docstring?"""
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)
