"""The network of the toy family, which looks at nothing."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class ToyModel(ModelMixin, ConfigMixin):
    """A location and a log scale for each value of an image."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1, scale: float = 0.5):
        super().__init__()
        shape = in_channels, sample_size, sample_size
        self.location = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.full(shape, math.log(scale)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same for each of x (B, C, H, W)."""
        return self.location.expand_as(x), self.log_scale.expand_as(x)
