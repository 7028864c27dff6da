"""Options as keyword arguments of Python: `train(max_train_steps=100)` in place of `--max_train_steps 100`.

They have the names of the flags and are converted and checked by the same code, with the same messages; every
error is a ValueError. No torch here.
"""

from collections.abc import Collection, Mapping
from dataclasses import make_dataclass
from typing import Any, NoReturn

from trilemma.training.options.flags import build
from trilemma.training.options.parser import Parser


class Keywords(Parser):
    """A parser that raises ValueError where the command line exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def read(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Flat values of keyword arguments, each converted as if it stood in a file of options."""
        values = {}
        for name, value in options.items():
            if name not in self.flags:
                self.parse([f"--{name}"])  # raises what the command line says of such a flag
            read = self.convert(self.flags[name], _words(value), f"--{name}")
            values[name] = self._in_locale(name, read)
        return values


def _words(value: Any) -> str | list[str] | None:
    """A value as a file of options has it."""
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return [str(one) for one in value]
    return None if value is None else str(value)


def configured(family: type, options: Mapping[str, Any]) -> Any:
    """A configuration from keyword arguments, as `parse_flags` makes it from a command line; ValueError."""
    parser = Keywords(family, "")
    values = parser.read(options)
    parser.check(values, set(values))
    return build(family, values)


def options_of(group: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the options of one group, from keyword arguments; ValueError."""
    family = make_dataclass(group.__name__, [("group", group)])
    parser = Keywords(family, "")
    values = parser.read(options)
    parser.check(values, set(values))
    return values
