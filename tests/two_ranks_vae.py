"""Run by `torchrun` in test_vae.py: trains a VAE through the real loop and writes what each rank saw."""

import json
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from trilemma.pipelines.vae_model import VAEModel
from trilemma.training import launch
from trilemma.training.families import parse
from trilemma.training.methods import GradientDescent
from trilemma.training.objectives.vae import VAE


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
        seen["net"] = net
        return GradientDescent(objective, accelerator, config.optim, total_steps)

    accelerator = launch.make_accelerator(config)
    launch.draw_pictures = launch.save_bundle = launch.write_card = lambda *arguments: None
    launch.train_and_save(config, make_method, accelerator)
    net = seen.pop("net")
    seen["weights"] = [float(p.double().sum()) for p in net.parameters()]
    everyone = gather_object([seen])
    if accelerator.is_main_process:
        Path(report).write_text(json.dumps(everyone))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
