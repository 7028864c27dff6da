"""Every entry point's options: the groups of each family, the row of groups that it takes, and the parsing.

The groups that all have are in `training/options/groups.py`.
"""

import sys
from dataclasses import dataclass
from typing import Any

from trilemma.training.families.vdm import (
    ChainLogConfig,
    DDGANConfig,
    DDPMConfig,
    DecoderLogConfig,
    FewStepLogConfig,
    GANOptimConfig,
    GuidanceConfig,
    ProcessConfig,
    VAEConfig,
    VDMConfig,
    VDMOptimConfig,
)
from trilemma.training.families.unconditional import PRESETS
from trilemma.training.options.flags import Parser, build, flags_of, nearest, to_yaml
from trilemma.training.options.groups import (
    DataConfig,
    EMAConfig,
    EvalConfig,
    HubConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    RunConfig,
)


@dataclass(frozen=True)
class UnconditionalConfig:
    """`training/train_unconditional.py`."""

    data: DataConfig
    net: NetConfig
    process: ProcessConfig
    objective: DDPMConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    evaluation: EvalConfig
    hub: HubConfig


@dataclass(frozen=True)
class ClassConditionalConfig:
    """`training/train_class_conditional.py`."""

    data: DataConfig
    net: NetConfig
    process: ProcessConfig
    objective: DDPMConfig
    guidance: GuidanceConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    evaluation: EvalConfig
    hub: HubConfig


@dataclass(frozen=True)
class DDGANFamilyConfig:
    """`training/train_ddgan.py`."""

    data: DataConfig
    net: NetConfig
    objective: DDGANConfig
    optim: GANOptimConfig
    ema: EMAConfig
    run: RunConfig
    log: FewStepLogConfig
    evaluation: EvalConfig
    hub: HubConfig

    def __post_init__(self):
        steps, wanted = self.objective.ddpm_num_steps, self.log.ddpm_num_inference_steps
        if wanted not in (None, steps):
            raise ValueError(f"--ddpm_num_inference_steps must be --ddpm_num_steps, {steps}; got {wanted}")


@dataclass(frozen=True)
class VAEFamilyConfig:
    """`training/train_vae.py`."""

    data: DataConfig
    objective: VAEConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: DecoderLogConfig
    evaluation: EvalConfig
    hub: HubConfig


@dataclass(frozen=True)
class VDMFamilyConfig:
    """`training/train_vdm.py`."""

    data: DataConfig
    net: NetConfig
    objective: VDMConfig
    optim: VDMOptimConfig
    ema: EMAConfig
    run: RunConfig
    log: ChainLogConfig
    evaluation: EvalConfig
    hub: HubConfig


FAMILIES = {
    "unconditional": UnconditionalConfig,
    "class_conditional": ClassConditionalConfig,
    "ddgan": DDGANFamilyConfig,
    "vae": VAEFamilyConfig,
    "vdm": VDMFamilyConfig,
}
"""Entry point `training/train_<name>.py` -> its configuration."""


def parse(family: str, description: str, argv: list[str] | None = None):
    """Read the command line of `training/train_<family>.py`; exits on `--help`, `--dry_run` and errors."""
    kind = FAMILIES[family]
    elsewhere: dict[str, str] = {}
    for other, options in FAMILIES.items():
        for name in flags_of(options):
            elsewhere.setdefault(name, f"training/train_{other}.py")
    parser = Parser(kind, elsewhere, description)
    known = PRESETS[family]
    parser.add_argument("--preset", help=f"a recipe: {', '.join(known)} (default: digits)", metavar="NAME")
    parser.add_argument("--config", help="a config.yaml of an earlier run", metavar="FILE")
    parser.add_argument("--dry_run", action="store_true", help="print the resolved configuration and stop")
    typed: dict[str, Any] = parser.parse(sys.argv[1:] if argv is None else argv)
    preset, file, dry_run = typed.pop("preset"), typed.pop("config"), typed.pop("dry_run")

    if preset and file:
        parser.error("--preset and --config both set every option; give one of them")
    if not (preset or file or typed.get("train_data_dir") or typed.get("dataset_name", "digits") != "digits"):
        preset = "digits"
    if preset and preset not in known:
        parser.error(f"--preset must be one of {', '.join(known)}; got {preset!r}.{nearest(preset, known)}")
    base = parser.read_file(file) if file else dict(known[preset].options) if preset else {}
    if typed.get("model_config_name_or_path"):
        base.pop("net", None)
    values = {**base, **typed}
    if values.get("output_dir") is None:
        data = values.get("train_data_dir") or values.get("dataset_name") or "data"
        values["output_dir"] = f"outputs/{family}-{preset or data.rstrip('/').split('/')[-1]}"
    parser.check(values, set(typed))
    try:
        config = build(kind, values)
    except ValueError as problem:
        parser.error(str(problem))
    if dry_run:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config
