"""The questions of `eval/sweep.py`, one row each, and how a grid becomes points; no torch here.

Flags of a grid are those of the training entry point. Where nothing is trained (a row without family) they
are those of `eval/evaluate.py`.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from trilemma.eval.options import SamplingConfig
from trilemma.training import families
from trilemma.training.options.flags import Flag, flags_of, nearest

Flags = Mapping[str, str]
"""Flag -> value as it is typed in a shell, several words with spaces between; true and false: a switch."""


@dataclass(frozen=True)
class Point:
    """A model of `training/train_<family>.py` with these flags; without a family, a way to sample a model.

    repeats: the point that it trains with one of several seeds.
    """

    family: str | None
    flags: Flags
    own_name: str | None = None
    repeats: "Point | None" = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        pairs = (f"{flag}={value}" for flag, value in self.flags.items())
        return self.own_name or ",".join(pairs).replace("/", "_").replace(" ", "+")


@dataclass(frozen=True)
class Sweep:
    """A grid, all combinations of its values, and points off it.

    x: horizontal axis of the figure: the grid's last flag or an entry of results; None: a row for each point.
    sampling, metrics: flags of `eval/evaluate.py` that the command line does not set.
    seeds: of the trainings that repeat each point.
    """

    about: str
    family: str | None
    grid: Mapping[str, Sequence[str]]
    others: Sequence[Point] = ()
    x: str | None = None
    sampling: Flags = field(default_factory=dict)
    metrics: tuple[str, ...] = ("fd", "prdc")
    seeds: tuple[str, ...] = ()

    def points(self) -> list[Point]:
        """Every point, the last flag of the grid varying fastest, and each with one seed after the other."""
        combinations = (dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))
        points = [*(Point(self.family, flags) for flags in combinations), *self.others]
        if not self.seeds:
            return points
        return [
            Point(one.family, {"seed": seed, **one.flags}, f"{one.name},seed={seed}", one)
            for one, seed in product(points, self.seeds)
        ]


_DDIM = {"sampler": "ddim", "num_inference_steps": "50"}

SWEEPS: dict[str, Sweep] = {
    "schedules": Sweep(
        "How should noise grow over time? (vdm-*: other models, to be compared with each other)",
        "unconditional",
        {"ddpm_beta_schedule": ("linear", "squaredcos_cap_v2", "sigmoid")},
        # By its preset a VDM has another network, target and length of training than the models above. So
        # only these two, which differ in nothing else, show what learning the schedule brings.
        others=(
            Point("vdm", {"gamma": "linear"}, "vdm-linear"),
            Point("vdm", {"gamma": "monotone"}, "vdm-learned"),
        ),
        # Each model's own ancestral chain, the one sampler that all of them have.
        sampling={"num_inference_steps": "250"},
        metrics=("fd", "prdc", "bpd"),
    ),
    "losses": Sweep(
        "How should predictions be compared with their targets?",
        "unconditional",
        {"loss_type": ("l2", "l1", "huber", "vlb", "hybrid", "mmd")},
        sampling=_DDIM,
        metrics=("fd", "prdc", "bpd"),
    ),
    "targets": Sweep(
        "What should the network predict?",
        "unconditional",
        {"prediction_type": ("epsilon", "sample", "v_prediction")},
        sampling=_DDIM,
    ),
    "architectures": Sweep(
        "Which parts of the network matter?",
        "unconditional",
        {"net": ("simple", "conv", "resnet", "resnet_attention")},
        sampling=_DDIM,
    ),
    "steps": Sweep(
        "How many noise levels does a model need, if it is sampled through all of them?",
        "unconditional",
        {"ddpm_num_steps": ("20", "50", "100", "200", "500", "1000")},
        x="ddpm_num_steps",
    ),
    "samplers": Sweep(
        "How few steps are enough, and with which sampler?",
        None,
        {
            "sampler": ("ddpm", "ddim", "dpmsolver++", "unipc", "heun", "euler"),
            # Divisors of 1000, which is what DDIM takes.
            "num_inference_steps": ("5", "10", "20", "50", "100", "250"),
        },
        x="nfe",
    ),
}


def own_sweep(grid: Sequence[str], family: str | None) -> Sweep:
    """The sweep of words `flag=value,value`; family None for flags of `eval/evaluate.py`.

    The last flag is the horizontal axis if all its values are numbers.
    """
    flags = flags_of(families.family(family).config) if family else flags_of(_Sampled)
    values: dict[str, tuple[str, ...]] = {}
    for word in grid:
        flag, _, listed = word.partition("=")
        if not listed or not all(listed.split(",")):
            raise ValueError(f"--grid takes flag=value,value ...; got {word!r}")
        if flag not in flags:
            where = f"training/train_{family}.py" if family else "how a model is sampled"
            raise ValueError(f"--grid {word!r}: {flag} is not a flag of {where}.{nearest(flag, flags)}")
        if flag in values:
            raise ValueError(f"--grid names {flag} twice; give all its values in one list")
        values[flag] = _typed(flags[flag], tuple(dict.fromkeys(listed.split(","))))
    about, last = f"What does {' x '.join(values)} change?", list(values)[-1]
    return Sweep(about, family, values, x=last if _numbers(values[last]) else None)


def with_seeds(row: Sweep, seeds: Sequence[int] | None, model: str | None) -> Sweep:
    """The sweep whose points are trained once with each seed; ValueError where that is not possible."""
    if seeds is None:
        return row
    if model or row.family is None:
        raise ValueError("--repeat_seeds are of trainings; with --model nothing is trained")
    if "seed" in row.grid:
        raise ValueError("--repeat_seeds and --grid seed= both set the seed; give one of them")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        given = " ".join(map(str, seeds))
        raise ValueError(f"--repeat_seeds must be two different seeds or more; got {given}")
    return replace(row, seeds=tuple(map(str, seeds)))


def check_free(row: Sweep, line: Sequence[str]) -> None:
    """ValueError if a command line has a flag that the points set; it would have no effect."""
    set_by_points = {flag for point in row.points() for flag in point.flags}
    for word in line:
        flag = word.split("=")[0].removeprefix("--").removeprefix("no-")
        if word.startswith("--") and flag in set_by_points:
            raise ValueError(
                f"--{flag} has no effect: the points of this sweep set it; leave it out, or name the values "
                f"to try with --grid {flag}=..."
            )


@dataclass(frozen=True)
class _Sampled:
    """The flags of `eval/evaluate.py` that say how images are drawn."""

    sampling: SamplingConfig


def _typed(flag: Flag, values: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [value for value in values if (flag.kind is bool) != (value in ("true", "false"))]
    if wrong:
        rule = "a switch takes true or false" if flag.kind is bool else "true and false are for switches"
        raise ValueError(f"--grid {flag.name}: {rule}; got {wrong[0]!r}")
    return values


def _numbers(values: Sequence[str]) -> bool:
    try:
        return bool([float(value) for value in values])
    except ValueError:
        return False


def words(flags: Flags) -> list[str]:
    """Flags as a command line has them."""
    line = []
    for flag, value in flags.items():
        switch = value in ("true", "false")
        line += [f"--no-{flag}" if value == "false" else f"--{flag}", *([] if switch else shlex.split(value))]
    return line


def typed(value: Any) -> str:
    """A value of a configuration as `words` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return shlex.join(map(str, value)) if isinstance(value, tuple) else shlex.quote(str(value))
