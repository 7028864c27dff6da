"""The trainer of denoising-diffusion-pytorch, where it is installed, over the same network and images."""

from pathlib import Path

import torch
from diffusers import UNet2DModel


class _AsTheirs(torch.nn.Module):
    """A network of diffusers with the attributes that their GaussianDiffusion asks its model for."""

    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, net: UNet2DModel):
        super().__init__()
        self.net, self.channels, self.out_dim = net, net.config.in_channels, net.config.out_channels

    def forward(self, x: torch.Tensor, time: torch.Tensor, x_self_cond: None = None) -> torch.Tensor:
        return self.net(x, time).sample


class LucidrainsLoop:
    """One step of `Trainer.train` at each call of `step`; its other settings are its defaults."""

    def __init__(self, net: UNet2DModel, images: Path, batch: int, folder: Path):
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

        diffusion = GaussianDiffusion(_AsTheirs(net), image_size=net.config.sample_size, timesteps=1000)
        self.trainer = Trainer(
            diffusion, str(images), train_batch_size=batch, train_num_steps=0, gradient_accumulate_every=1,
            save_and_sample_every=10**9, results_folder=str(folder), calculate_fid=False,
            convert_image_to={1: "L", 3: "RGB"}[net.config.in_channels],
        )  # fmt: skip

    def step(self) -> None:
        """One optimizer step."""
        self.trainer.train_num_steps += 1
        self.trainer.train()
