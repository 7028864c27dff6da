"""Train an unconditional diffusion model: `accelerate launch training/train_unconditional.py`.

Without flags it learns the embedded 8x8 digits in about two minutes on two CPU cores. The result is a folder
that a stock
`DDPMPipeline.from_pretrained` loads.
"""

from trilemma.training.config import parse


def main() -> None:
    """Parse, then import what needs torch: a mistyped flag answers at once."""
    config = parse("unconditional", __doc__)

    from trilemma.pipelines.unconditional import UnconditionalPipeline
    from trilemma.training.launch import make_net, run
    from trilemma.training.losses import LOSSES
    from trilemma.training.objectives.ddpm import DDPM
    from trilemma.training.process import noise_schedule

    def objective(config, images):
        process = config.process
        schedule = noise_schedule(
            process.ddpm_beta_schedule, process.ddpm_num_steps, process.beta_start, process.beta_end
        )
        learns_variance = LOSSES[config.objective.loss_type].learns_variance
        net = make_net(config, images, out_channels=images.channels * (1 + learns_variance))
        return DDPM(net, schedule, config.objective, UnconditionalPipeline)

    run(config, objective)


if __name__ == "__main__":
    main()
