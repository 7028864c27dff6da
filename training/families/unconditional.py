"""Unconditional denoising diffusion: options, recipes, construction. docs/recipes.md prints the recipes."""

from dataclasses import dataclass

from trilemma.training.families import Family, Preset
from trilemma.training.options.ddpm import (
    IN_SCHEDULER,
    SAMPLERS,
    DDPMConfig,
    OwnConfig,
    ProcessConfig,
    can_sample,
    check_sampler,
    choose_by_minutes,
    may_be_faster,
)
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
class UnconditionalConfig:
    """`training/train_unconditional.py`."""

    data: DataConfig
    own: OwnConfig
    net: NetConfig
    process: ProcessConfig
    objective: DDPMConfig
    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    sheet: SheetConfig
    evaluation: EvalConfig
    hub: HubConfig

    def __post_init__(self):
        check_sampler(self)


_HO = "Ho et al. 2020 (arXiv 2006.11239), appendix B and its scripts/run_cifar.py"

PRESETS = {
    "digits": Preset(
        dict(
            dataset_name="digits", net="unet_8", ddpm_beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction", train_batch_size=32, max_train_steps=7800, learning_rate=4e-3,
            lr_scheduler="cosine", lr_warmup_steps=100, adam_beta2=0.99, ema_max_decay=0.999,
            validation_size=64, checkpointing_steps=1000, validation_steps=500, sample_steps=2000,
            eval_steps=7800, eval_metrics=("fd", "prdc", "modes"), sampler="dpmsolver++",
            ddpm_num_inference_steps=10,
        ),
        "our own, for a few minutes on two CPU cores; docs/recipes.md shows what was tried",
    ),
    "own": Preset(
        dict(
            minutes=10, ddpm_beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
            lr_scheduler="cosine", adam_beta2=0.99, sampler="dpmsolver++", ddpm_num_inference_steps=20,
        ),
        "our own, for pictures of your own: --minutes chooses the rest; docs/recipes.md",
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
            dataset_name="ylecun/mnist", net="unet_28_small", train_batch_size=64, max_train_steps=3000,
            ddpm_beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", learning_rate=2e-3,
            lr_scheduler="cosine", lr_warmup_steps=100, ema_max_decay=0.999, validation_split="test",
            validation_size=512, sampler="dpmsolver++", ddpm_num_inference_steps=20,
        ),
        "our own, for half an hour on one CPU core that multiplies bf16; docs/recipes.md",
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
    "airplanes-16-cpu": Preset(
        dict(
            dataset_name="uoft-cs/cifar10", classes=("airplane",), resolution=16, net="unet_16",
            random_flip=True, train_batch_size=64, max_train_steps=2500,
            ddpm_beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", learning_rate=1e-3,
            lr_scheduler="cosine", lr_warmup_steps=100, ema_max_decay=0.999, sampler="dpmsolver++",
            ddpm_num_inference_steps=20,
        ),
        "our own, for half an hour on one CPU core that multiplies bf16; docs/recipes.md",
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


def build(config: UnconditionalConfig, images, accelerator, total_steps):
    """Gradient descent on the loss of one noise level per image."""
    from trilemma.pipelines.unconditional import UnconditionalPipeline
    from trilemma.training.loop.method import descend
    from trilemma.training.networks.build import make_net
    from trilemma.training.objectives.ddpm import DDPM, output_channels, schedule_of

    net = make_net(config, images, out_channels=output_channels(config.objective, images.channels))
    objective = DDPM(net, schedule_of(config.process), config.objective, UnconditionalPipeline)
    return descend(objective, config, accelerator, total_steps)


FAMILY = Family(
    UnconditionalConfig,
    PRESETS,
    SAMPLERS,
    build,
    can_sample=can_sample,
    inherited=tuple(IN_SCHEDULER),
    complete=choose_by_minutes,
    faster=may_be_faster,
)
