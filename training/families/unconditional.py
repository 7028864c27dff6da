"""The recipes, one row each: a name, the options it sets, and where they come from.

An entry point's `--preset` picks a row; what the command line says wins over the row. docs/recipes.md prints
this table.
"""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Options by flag name, and the paper or measurement that they come from."""

    options: dict[str, Any]
    source: str


_HO = "Ho et al. 2020 (arXiv 2006.11239), appendix B and its scripts/run_cifar.py"

UNCONDITIONAL = {
    "digits": Preset(
        dict(
            dataset_name="digits", net="unet_8", ddpm_beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction", train_batch_size=32, max_train_steps=7800, learning_rate=4e-3,
            lr_scheduler="cosine", lr_warmup_steps=100, adam_beta2=0.99, ema_max_decay=0.999,
            validation_size=64, checkpointing_steps=1000, validation_steps=500, sample_steps=2000,
            eval_steps=7800, eval_metrics=("fd", "prdc", "modes"),
        ),
        "our own, for a few minutes on two CPU cores; docs/recipes.md shows what was tried",
    ),
    "mnist": Preset(
        dict(
            dataset_name="ylecun/mnist", net="unet_28", train_batch_size=64, max_train_steps=20000,
            lr_warmup_steps=500, ema_max_decay=0.999, validation_split="test", validation_size=512,
        ),
        "our own small network with Ho et al.'s objective",
    ),
    "mnist-cpu": Preset(
        dict(
            dataset_name="ylecun/mnist", net="unet_28_small", train_batch_size=32, max_train_steps=2000,
            ddpm_beta_schedule="squaredcos_cap_v2", learning_rate=2e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, validation_split="test", validation_size=512,
        ),
        "our own, for twenty minutes on one busy CPU core",
    ),
    "fashion-mnist": Preset(
        dict(
            dataset_name="zalando-datasets/fashion_mnist", net="unet_28", train_batch_size=64,
            max_train_steps=40000, lr_warmup_steps=500, ema_max_decay=0.999, random_flip=True,
            validation_split="test", validation_size=512,
        ),
        "our own small network with Ho et al.'s objective",
    ),
    "airplanes-16": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", classes=("airplane",), resolution=16, net="unet_16",
            random_flip=True, train_batch_size=64, max_train_steps=20000, lr_warmup_steps=500,
            ema_max_decay=0.999,
        ),
        "our own small network: the airplanes of CIFAR-10 at 16x16, for studies of T and of schedules",
    ),
    "cifar10": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", net="unet_cifar10", random_flip=True, train_batch_size=128,
            max_train_steps=800000, checkpointing_steps=10000, sample_steps=10000, validation_split="test",
            validation_size=1024, validation_steps=2000,
        ),
        _HO + "; FID 3.17 at 50k samples against the training set",
    ),
    "cifar10-iddpm": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", net="unet_cifar10", dropout=0.3, random_flip=True,
            train_batch_size=128, max_train_steps=500000, learning_rate=1e-4, ddpm_num_steps=4000,
            ddpm_beta_schedule="squaredcos_cap_v2", loss_type="hybrid", lr_scheduler="constant",
            checkpointing_steps=10000, sample_steps=10000,
        ),
        "Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3 and appendix A: schedule, loss, T, dropout, "
        "rate; with Ho et al.'s network",
    ),
    "cifar100": Preset(
        dict(
            dataset_name="uoft-cs/cifar100", net="unet_cifar10", label_column="fine_label", random_flip=True,
            train_batch_size=128, max_train_steps=800000, checkpointing_steps=10000, sample_steps=10000,
        ),
        _HO + ", applied to CIFAR-100",
    ),
    "stanford-cars-128": Preset(
        dict(
            dataset_name="tanganke/stanford_cars", net="unet_128", resolution=128, random_flip=True,
            train_batch_size=16, learning_rate=2e-5, max_train_steps=500000, checkpointing_steps=10000,
            sample_steps=10000,
        ),
        "Ho et al. 2020, appendix B (its 256x256 rate and batch per device) at 128x128",
    ),
    "imagenet-64": Preset(
        dict(
            dataset_name="benjamin-paine/imagenet-1k-64x64", net="unet_64", random_flip=True,
            train_batch_size=128, learning_rate=1e-4, max_train_steps=1500000,
            ddpm_beta_schedule="squaredcos_cap_v2", ddpm_num_steps=4000, loss_type="hybrid",
            checkpointing_steps=10000, sample_steps=10000,
        ),
        "Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3: cosine schedule, hybrid loss, T=4000, batch "
        "128, rate 1e-4",
    ),
}  # fmt: skip

_XIAO = "Xiao et al. 2022 (arXiv 2112.07804), appendix C and the command of their README for CIFAR-10"

DDGAN = {
    "digits": Preset(
        dict(
            dataset_name="digits", net="unet_8", class_conditional=True, beta_max=10.0,
            discriminator_channels=(32, 64), discriminator_steps=2, train_batch_size=64,
            max_train_steps=4000, learning_rate=1e-4, discriminator_learning_rate=4e-4, adam_beta2=0.99,
            r1_gamma=0.05, ema_max_decay=0.998, validation_size=179, checkpointing_steps=500,
            sample_steps=500,
        ),
        "our own, for fifteen minutes on two CPU cores; docs/ddgan.md shows what was tried",
    ),
    "mnist": Preset(
        dict(
            dataset_name="ylecun/mnist", net="unet_28_small", class_conditional=True,
            discriminator_channels=(16, 32, 64, 64), discriminator_steps=2, train_batch_size=64,
            max_train_steps=10000, learning_rate=1e-4, discriminator_learning_rate=4e-4, adam_beta2=0.99,
            r1_gamma=0.05, ema_max_decay=0.999, validation_split="test", validation_size=512,
            sample_steps=2000,
        ),
        "our own small network with Xiao et al.'s objective",
    ),
    "mnist-cpu": Preset(
        dict(
            dataset_name="ylecun/mnist", net="unet_28_small", class_conditional=True,
            discriminator_channels=(16, 32, 64, 64), discriminator_steps=2, train_batch_size=32,
            max_train_steps=4000, learning_rate=1.5e-4, discriminator_learning_rate=5e-4, adam_beta2=0.99,
            r1_gamma=0.05, ema_max_decay=0.999, validation_split="test", validation_size=512,
            checkpointing_steps=500, sample_steps=1000,
        ),
        "the same for an hour of one CPU core; docs/ddgan.md",
    ),
    "cifar10-16": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", resolution=16, net="unet_16", random_flip=True,
            discriminator_channels=(64, 128, 256), train_batch_size=128, max_train_steps=50000,
            learning_rate=3e-4, discriminator_learning_rate=2e-4, ema_max_decay=0.999,
            checkpointing_steps=5000, sample_steps=5000, validation_split="test", validation_size=1024,
            validation_steps=2000,
        ),
        "our own small network with Xiao et al.'s objective, CIFAR-10 at 16x16",
    ),
    "cifar10": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", net="unet_cifar10", dropout=0.0, random_flip=True,
            max_train_steps=400000, checkpointing_steps=10000, sample_steps=10000, validation_split="test",
            validation_size=1024, validation_steps=2000,
        ),
        _XIAO + "; FID 3.75 at 50k samples; their NCSN++ is replaced by Ho et al.'s network",
    ),
}  # fmt: skip

VAE = {
    "digits": Preset(
        dict(
            dataset_name="digits", latent_dim=16, vae_channels=(32, 64), train_batch_size=32,
            max_train_steps=1500, learning_rate=2e-3, lr_scheduler="cosine", lr_warmup_steps=100,
            ema_max_decay=0.998, validation_size=179, checkpointing_steps=500, validation_steps=250,
        ),
        "our own, meant for a few minutes on one busy CPU core",
    ),
    "mnist": Preset(
        dict(
            dataset_name="ylecun/mnist", latent_dim=32, vae_channels=(32, 64, 64), train_batch_size=64,
            max_train_steps=40000, learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=500,
            ema_max_decay=0.999, validation_split="test", validation_size=512,
        ),
        "our own small network",
    ),
    "mnist-cpu": Preset(
        dict(
            dataset_name="ylecun/mnist", latent_dim=32, vae_channels=(16, 32, 32), train_batch_size=32,
            max_train_steps=4000, learning_rate=2e-3, lr_scheduler="cosine", lr_warmup_steps=100,
            ema_max_decay=0.999, validation_split="test", validation_size=512,
        ),
        "our own small network, meant for twenty minutes on one busy CPU core",
    ),
    "cifar10": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", latent_dim=256, vae_channels=(128, 256, 256, 256),
            random_flip=True, train_batch_size=128, max_train_steps=200000, free_bits=0.1,
            checkpointing_steps=10000, sample_steps=10000, validation_split="test", validation_size=1024,
            validation_steps=2000,
        ),
        "our own: the widths and the optimizer of Ho et al. 2020, free bits as in Kingma et al. 2016 (arXiv "
        "1606.04934)",
    ),
}  # fmt: skip

_KINGMA = "Kingma et al. 2021 (arXiv 2107.00630), appendix B and their configs/cifar10.py"

VDM = {
    "digits": Preset(
        dict(
            dataset_name="digits", net="vdm_8", gamma="monotone", fourier_features=(3, 4),
            train_batch_size=32, max_train_steps=6000, learning_rate=2e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, validation_size=179, checkpointing_steps=1000,
            validation_steps=500, ddpm_num_inference_steps=100,
        ),
        "our own small network, meant for ten minutes on one busy CPU core",
    ),
    "mnist": Preset(
        dict(
            dataset_name="ylecun/mnist", net="unet_28", gamma="monotone", fourier_features=(5, 6),
            train_batch_size=64, max_train_steps=40000, learning_rate=1e-3, lr_scheduler="cosine",
            lr_warmup_steps=500, ema_max_decay=0.999, validation_split="test", validation_size=512,
        ),
        "our own small network with Kingma et al.'s objective",
    ),
    "mnist-cpu": Preset(
        dict(
            dataset_name="ylecun/mnist", net="vdm_28_small", gamma="monotone", fourier_features=(5, 6),
            train_batch_size=32, max_train_steps=2500, learning_rate=2e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, validation_split="test", validation_size=512,
            ddpm_num_inference_steps=100,
        ),
        "our own small network, meant for twenty minutes on one busy CPU core",
    ),
    "swirl": Preset(
        dict(
            dataset_name="swirl", net="mlp", vdm_timesteps=200, train_batch_size=256, max_train_steps=6000,
            learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=100, ema_max_decay=0.999,
            eval_batch_size=500, ddpm_num_inference_steps=200,
        ),
        "T and data of Y. Huang 2022 (shortcut MCMC), without the shortcut; network and rates our own",
    ),
    "swirl-shortcut": Preset(
        dict(
            dataset_name="swirl", net="mlp", vdm_timesteps=200, shortcut_steps=10, sampler="shortcut",
            train_batch_size=256, max_train_steps=6000, learning_rate=1e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, eval_batch_size=500, ddpm_num_inference_steps=10,
        ),
        "Y. Huang 2022 (shortcut MCMC): T 200, K 10; network and rates our own",
    ),
    "mixture": Preset(
        dict(
            dataset_name="mixture", net="mlp", gamma="learned_linear", gamma_min=-11.0,
            train_batch_size=256, max_train_steps=6000, learning_rate=1e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, eval_batch_size=500, ddpm_num_inference_steps=200,
        ),
        "our own: a law whose likelihood is known, in continuous time",
    ),
    "cifar10": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", net="vdm_cifar10", gamma="learned_linear",
            fourier_features=(6, 7), train_batch_size=128, max_train_steps=10_000_000,
            learning_rate=2e-4, lr_scheduler="constant_with_warmup", lr_warmup_steps=1000,
            checkpointing_steps=10000, sample_steps=10000, validation_split="test", validation_size=1024,
            validation_steps=2000, ddpm_num_inference_steps=1000,
        ),
        _KINGMA + "; 2.65 bits per dimension on the test set",
    ),
}  # fmt: skip

CLASS_CONDITIONAL = {
    name: Preset(row.options, row.source + "; label drop 0.1: Ho & Salimans 2022 (arXiv 2207.12598), table 1")
    for name, row in UNCONDITIONAL.items()
    if "classes" not in row.options
}
"""The same recipes with the data's labels."""

PRESETS: dict[str, dict[str, Preset]] = {
    "unconditional": UNCONDITIONAL,
    "class_conditional": CLASS_CONDITIONAL,
    "ddgan": DDGAN,
    "vae": VAE,
    "vdm": VDM,
}
"""Family -> name -> row."""
