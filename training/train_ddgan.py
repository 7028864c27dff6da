"""Train a denoising-diffusion GAN, for images in 2 to 8 steps: `accelerate launch training/train_ddgan.py`.

Without flags it learns the embedded 8x8 digits in about fifteen minutes on two CPU cores. The result is a
folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.options.command_line import parse


def main() -> None:
    """Parse, then import what needs torch: a mistyped flag answers at once."""
    config = parse("ddgan", __doc__)

    from trilemma.training.diffusion.few_steps import latent_row
    from trilemma.training.networks.discriminator import Discriminator
    from trilemma.training.objectives.ddgan import DDGAN
    from trilemma.training.run import make_net, run_method

    def method(config, images, accelerator, total_steps):
        classes = images.require_class_names() if config.objective.class_conditional else None
        net = make_net(config, images, classes=classes, adapt=latent_row)
        widths = config.objective.discriminator_channels
        discriminator = Discriminator(images.channels, images.resolution, widths, len(classes or ()))
        gan = DDGAN(net, discriminator, accelerator, config.objective, config.optim, total_steps, classes)
        if config.run.compile:
            gan.compile()
        return gan

    run_method(config, method)


if __name__ == "__main__":
    main()
