"""The command line of an entry point: preset, file and flags become the configuration of a family."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from trilemma.pipelines.files.hub import check_place
from trilemma.training import families
from trilemma.training.images.shards.options import check_run
from trilemma.training.options import plugins
from trilemma.training.options.flags import build, flags_of, nearest, to_yaml
from trilemma.training.options.in_memory import NOTHING, InMemory
from trilemma.training.options.inherit import take_over
from trilemma.training.options.parser import Parser

P = TypeVar("P", bound=Parser)

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
    argv = sys.argv[1:] if argv is None else argv
    try:
        plugins.load_from(argv, with_config=True)
    except ValueError as problem:
        parser_of(name, description).error(str(problem))
    parser = parser_of(name, description)
    typed: dict[str, Any] = parser.parse(argv)
    dry_run = typed.pop("dry_run")
    config = resolve(parser, name, typed, check)
    if dry_run:
        print(to_yaml(config), end="", flush=True)
        family = families.family(name)
        from trilemma.training.options.resolved import resolved  # looks at the data, which needs torch

        try:
            for line in resolved(config, family.takes_classes(config)):
                print(line, file=sys.stderr)  # apart from what `--config` reads back
        except (ValueError, OSError) as problem:  # the run itself would end here
            raise SystemExit(f"error: {problem}") from problem
        raise SystemExit(0)
    return config


def resolve(
    parser: Parser,
    name: str,
    typed: dict[str, Any],
    check: Callable[[Any], None] = lambda config: None,
    memory: InMemory = NOTHING,
) -> Any:
    """The configuration of a family from what was typed, which includes --preset and --config.

    memory: objects of a script, which take the place of options. Errors are the parser's.
    """
    family = families.family(name)
    default = next(iter(family.presets))
    names = ", ".join(family.presets)
    typed = dict(typed)
    preset, file = typed.pop("preset"), typed.pop("config")
    if preset and file:
        parser.error("--preset and --config both set every option; give one of them")
    own_data = (None, family.presets[default].options.get("dataset_name"))
    has_data = typed.get("train_data_dir") or memory.images is not None
    if not (preset or file or has_data) and typed.get("dataset_name") in own_data:
        preset = default
    if preset and preset not in family.presets:
        parser.error(f"--preset must be one of {names}; got {preset!r}.{nearest(preset, family.presets)}")
    base = parser.read_file(file) if file else {}
    if preset:
        base = family.presets[preset].options_for(typed.get("max_train_steps"))
    for flag, replaced in INSTEAD_OF.items():
        if typed.get(flag) and replaced not in typed:
            base.pop(replaced, None)
    base = {option: value for option, value in base.items() if option not in memory.replaced}
    values = {**base, **typed}
    if values.get("sampler") is None:
        values["sampler"] = family.samplers[0]
    if values.get("output_dir") is None:
        data = values.get("train_data_dir") or values.get("dataset_name") or "data"
        recipe = preset if "dataset_name" in base else None
        values["output_dir"] = f"outputs/{name}-{recipe or os.path.basename(os.path.abspath(data))}"
    try:
        if values.get("init_from"):
            if os.path.realpath(values["init_from"]) == os.path.realpath(values["output_dir"]):
                raise ValueError(
                    f"--init_from {values['init_from']!r} is the --output_dir itself; "
                    "give another --output_dir"
                )
            check_place(values["init_from"], "--init_from")
            values |= take_over(parser, family, values, {*typed, *(base if file else ())})
        parser.check(values, set(typed))
        config = build(family.config, values)
        check_run(config, values)
        check(config)
    except ValueError as problem:
        parser.error(str(problem))
    return config


def given(name: str, argv: list[str] | None = None) -> frozenset[str]:
    """The options that a command line sets by itself or by `--config`, not by a preset."""
    parser = parser_of(name, "")
    typed = parser.parse(sys.argv[1:] if argv is None else argv)
    return frozenset(typed | (parser.read_file(typed["config"]) if typed["config"] else {}))


def parser_of(name: str, description: str, kind: type[P] = Parser) -> P:
    """The parser of the flags of `training/train_<name>.py`."""
    family = families.family(name)
    parser = kind(family.config, description, owners, {"sampler": family.samplers})
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
