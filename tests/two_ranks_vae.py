"""Run by `torchrun` in test_vae.py: trains a VAE through the real loop and writes what each rank saw."""

import sys

import torch
from two_ranks import train_and_report

from trilemma.pipelines.vae_model import VAEModel
from trilemma.training.loop.method import GradientDescent
from trilemma.training.objectives.vae import VAE
from trilemma.training.options.command_line import parse


def main(report: str, *flags: str) -> None:
    config = parse("vae", "", list(flags))
    seen = {"x0": [], "noise": []}

    def make_method(config, images, accelerator, total_steps):
        assert accelerator.num_processes == 2
        options = config.objective
        net = VAEModel(images.resolution, images.channels, options.latent_dim, options.vae_channels)
        objective = VAE(net, options)

        def watched_encode(x0):
            seen["x0"].append(float(x0.double().sum()))
            return net.encode(x0)

        def watched_decode(z):
            seen["noise"].append(float(z.double().sum()))
            return net.decode(z)

        objective.encode, objective.decode = watched_encode, watched_decode
        seen["networks"] = {"weights": net}
        return GradientDescent(objective, accelerator, config.optim, total_steps)

    train_and_report(report, config, "vae", make_method, seen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
