"""The command that trains a model again, from its `config.yaml`: the nearest preset and what differs from it.

Flags that cannot change the trained weights (`free=True` in the options) are left out. Of a path on the
machine of the training only the last part is shown.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from trilemma.training import families
from trilemma.training.options.flags import flags_of, public


def changed(family: str, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Flags that differ from their default and may have changed the weights: name -> (value, default)."""
    values, defaults = _values(family, config)
    return {name: (values[name], defaults[name]) for name in values if values[name] != defaults[name]}


def train_command(family: str, config: Mapping[str, Any], hardware: Mapping[str, Any]) -> str:
    """The command line, to be typed in a checkout; `hardware` is that of run.json."""
    preset, flags = _nearest_preset(family, config)
    words = [f"training/train_{family}.py", *(["--preset", preset] if preset else [])]
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    precision, processes = hardware.get("mixed_precision", "no"), hardware.get("processes", 1)
    if config.get("mixed_precision") is None and precision != "no":
        words += ["--mixed_precision", precision]
    if processes == 1:
        return shlex.join(["accelerate", "launch", *words])
    if hardware.get("device") == "cpu":  # where accelerate launch would run one process only
        torchrun = ["torchrun", "--standalone", "--nproc_per_node", str(processes)]
        return "ACCELERATE_USE_CPU=true " + shlex.join([*torchrun, *words])
    return shlex.join(["accelerate", "launch", "--num_processes", str(processes), *words])


def _values(family: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values and defaults of the flags that can change the weights, as YAML has them."""
    flags = flags_of(families.family(family).config)
    flags = {name: flag for name, flag in flags.items() if not flag.meta["free"]}
    defaults = {name: _plain(flag.default) for name, flag in flags.items() if not flag.meta["secret"]}
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
