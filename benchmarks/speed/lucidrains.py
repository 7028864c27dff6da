"""The trainer of denoising-diffusion-pytorch, where it is installed, over the same network and images."""

import contextlib
import io
from importlib import import_module
from pathlib import Path

import torch
from diffusers import UNet2DModel

NAME = "denoising-diffusion-pytorch"
SMALLEST_BATCH = 16
"""Its trainer refuses smaller ones."""


class _AsTheirs(torch.nn.Module):
    """A network of diffusers with the attributes that their GaussianDiffusion asks its model for."""

    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, net: UNet2DModel):
        super().__init__()
        self.net, self.channels, self.out_dim = net, net.config.in_channels, net.config.out_channels

    def forward(self, x: torch.Tensor, time: torch.Tensor, x_self_cond: None = None) -> torch.Tensor:
        return self.net(x, time).sample


class LucidrainsLoop:
    """One step of `Trainer.train` at each call of `step`, with its defaults.

    Images are read in this process instead of others, so that the time of reading counts as in every loop.
    """

    def __init__(self, net: UNet2DModel, images: Path, batch: int, folder: Path):
        module = import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
        diffusion = module.GaussianDiffusion(
            _AsTheirs(net), image_size=net.config.sample_size, timesteps=1000
        )
        module.cpu_count = lambda: 0  # its number of reading processes
        self.trainer = module.Trainer(
            diffusion,
            str(images),
            train_batch_size=batch,
            train_num_steps=0,
            save_and_sample_every=10**9,
            results_folder=str(folder),
            calculate_fid=False,
        )

    def step(self) -> None:
        """One optimizer step."""
        self.trainer.train_num_steps += 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.trainer.train()
