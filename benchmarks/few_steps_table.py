"""The tables of few_steps.py: models, the flags of their trainings, and how they are drawn from."""

from typing import NamedTuple

from trilemma.eval.features.judge_files import JudgeChoice


class Cell(NamedTuple):
    """One way to sample a model: a sampler and the numbers of its steps."""

    model: str
    sampler: str
    steps: tuple[int, ...]


CELLS = (
    Cell("DDPM", "ddim", (1, 2, 4, 8, 20, 50)),  # divisors of T
    Cell("DDPM", "dpmsolver++", (1, 2, 4, 8, 10, 16)),
    Cell("DDPM", "unipc", (10,)),
    Cell("flow", "euler", (10,)),
    Cell("flow", "heun", (5,)),  # 9 calls
    Cell("flow", "dpmsolver++", (10,)),
    Cell("flow", "shifted-dpmsolver++", (1, 2, 4, 8, 10, 16)),
    Cell("flow-logit-normal", "shifted-dpmsolver++", (4, 8, 10, 16)),
    Cell("consistency", "lcm", (1, 2, 4, 8, 16)),
    Cell("consistency-even", "lcm", (1, 2, 4)),
    Cell("DDGAN", "ddpm", (4,)),
    Cell("DDPM-classes", "ddim", (50,)),
    Cell("DDPM-classes", "dpmsolver++", (1, 2, 4, 8, 10, 16)),
    Cell("flow-classes", "shifted-dpmsolver++", (1, 2, 4, 8, 10, 16)),
    Cell("consistency-classes", "lcm", (1, 2, 4, 8, 16)),
)

FAMILY = {
    "DDPM": "unconditional", "flow": "flow", "flow-logit-normal": "flow", "consistency": "consistency",
    "consistency-even": "consistency", "DDGAN": "ddgan", "DDPM-classes": "class_conditional",
    "flow-classes": "flow", "consistency-classes": "consistency",
}  # fmt: skip
PARENT = {"consistency": "DDPM", "consistency-even": "DDPM", "consistency-classes": "DDPM-classes"}
AS_LONG_AS = {"DDGAN": ("DDPM", "consistency", "DDPM-classes", "consistency-classes")}
"""A model whose number of steps follows from its budget: the seconds of those of these that its study has."""

_UNIFORM, _LOGIT = "--time_density uniform", "--time_density logit_normal"
_SHORT = "--preset digits --max_train_steps 3000"
_MNIST = "--preset mnist-cpu --mixed_precision bf16 --train_batch_size 64"
_PLANES = "--preset airplanes-16 --mixed_precision bf16 --train_batch_size 64"
_EVEN = "--spacing even --first_stage 3 --stages 5 --learning_rate 1e-3"
_RATES = "--learning_rate 1e-3 --lr_scheduler cosine --lr_warmup_steps 100 --max_train_steps 1200"
PUBLISHED = {
    "digits-zoo": {
        "DDPM": "digits", "flow": "flow-digits", "DDPM-classes": "class-conditional-digits",
        "consistency-classes": "consistency-digits", "DDGAN": "ddgan-digits",
    },
    "mnist-zoo": {
        "DDPM": "mnist", "DDPM-classes": "class-conditional-mnist", "flow-classes": "flow-mnist",
        "consistency-classes": "consistency-mnist", "DDGAN": "ddgan-mnist",
    },
    "airplanes-zoo": {
        "DDPM": "airplanes-16", "flow": "flow-airplanes-16", "consistency": "consistency-airplanes-16",
    },
}  # fmt: skip
"""Studies of models that lie in model_cards/zoo, by name."""
EMBEDDED = "digits-zoo"
"""The one of them whose data come with the package."""
RECIPES: dict[str, dict[str, str]] = {
    **{
        study: {model: f"--config model_cards/zoo/{name}/config.yaml" for model, name in models.items()}
        for study, models in PUBLISHED.items()
    },
    "digits": {
        "DDPM": "--preset digits",
        "flow": f"--preset digits {_UNIFORM}",
        "flow-logit-normal": f"--preset digits {_LOGIT}",
        "consistency": "--preset digits",
        "consistency-even": f"--preset digits {_EVEN} --huber_c 0.1",
        "DDGAN": "--preset digits",
    },
    "digits-classes": {
        "DDPM-classes": "--preset digits",
        "consistency-classes": "--preset digits --class_conditional --learning_rate 6e-4",
        "DDGAN": "--preset digits",
    },
    "digits-short": {
        "DDPM": _SHORT,
        "flow": f"{_SHORT} {_UNIFORM}",
        "flow-logit-normal": f"{_SHORT} {_LOGIT}",
    },
    "mnist": {
        "DDPM": "--preset mnist-cpu --mixed_precision bf16",
        "flow": f"--preset mnist-cpu --mixed_precision bf16 {_UNIFORM}",
        "consistency": f"{_MNIST} --max_train_steps 600",
        "DDGAN": _MNIST,
    },
    "airplanes-16": {
        "DDPM": "--preset airplanes-16-cpu --mixed_precision bf16 --max_train_steps 1200",
        "flow": f"{_PLANES} {_RATES} {_UNIFORM}",
        "consistency": f"{_PLANES} --max_train_steps 240",
        "DDGAN": "--preset cifar10-16 --classes airplane --mixed_precision bf16 --train_batch_size 64",
    },
}
"""Flags of each model on each data set."""

JUDGES = dict.fromkeys(("airplanes-16", "airplanes-zoo"), JudgeChoice("cifar10-16"))
"""The judge of data that have only one class, on which no classifier can be trained."""
