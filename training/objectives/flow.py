"""Flow matching: draw a time, mix image and noise, predict the velocity from image to noise, compare.

Lipman et al. 2023 (arXiv 2210.02747), equation 23 with sigma_min = 0; Liu et al. 2023 (arXiv 2209.03003),
equation 1. Which times and which pairs is read once here from the configuration.
"""

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from trilemma.pipelines.flow import ClassConditionalFlowPipeline, FlowPipeline
from trilemma.training.devices.compiled import compiled_forward
from trilemma.training.diffusion.flow import TIME_DENSITIES, TIME_STEPS, between, coupled
from trilemma.training.diffusion.label_dropout import LabelDropout
from trilemma.training.diffusion.losses import mean_per_example
from trilemma.training.diffusion.process import normal_like
from trilemma.training.diffusion.times import spread_times
from trilemma.training.families.flow import FlowConfig
from trilemma.training.loop.method import Logs, Objective
from trilemma.training.objectives.ddpm import QUARTILES, by_quartile
from trilemma.training.options.inherit import saved_flow


class Flow(Objective):
    """The squared error of one velocity per image; `net(x_s, 1000 s, class_labels)` as UNet2DModel has it.

    class_names: of a class-conditional model, one for each class, or None for a model without classes.
    """

    passes = ("velocity",)

    def __init__(self, net: nn.Module, config: FlowConfig, class_names: tuple[str, ...] | None = None):
        super().__init__()
        self.net, self.velocity, self.config, self.class_names = net, net.forward, config, class_names
        self.num_classes = len(class_names) if class_names else None
        self.condition = LabelDropout(len(class_names), config.p_uncond) if class_names else None

    def times(self, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """s (count,) float64 in [0, 1), of the density of the flags and together evenly spread over it.

        Where `spread_times` draws them: not every device has float64.
        """
        density = TIME_DENSITIES[self.config.time_density]
        even = spread_times(count, device, generator)
        return density(even, self.config.logit_mean, self.config.logit_std)

    def forward(
        self, x0: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Logs]:
        """Losses (B,) for x0 (B, C, H, W) in [-1, 1]; logs the loss by quarter of s."""
        s = self.times(len(x0), x0.device, generator)
        noise = normal_like(x0, generator)
        if self.config.coupling == "optimal":
            noise = coupled(x0, noise, labels if self.condition else None)
        class_labels = self.condition(labels) if self.condition else None
        # float(): under autocast the network answers in half precision, losses are always float32.
        time_steps = s.float().to(x0.device) * TIME_STEPS
        output = self.velocity(between(x0, noise, s), time_steps, class_labels).sample.float()
        losses = mean_per_example((output - (noise - x0)).square())
        quarter = (s * QUARTILES).long().clamp(max=QUARTILES - 1).to(x0.device) + 1
        return losses, by_quartile(losses.detach(), quarter, QUARTILES)

    def pipeline(self, net: nn.Module) -> DiffusionPipeline:
        """A pipeline that samples from `net` by Euler's rule, until it is given another sampler."""
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIME_STEPS)
        if self.class_names:
            return ClassConditionalFlowPipeline(net, scheduler, class_names=self.class_names)
        return FlowPipeline(net, scheduler)

    def compile(self, required: bool = True) -> None:
        """Compile the forward pass alone: `net` stays as it is for sampling and saving."""
        self.velocity = compiled_forward(self.net.forward, required)


def require_flow(source: str) -> None:
    """ValueError unless the saved model of --init_from is a flow; its weights would give noise otherwise."""
    if not saved_flow(source):
        scheduler = FlowMatchEulerDiscreteScheduler.load_config(source, subfolder="scheduler")
        raise ValueError(
            f"--init_from {source!r} has a {scheduler['_class_name']} and predicts "
            f"{scheduler.get('prediction_type', 'something else')}; this trains a flow, whose network "
            "predicts a velocity: give a model that training/train_flow.py has trained"
        )
