"""The command that trains a model again, from its `config.yaml`: the nearest preset and what differs from it.

A value that no line of a shell can hold as it is, such as two lines, is left to `--config config.yaml`. Flags
that cannot change the trained weights (`free=True` in the options) are left out. Of a path on the machine of
the training only the last part is shown.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trilemma.model_cards.rendering.text import UNKNOWN, visible
from trilemma.training import families
from trilemma.training.options.flags import SECRET, flags_of, public, public_name
from trilemma.training.output_folder import OutputFolder


def changed(family: str, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Flags that differ from their default and may have changed the weights: name -> (value, default)."""
    values, defaults = _values(family, config)
    return {name: (values[name], defaults[name]) for name in values if values[name] != defaults[name]}


def train_command(
    family: str, config: Mapping[str, Any], hardware: Mapping[str, Any], choices: bool = True
) -> str:
    """The command line, to be typed in a checkout; `hardware` is that of run.json.

    choices: it also turns off what the run did without and another machine may choose: bf16, compiling.
    """
    preset, flags = _nearest_preset(family, config)
    words = [word for name, value in flags.items() for word in _words(name, value)]
    words = [*(["--preset", preset] if preset else []), *map(visible, words)]
    if any(UNKNOWN in word for word in words) or any(map(_is_flag_like, flags.values())):
        words = ["--config", OutputFolder(Path()).config.name]
    words.insert(0, f"training/train_{family}.py")
    precision, processes = visible(str(hardware.get("mixed_precision", "no"))), hardware.get("processes", 1)
    if config.get("mixed_precision") is None and precision != "no":
        words += ["--mixed_precision", precision]
    if choices and families.family(family).faster is not families.never:
        if config.get("mixed_precision") == "no":
            words += ["--mixed_precision", "no"]
        if config.get("compile") is False:
            words += ["--no-compile"]
    processes = visible(str(processes))
    if processes == "1":
        return shlex.join(["accelerate", "launch", *words])
    if hardware.get("device") == "cpu":  # where accelerate launch would run one process only
        torchrun = ["torchrun", "--standalone", "--nproc_per_node", processes]
        return "ACCELERATE_USE_CPU=true " + shlex.join([*torchrun, *words])
    return shlex.join(["accelerate", "launch", "--num_processes", processes, *words])


def names_folders(config: Mapping[str, Any]) -> bool:
    """Whether the command has a folder of images, or of a model, which it names without its path."""
    source = config.get("init_from")
    return bool(config.get("train_data_dir") or (source and "/" not in public_name(str(source))))


def _words(name: str, value: Any) -> list[str]:
    """A flag on the command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, str) and value.startswith("-"):  # it would be taken for a flag of its own
        return [f"--{name}={value}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def _is_flag_like(values: Any) -> bool:
    """Whether a list has a value that would be taken for a flag."""
    return isinstance(values, list) and any(str(value).startswith("-") for value in values)


def _values(family: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values and defaults of the flags that can change the weights, as YAML has them."""
    flags = flags_of(families.family(family).config)
    flags = {name: flag for name, flag in flags.items() if not flag.meta["free"]}
    defaults = {name: _plain(flag.default) for name, flag in flags.items() if name not in SECRET}
    usual = {name: default for name, default in defaults.items() if config.get(name) is None}
    values = public({**config, **usual})
    values = {name: values[name] for name in defaults}
    return values, defaults


def _nearest_preset(family: str, config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """A preset, or None, and the flags to add to it: the fewest that give this configuration."""
    values, defaults = _values(family, config)
    presets = families.family(family).presets
    default = next(iter(presets.values())).options.get("dataset_name")
    steps = values.get("max_train_steps")
    candidates: dict[str | None, Mapping[str, Any]] = {
        name: row.options_for(steps) for name, row in presets.items()
    }
    if values["train_data_dir"] or values["dataset_name"] not in (None, default):
        candidates[None] = {}  # without a preset, the command line takes the first one for its data
    possible = {}
    for name, options in candidates.items():
        base = defaults | {key: _plain(value) for key, value in options.items() if key in defaults}
        if values.get("model_config_name_or_path"):
            base["net"] = None
        flags = {key: value for key, value in values.items() if value != base[key]}
        if None not in flags.values():  # the command line cannot unset what a preset sets
            possible[name] = flags
    fallback = None, {key: value for key, value in values.items() if value is not None}
    # The fewest flags; at equal numbers no preset, since that is the easiest to read.
    return min(possible.items(), key=lambda item: (len(item[1]), item[0] is not None), default=fallback)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
