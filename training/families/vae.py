"""The variational autoencoder, the baseline in likelihood: options, recipes, construction."""

from dataclasses import dataclass

from trilemma.training.families import Family, Preset
from trilemma.training.options.flags import option
from trilemma.training.options.groups import (
    DataConfig,
    EMAConfig,
    EvalConfig,
    HubConfig,
    LogConfig,
    OptimConfig,
    RunConfig,
    SheetConfig,
)


@dataclass(frozen=True)
class VAEConfig:
    """The network of the variational autoencoder, and the weights of the two terms of its bound."""

    latent_dim: int = option(32, "dimensions of the latent code", low=1)
    vae_channels: tuple[int, ...] = option(
        (32, 64, 64), "channels of the levels, multiples of 8; each level after the first halves the image"
    )
    beta: float = option(1.0, "weight of the KL divergence of codes from the prior; 1 for the bound", low=0)
    free_bits: float = option(
        0.0, "nats of KL in each latent dimension that cost nothing", low=0, needs=("beta", ...)
    )

    def __post_init__(self):
        wrong = [width for width in self.vae_channels if width < 8 or width % 8]
        if wrong:
            raise ValueError(f"--vae_channels must be multiples of 8, for the group norm; got {wrong[0]}")


@dataclass(frozen=True)
class VAEFamilyConfig:
    """`training/train_vae.py`."""

    data: DataConfig
    objective: VAEConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig

    def __post_init__(self):
        steps = self.sheet.ddpm_num_inference_steps
        if steps not in (None, 1):
            raise ValueError(f"--ddpm_num_inference_steps must be 1, one call of the decoder; got {steps}")
        if self.evaluation.eval_mixed_precision not in (None, "no"):
            raise ValueError("--eval_mixed_precision is not offered: a VAE draws by one call of its decoder")


PRESETS = {
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
            dataset_name="ylecun/mnist", latent_dim=16, vae_channels=(16, 32, 32), beta=6.0,
            train_batch_size=32, max_train_steps=3500, learning_rate=2e-3, lr_scheduler="cosine",
            lr_warmup_steps=100, ema_max_decay=0.999, validation_split="test", validation_size=512,
        ),
        "our own small network; its beta is for legible samples, and 1 is for the bound; docs/likelihood.md",
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


def build(config: VAEFamilyConfig, images, accelerator, total_steps):
    """Gradient descent on minus the evidence lower bound."""
    from trilemma.pipelines.networks.vae_model import VAEModel
    from trilemma.training.loop.method import descend
    from trilemma.training.networks.init_from import take_weights
    from trilemma.training.objectives.vae import VAE

    options, start = config.objective, config.run.init_from
    net = VAEModel(images.resolution, images.channels, options.latent_dim, options.vae_channels)
    if start:
        take_weights(net, start, new_classes=config.run.init_new_classes)
    return descend(VAE(net, options), config, accelerator, total_steps)


FAMILY = Family(VAEFamilyConfig, PRESETS, ("decoder",), build)
