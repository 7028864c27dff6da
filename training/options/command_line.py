"""The command line of an entry point: preset, file and flags become the configuration of a family."""

import os
import sys
from collections.abc import Callable
from typing import Any

from trilemma.training import families
from trilemma.training.options.flags import build, flags_of, nearest, to_yaml
from trilemma.training.options.inherit import take_over
from trilemma.training.options.parser import Parser

INSTEAD_OF = {
    "model_config_name_or_path": "net", "num_epochs": "max_train_steps", "dataset_name": "train_data_dir",
    "sample_steps": "save_images_epochs", "save_images_epochs": "sample_steps",
}  # fmt: skip
"""A flag on the command line -> the option of a preset or a file that it replaces."""


def parse(
    name: str,
    description: str,
    argv: list[str] | None = None,
    check: Callable[[Any], None] = lambda config: None,
):
    """Read the command line of `training/train_<name>.py`; exits on `--help`, `--dry_run` and errors.

    check: called with the configuration, for choices that only higher floors can check; raises ValueError.
    """
    family = families.family(name)
    parser = _parser(name, description)
    default = next(iter(family.presets))
    names = ", ".join(family.presets)
    typed: dict[str, Any] = parser.parse(sys.argv[1:] if argv is None else argv)
    preset, file, dry_run = typed.pop("preset"), typed.pop("config"), typed.pop("dry_run")

    if preset and file:
        parser.error("--preset and --config both set every option; give one of them")
    own_data = (None, family.presets[default].options.get("dataset_name"))
    if not (preset or file or typed.get("train_data_dir")) and typed.get("dataset_name") in own_data:
        preset = default
    if preset and preset not in family.presets:
        parser.error(f"--preset must be one of {names}; got {preset!r}.{nearest(preset, family.presets)}")
    base = parser.read_file(file) if file else {}
    if preset:
        base = family.presets[preset].options_for(typed.get("max_train_steps"))
    for flag, replaced in INSTEAD_OF.items():
        if typed.get(flag) and replaced not in typed:
            base.pop(replaced, None)
    values = {**base, **typed}
    if values.get("sampler") is None:
        values["sampler"] = family.samplers[0]
    if values.get("output_dir") is None:
        data = values.get("train_data_dir") or values.get("dataset_name") or "data"
        recipe = preset if "dataset_name" in base else None
        values["output_dir"] = f"outputs/{name}-{recipe or os.path.basename(os.path.abspath(data))}"
    try:
        if values.get("init_from"):
            values |= take_over(parser, family.inherited, values, {*typed, *(base if file else ())})
        parser.check(values, set(typed))
        config = build(family.config, values)
        check(config)
    except ValueError as problem:
        parser.error(str(problem))
    if dry_run:
        print(to_yaml(config), end="", flush=True)
        from trilemma.training.options.resolved import resolved  # looks at the data, which needs torch

        try:
            for line in resolved(config):  # apart from what `--config` reads back
                print(line, file=sys.stderr)
        except (ValueError, OSError) as problem:  # the run itself would end here
            raise SystemExit(f"error: {problem}") from problem
        raise SystemExit(0)
    return config


def given(name: str, argv: list[str] | None = None) -> frozenset[str]:
    """The options that a command line sets by itself or by `--config`, not by a preset."""
    parser = _parser(name, "")
    typed = parser.parse(sys.argv[1:] if argv is None else argv)
    return frozenset(typed | (parser.read_file(typed["config"]) if typed["config"] else {}))


def _parser(name: str, description: str) -> Parser:
    family = families.family(name)
    parser = Parser(family.config, description, owners, {"sampler": family.samplers})
    names = ", ".join(family.presets)
    parser.add_argument(
        "--preset", help=f"a recipe: {names} (default: {next(iter(family.presets))})", metavar="NAME"
    )
    parser.add_argument("--config", help="a config.yaml of an earlier run", metavar="FILE")
    dry_run = "print the resolved configuration, and what local data tell of the run, and stop"
    parser.add_argument("--dry_run", action="store_true", help=dry_run)
    return parser


def owners(flag: str) -> list[str]:
    """The entry points that have a flag."""
    having = [name for name in families.names() if flag in flags_of(families.family(name).config)]
    return [f"training/train_{name}.py" for name in having]
