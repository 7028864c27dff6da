"""--init_from: options that the saved weights have learned, which a run that starts from them takes over.

Weights that predict v with a cosine schedule are of no use for epsilon with a linear one: such a run would
start from noise. So target, noise schedule and T are those of the saved model; where the command line or
--config says otherwise, the run is refused. A family that starts from a flow too has its own process and
target then. No torch here.
"""

import math
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from trilemma.pipelines.files.hub import patience
from trilemma.pipelines.files.saved import read_configuration
from trilemma.pipelines.samplers import of_flow
from trilemma.training.families import Family
from trilemma.training.options.ddpm import BETAS, of_scheduler
from trilemma.training.options.parser import Parser
from trilemma.training.options.yaml_file import read_options

SCHEDULER, CONFIG = "scheduler/scheduler_config.json", "config.yaml"


def take_over(
    parser: Parser, family: Family, values: Mapping[str, Any], given: Collection[str]
) -> dict[str, Any]:
    """Those inherited options of the model of --init_from for which `values` has others.

    given: names on the command line or in --config. ValueError lists those with another value than the saved
    model's.
    """
    source = values["init_from"]
    if family.from_flow and saved_flow(source):
        return {}
    theirs = saved_options(parser, family.inherited, source)
    here = {name: values.get(name, parser.flags[name].field.default) for name in theirs}
    other = [name for name in theirs if not _same(name, theirs, here[name])]
    if refused := [f"--{name}: {theirs[name]} there, {here[name]} here" for name in other if name in given]:
        raise ValueError(
            f"--init_from {source!r} was trained with other settings, and its weights would give noise with "
            f"these: {'; '.join(refused)}. Leave these options out to continue with its own."
        )
    if other and int(os.environ.get("RANK", 0)) == 0:
        words = ", ".join(f"--{name} {theirs[name]}" for name in other)
        print(f"{Path(sys.argv[0]).name}: taken over from --init_from {source!r}: {words}", file=sys.stderr)
    return {name: theirs[name] for name in other}


def saved_options(parser: Parser, names: Collection[str], source: str) -> dict[str, Any]:
    """The inherited options of a saved model, from its config.yaml and its scheduler.

    The scheduler decides, since it samples; config.yaml also has what no scheduler says. ValueError for a
    scheduler that no flags give.
    """
    config, scheduler = _file(source, CONFIG), _file(source, SCHEDULER)
    texts = read_options(config) if config else {}
    where = f"--init_from {source!r}: {{}} in {CONFIG}"
    theirs = {n: parser.convert(parser.flags[n], texts[n], where.format(n)) for n in texts if n in names}
    if scheduler is None or "prediction_type" not in names:
        return theirs
    try:
        saved = of_scheduler(read_configuration(scheduler))
    except ValueError as problem:
        raise ValueError(f"--init_from {source!r}: {problem}") from problem
    where = f"--init_from {source!r}: {{}} in {SCHEDULER}"
    saved = {n: parser.convert(parser.flags[n], v and str(v), where.format(n)) for n, v in saved.items()}
    if all(theirs.get(name) == saved[name] for name in ("ddpm_num_steps", "ddpm_beta_schedule")):
        saved |= {name: theirs[name] for name in BETAS if name in theirs}  # None, where they follow from T
    return theirs | saved


def saved_flow(source: str) -> bool:
    """Whether the model of --init_from is a flow, by its scheduler."""
    scheduler = _file(source, SCHEDULER)
    return scheduler is not None and of_flow(read_configuration(scheduler))


def _file(source: str, name: str) -> Path | None:
    """A file of a saved model, in a folder or downloaded from the Hub; None where there is no such file."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with patience():
            return Path(hf_hub_download(source, name))
    except (OSError, ValueError, EntryNotFoundError) as problem:
        if isinstance(problem, EntryNotFoundError) and not isinstance(problem, LocalEntryNotFoundError):
            return None
        raise ValueError(
            f"--init_from {source!r} is neither a training's output folder nor a model on the Hub: {problem}"
        ) from problem


def _same(name: str, theirs: Mapping[str, Any], here: Any) -> bool:
    """Whether an option means here what it means in the saved model."""
    there = theirs[name]
    if name in BETAS and theirs.get("ddpm_beta_schedule") == "linear":
        usual = BETAS[name] * 1000 / theirs.get("ddpm_num_steps", 1000)
        there, here = (usual if value is None else value for value in (there, here))
        return math.isclose(there, here)
    return there == here
