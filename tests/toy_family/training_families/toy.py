"""The toy family: a mean and a spread for each pixel, all independent. Options, recipe, loss."""

from dataclasses import dataclass

from trilemma.training.families import Family, Preset
from trilemma.training.options.flags import option
from trilemma.training.options.groups import (
    DataConfig,
    EMAConfig,
    EvalConfig,
    HubConfig,
    LogConfig,
    OptimConfig,
    RunConfig,
    SheetConfig,
)


@dataclass(frozen=True)
class ToyConfig:
    """What only this family has."""

    toy_scale: float = option(0.5, "the spread of every pixel before training", low=0.0)


@dataclass(frozen=True)
class ToyFamilyConfig:
    """`training/train_toy.py`, if there were one."""

    data: DataConfig
    objective: ToyConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig


PRESETS = {
    "digits": Preset(
        dict(
            dataset_name="digits", train_batch_size=32, max_train_steps=30, learning_rate=0.02,
            lr_warmup_steps=0, ema_max_decay=0.5, logging_steps=5,
        ),
        "a test",
    ),
}  # fmt: skip


def build(config: ToyFamilyConfig, images, accelerator, total_steps):
    """Gradient descent on the negative log likelihood."""
    import torch

    from trilemma.pipelines.toy import ToyPipeline
    from trilemma.pipelines.toy_model import ToyModel
    from trilemma.training.loop.method import Objective, descend
    from trilemma.training.objectives.vae import discretised_logistic_nll, nats_per_bit_per_dim

    class Toy(Objective):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x0, labels, generator=None):
            location, log_scale = self.net(torch.zeros_like(x0))
            losses = discretised_logistic_nll(x0, location, log_scale).flatten(1).sum(1)
            return losses / nats_per_bit_per_dim(x0), {}

        def pipeline(self, net):
            return ToyPipeline(net)

        def compile(self, required=True):
            raise ValueError("--compile: there is nothing to compile")

    net = ToyModel(images.resolution, images.channels, config.objective.toy_scale)
    return descend(Toy(net), config, accelerator, total_steps)


FAMILY = Family(ToyFamilyConfig, PRESETS, ("pixels",), build)
