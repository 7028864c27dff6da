"""Train an unconditional diffusion model: `accelerate launch training/train_unconditional.py`.

Without flags it learns the embedded 8x8 digits in a few minutes on two CPU cores. The result is a folder that
a stock `DDPMPipeline.from_pretrained` loads.
"""

from trilemma.training.options.command_line import parse


def main() -> None:
    """Parse, then import what needs torch: a mistyped flag answers at once."""
    config = parse("unconditional", __doc__)

    from trilemma.pipelines.unconditional import UnconditionalPipeline
    from trilemma.training.objectives.ddpm import DDPM, output_channels, schedule_of
    from trilemma.training.run import make_net, run

    def objective(config, images):
        net = make_net(config, images, out_channels=output_channels(config.objective, images.channels))
        return DDPM(net, schedule_of(config.process), config.objective, UnconditionalPipeline)

    run(config, objective)


if __name__ == "__main__":
    main()
