"""The part of the page on one model: how it was trained and measured, every number, and the commands."""

import importlib.util
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trilemma.eval.metrics.table import metric_of
from trilemma.eval.report.groups import Group
from trilemma.eval.report.words import count, figure, in_units, interval, shown, table
from trilemma.eval.scoring.results import ResultLine, newest
from trilemma.eval.studies.models import Model
from trilemma.pipelines import LIKE
from trilemma.training import families
from trilemma.training.options.flags import public_name
from trilemma.training.progress import counted

Command = Callable[[str, Mapping[str, Any], Mapping[str, Any]], str]
"""(family, flags, hardware) -> the command line of a training."""

COLUMNS = (
    "measure", "value", "95% interval", "plain value", "floor", "n", "how images were sampled",
    "compared with", "measured",
)  # fmt: skip
SAME = (
    "metric", "n", "sampler", "num_inference_steps", "guidance_scale", "classes", "mixed_precision",
    "extractor_sha256", "data_fingerprint", "seeds",
)  # fmt: skip
"""If lines agree in these, only the newest is shown."""
RUN = (
    "n", "seeds", "sampler", "num_inference_steps", "guidance_scale", "classes", "mixed_precision",
    "feature_extractor",
)  # fmt: skip
"""Lines of samples that agree in these come from one command."""


def details(group: Group, model: Model, family: str, command: Command) -> str:
    """Facts, measures and commands of a model; its pictures are elsewhere on the page."""
    lines = newest(model.finished, SAME)
    facts = "".join(
        f"<div><dt>{shown(name)}</dt><dd>{shown(value)}</dd></div>" for name, value in _facts(model).items()
    )
    parts = [f'<dl class="facts">{facts}</dl>']
    parts += [f"<p>{shown(sentence)}</p>" for sentence in _remarks(group, model, family)]
    parts += [f"<h4>Train it again</h4>{_code(train)}" for train in _training(model, family, command)]
    parts += [f"<h4>Measure it again</h4>{''.join(map(_code, commands(model)))}"] if lines else []
    if lines:
        parts.append(table(COLUMNS, map(_row, lines), f"Every number that was measured for {model.name}"))
    else:
        parts.append("<p>This model was not measured.</p>")
    return "".join(parts)


def commands(model: Model) -> list[str]:
    """The command lines of `eval/evaluate.py` that measure the same again."""
    runs: dict[tuple, list[ResultLine]] = {}
    for line in newest(model.finished, SAME):
        key = line.key(RUN) if line.sampler else (line.num_inference_steps, _bpd_images(line))
        runs.setdefault(key, []).append(line)
    path = model.folder.path
    folder = path.resolve().name if path.is_absolute() or ".." in path.parts else path.as_posix()
    words = ["accelerate", "launch", "eval/evaluate.py", "--model", folder]
    return [shlex.join([*words, *_flags(lines)]) for lines in runs.values()]


def has_bound(family: str) -> bool:
    """Whether models of a family have bits per dimension; true of an unknown one."""
    module = f"trilemma.eval.bounds.{LIKE.get(family, family)}"
    return family not in families.names() or importlib.util.find_spec(module) is not None


def without_bound(model: Model, family: str) -> str:
    """Why a model has no bits per dimension, '' if it has some."""
    if any(metric_of(line.measure) in ("bpd", "ode_bpd") for line in model.finished):
        return ""
    return "it was not measured" if has_bound(family) else f"models of the family {family} have none"


def _facts(model: Model) -> dict[str, str]:
    run = model.run
    hardware = run.get("hardware", {})
    versions = run.get("versions", {})
    precision = hardware.get("mixed_precision")
    machine = [
        hardware.get("name"),
        hardware.get("processes") and counted(hardware["processes"], "process"),
        hardware.get("threads") and counted(hardware["threads"], "thread"),
        "float32" if precision == "no" else precision,
    ]
    values = {
        "training": run.get("seconds") is not None and in_units(run["seconds"]),
        "steps": run.get("steps") is not None and count(run["steps"]),
        "images seen": run.get("images_seen") is not None and count(run["images_seen"]),
        "parameters": run.get("parameters") and count(run["parameters"]),
        "machine": hardware and ", ".join(str(word) for word in machine if word),
        "seed": model.config.get("seed"),
        "commit": run.get("commit"),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
    }
    return {name: str(value) for name, value in values.items() if value or type(value) is int}


def _remarks(group: Group, model: Model, family: str) -> list[str]:
    remarks = dict.fromkeys(
        f"{line.metric} is not comparable: {remark}."
        for row in group.rows
        for line in row.picked.values()
        if row.model is model and line and (remark := group.remark(line))
    )
    bound = without_bound(model, family)
    return [*remarks, *([f"No bits per dimension: {bound}."] if bound else [])]


def _training(model: Model, family: str, command: Command) -> list[str]:
    if not model.config or family not in families.names():
        return []
    try:
        return [command(family, model.config, model.run.get("hardware", {}))]
    except (ValueError, KeyError, TypeError):  # flags of another version
        return []


def _flags(lines: Sequence[ResultLine]) -> list[str]:
    one, metrics = lines[0], dict.fromkeys(metric_of(line.measure) or line.measure for line in lines)
    flags: dict[str, Any] = {"metrics": [*metrics]}
    if one.sampler:
        flags |= {
            "num_samples": one.n,
            "sampler": one.sampler,
            "num_inference_steps": one.num_inference_steps,
        }
        flags |= {"seed": (one.seeds or "0").split(".")[0], "guidance_scale": one.guidance_scale}
        flags |= {"mixed_precision": one.mixed_precision, "classes": _classes(one.classes or "")}
        flags |= {
            "feature_extractor": next((li.feature_extractor for li in lines if li.feature_extractor), None)
        }
    else:
        flags |= {"bpd_timesteps": one.num_inference_steps, "bpd_images": _bpd_images(one)}
    words = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        words += [f"--{name}", *map(_typed, values)] if values else []
    return words


def _classes(words: str) -> list[str]:
    """Names as a shell would split them; a foreign line may have text that a shell cannot read."""
    try:
        return shlex.split(words)
    except ValueError:
        return [words]


def _bpd_images(line: ResultLine) -> int | None:
    """--bpd_images of a line, None where all images of its split were measured."""
    return None if line.n == line.reference_n else line.n


def _typed(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(command: str) -> str:
    return f'<pre tabindex="0"><code>{shown(command)}</code></pre>'


def _row(line: ResultLine) -> list[str]:
    steps = line.num_inference_steps
    sampled = [
        line.sampler,
        steps and counted(steps, "step" if line.sampler else "noise level"),
        line.nfe and counted(line.nfe, "call"),
        line.guidance_scale is not None and f"guidance {line.guidance_scale:g}",
        line.classes and f"only classes {line.classes}",
        line.mixed_precision and f"network in {line.mixed_precision}",
        line.seconds_per_image is not None and f"{in_units(line.seconds_per_image)} an image",
        line.seeds and f"seeds {line.seeds.replace('..', ' to ')}",
    ]
    judge = line.judge_accuracy
    against = [
        line.reference and public_name(line.reference),
        line.reference_split,
        line.reference_n and f"{line.reference_n:,} images",
        line.feature_extractor and f"features {line.feature_extractor}",
        judge is not None and f"right on {figure(100 * judge)}% of held-out images",
    ]
    return [
        line.metric + (" (forced)" if line.forced else ""),
        figure(line.estimate),
        interval(line.interval),
        "" if line.plain is None else figure(line.plain),
        "" if line.floor is None else figure(line.floor),
        f"{line.n:,}",
        ", ".join(word for word in sampled if word),
        ", ".join(word for word in against if word),
        line.created[:10],
    ]
