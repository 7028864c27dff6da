"""Run by `torchrun` in test_ddgan.py: trains a GAN through the real loop and writes each rank's weights."""

import json
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from trilemma.training import launch
from trilemma.training.discriminator import Discriminator
from trilemma.training.families import parse
from trilemma.training.objectives.ddgan import DDGAN, latent_row


def main(report: str, *flags: str) -> None:
    config = parse("ddgan", "", list(flags))
    seen = {"x0": []}

    def make_method(config, images, accelerator, total):
        assert accelerator.num_processes == 2
        net = launch.make_net(config, images, adapt=latent_row)
        discriminator = Discriminator(images.channels, images.resolution, (8, 8))
        method = DDGAN(net, discriminator, accelerator, config.objective, config.optim, total)
        step = method.step

        def watched_step(x0, labels):
            seen["x0"].append(float(x0.double().sum()))
            return step(x0, labels)

        method.step = watched_step
        seen["networks"] = net, discriminator
        return method

    accelerator = launch.make_accelerator(config)
    launch.draw_pictures = launch.save_bundle = launch.write_card = lambda *arguments: None
    launch.train_and_save(config, make_method, accelerator)
    generator, discriminator = seen.pop("networks")
    seen["generator"] = [float(p.double().sum()) for p in generator.parameters()]
    seen["discriminator"] = [float(p.double().sum()) for p in discriminator.parameters()]
    everyone = gather_object([seen])
    if accelerator.is_main_process:
        Path(report).write_text(json.dumps(everyone))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
