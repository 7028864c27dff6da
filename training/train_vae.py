"""Train a variational autoencoder, the baseline in likelihood: `accelerate launch training/train_vae.py`.

Without flags it learns the embedded 8x8 digits in a few minutes on one CPU core. The result is a folder that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.options.command_line import parse


def main() -> None:
    """Parse, then import what needs torch: a mistyped flag answers at once."""
    config = parse("vae", __doc__)

    from trilemma.pipelines.vae_model import VAEModel
    from trilemma.training.networks.init_from import take_weights
    from trilemma.training.objectives.vae import VAE
    from trilemma.training.run import run

    def objective(config, images):
        wanted, start = config.objective, config.run.init_from
        net = VAEModel(images.resolution, images.channels, wanted.latent_dim, wanted.vae_channels)
        if start:
            take_weights(net, start, new_classes=config.run.init_new_classes)
        return VAE(net, wanted)

    run(config, objective)


if __name__ == "__main__":
    main()
