"""The denoising-diffusion GAN: options, recipes, construction."""

from dataclasses import dataclass
from typing import Literal

from trilemma.training.families import Family, Preset
from trilemma.training.loop.learning_rate import SHAPES, WITH_WARMUP
from trilemma.training.options.flags import option
from trilemma.training.options.groups import (
    DataConfig,
    EMAConfig,
    EvalConfig,
    HubConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    RunConfig,
    SheetConfig,
)


@dataclass(frozen=True)
class DDGANConfig:
    """The few-step process, the discriminator, and the checks for collapse."""

    ddpm_num_steps: Literal[2, 4, 8] = option(4, "T, the number of denoising steps")
    beta_min: float = option(0.1, "noise rate at the start of the VP process", low=0.0)
    beta_max: float = option(20.0, "noise rate at its end", low=0.0)
    class_conditional: bool = option(False, "condition on class labels; the data must have labels")
    discriminator_channels: tuple[int, ...] = option(
        (128, 256, 512, 512), "channels of the discriminator's blocks, the first at full size"
    )
    discriminator_steps: int = option(1, "discriminator updates per generator update", low=1)
    discriminator_learning_rate: float = option(1.25e-4, "peak learning rate of the discriminator", low=0.0)
    r1_gamma: float = option(
        0.02, "gamma of R1: gamma / 2 is the weight of the penalty on the discriminator's gradient", low=0
    )
    r1_interval: int = option(15, "steps between R1 penalties", low=1, needs=("r1_gamma", ...))
    watchdog_steps: int = option(
        100, "steps between checks for signs of collapse; 0 for no checks", free=True, low=0
    )

    def __post_init__(self):
        if self.beta_max <= self.beta_min:
            raise ValueError(f"--beta_max must be above --beta_min; got {self.beta_min}..{self.beta_max}")
        widths = self.discriminator_channels
        if widths[0] < 4 or min(widths) < 1:
            raise ValueError(
                "--discriminator_channels must be positive, and the first at least 4, which embeds t; "
                f"got {' '.join(map(str, widths))}"
            )


@dataclass(frozen=True)
class GANOptimConfig(OptimConfig):
    """Batches and Adam; generator and discriminator differ only in their peak learning rate."""

    train_batch_size: int = option(256, "images per process; a multiple of 4", low=1)
    gradient_accumulation_steps: int = option(1, "not offered: the networks take turns on every batch", low=1)
    learning_rate: float = option(1.6e-4, "peak learning rate of the generator", low=0.0)
    lr_scheduler: Literal[tuple(SHAPES)] = option("cosine", "learning rates over optimizer steps")
    lr_warmup_steps: int = option(0, "optimizer steps of warm-up", low=0, needs=("lr_scheduler", WITH_WARMUP))
    adam_beta1: float = option(0.5, "Adam's first decay", low=(0, 1.0))
    adam_beta2: float = option(0.9, "Adam's second decay", low=(0, 1.0))
    max_grad_norm: float = option(0.0, "gradients are clipped to this norm; 0 for no clipping", low=0)

    def __post_init__(self):
        super().__post_init__()
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                "--gradient_accumulation_steps is not offered: the generator trains against a discriminator "
                "that has just been updated on the same batch. Use a smaller --train_batch_size or more "
                "processes"
            )
        if self.train_batch_size % 4:
            raise ValueError(
                f"--train_batch_size must be a multiple of 4, the group size of the minibatch deviation; "
                f"got {self.train_batch_size}"
            )


@dataclass(frozen=True)
class DDGANFamilyConfig:
    """`training/train_ddgan.py`."""

    data: DataConfig
    net: NetConfig
    objective: DDGANConfig
    optim: GANOptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig

    def __post_init__(self):
        total, asked = self.objective.ddpm_num_steps, self.sheet.ddpm_num_inference_steps
        if asked not in (None, total):
            raise ValueError(f"--ddpm_num_inference_steps must be --ddpm_num_steps, {total}; got {asked}")


_XIAO = "Xiao et al. 2022 (arXiv 2112.07804), appendix C and the command of their README for CIFAR-10"

PRESETS = {
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


def build(config: DDGANFamilyConfig, images, accelerator, total_steps):
    """Alternating updates of the discriminator and of the generator, which is published."""
    from trilemma.training.diffusion.few_steps import latent_row
    from trilemma.training.networks.build import make_net
    from trilemma.training.networks.discriminator import Discriminator
    from trilemma.training.objectives.ddgan import DDGAN

    classes = images.require_class_names() if config.objective.class_conditional else None
    net = make_net(config, images, classes=classes, adapt=latent_row)
    widths = config.objective.discriminator_channels
    discriminator = Discriminator(images.channels, images.resolution, widths, len(classes or ()))
    gan = DDGAN(net, discriminator, accelerator, config.objective, config.optim, total_steps, classes)
    if config.run.compile:
        gan.compile()
    return gan


def takes_classes(config) -> bool:
    """Whether a model of these options is class-conditional."""
    return config.objective.class_conditional


INHERITED = ("ddpm_num_steps", "beta_min", "beta_max")

FAMILY = Family(DDGANFamilyConfig, PRESETS, ("ddpm",), build, takes_classes, inherited=INHERITED)
