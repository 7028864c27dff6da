"""Train a class-conditional diffusion model for classifier-free guidance:
`accelerate launch training/train_class_conditional.py`.

Without flags it learns the embedded 8x8 digits with their labels in a few minutes on two CPU cores. The
result is a folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.options.command_line import parse


def main() -> None:
    """Parse, then import what needs torch: a mistyped flag answers at once."""
    config = parse("class_conditional", __doc__)

    from trilemma.pipelines.class_conditional import ClassConditionalPipeline
    from trilemma.training.objectives.ddpm import DDPM, LabelDropout, output_channels, schedule_of
    from trilemma.training.run import make_net, run

    def objective(config, images):
        names = images.require_class_names()
        channels = output_channels(config.objective, images.channels)
        net = make_net(config, images, out_channels=channels, num_class_embeds=len(names) + 1, classes=names)
        dropout = LabelDropout(len(names), config.guidance.p_uncond)

        def pipeline(net, scheduler):
            return ClassConditionalPipeline(net, scheduler, class_names=names)

        return DDPM(net, schedule_of(config.process), config.objective, pipeline, dropout)

    run(config, objective)


if __name__ == "__main__":
    main()
