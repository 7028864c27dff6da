"""Train a variational diffusion model, for the likelihood: `accelerate launch training/train_vdm.py`.

Without flags it learns the embedded 8x8 digits in about ten minutes on a busy CPU core. The result is a
folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from functools import partial

from trilemma.training.options.command_line import parse


def main() -> None:
    """Parse, then import what needs torch: a mistyped flag answers at once."""
    config = parse("vdm", __doc__)

    from trilemma.pipelines.vdm_model import NETWORKS
    from trilemma.training.networks.rows import NETS
    from trilemma.training.objectives.vdm import VDM, build_vdm
    from trilemma.training.run import make_net, run

    def fitting(row):
        """The row, if its network can be one within a VDMModel."""
        kind = row.get("network", row).get("_class_name", "UNet2DModel")
        if kind not in NETWORKS:
            able = ", ".join(name for name, other in NETS.items() if other["_class_name"] in NETWORKS)
            raise ValueError(
                f"--net or --model_config_name_or_path must be a {' or a '.join(NETWORKS)}, as are --net "
                f"{able}; got a {kind}"
            )
        return row

    def objective(config, images):
        classes = images.require_class_names() if config.objective.class_conditional else None
        rows = len(classes) + 1 if classes else None
        build = partial(build_vdm, config=config.objective)
        net = make_net(config, images, num_class_embeds=rows, classes=classes, adapt=fitting, build=build)
        return VDM(net, config.objective, classes)

    run(config, objective)


if __name__ == "__main__":
    main()
