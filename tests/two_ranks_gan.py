"""Run by `torchrun` in test_ddgan.py: trains a GAN through the real loop and writes each rank's weights."""

import sys

import torch
from two_ranks import train_and_report

from trilemma.training.diffusion.few_steps import latent_row
from trilemma.training.networks.build import make_net
from trilemma.training.networks.discriminator import Discriminator
from trilemma.training.objectives.ddgan import DDGAN
from trilemma.training.options.command_line import parse


def main(report: str, *flags: str) -> None:
    config = parse("ddgan", "", list(flags))
    seen = {"x0": []}

    def make_method(config, images, accelerator, total):
        assert accelerator.num_processes == 2
        net = make_net(config, images, adapt=latent_row)
        discriminator = Discriminator(images.channels, images.resolution, (8, 8))
        method = DDGAN(net, discriminator, accelerator, config.objective, config.optim, total)
        step = method.step

        def watched_step(x0, labels):
            seen["x0"].append(float(x0.double().sum()))
            return step(x0, labels)

        method.step = watched_step
        seen["networks"] = {"generator": net, "discriminator": discriminator}
        return method

    train_and_report(report, config, "ddgan", make_method, seen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
