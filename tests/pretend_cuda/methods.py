"""Tiny methods of every family, for any device: what a test trains, samples and measures."""

import copy
from collections.abc import Callable

import torch
from accelerate import Accelerator

from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.pipelines.networks.vae_model import VAEModel
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.diffusion.few_steps import latent_row
from trilemma.training.diffusion.label_dropout import LabelDropout
from trilemma.training.families.consistency import ConsistencyConfig
from trilemma.training.families.ddgan import DDGANConfig, GANOptimConfig
from trilemma.training.families.flow import FlowConfig
from trilemma.training.families.vae import VAEConfig
from trilemma.training.families.vdm import VDMConfig
from trilemma.training.loop.method import GradientDescent, Method, Objective
from trilemma.training.networks.build import build_network
from trilemma.training.networks.discriminator import Discriminator
from trilemma.training.objectives.consistency import Consistency, Teacher, Tuning
from trilemma.training.objectives.ddgan import DDGAN
from trilemma.training.objectives.ddpm import DDPM, output_channels, schedule_of
from trilemma.training.objectives.flow import Flow
from trilemma.training.objectives.vae import VAE
from trilemma.training.objectives.vdm import VDM, build_vdm
from trilemma.training.options.ddpm import DDPMConfig, ProcessConfig
from trilemma.training.options.groups import OptimConfig

NET = {
    "_class_name": "UNet2DModel", "block_out_channels": (16, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, "dropout": 0.1,
}  # fmt: skip
CHANNELS, SIDE, BATCH = 3, 8, 8
CLASSES = tuple("abcdefghij")
OPTIM = {"train_batch_size": BATCH, "lr_warmup_steps": 0}

Build = Callable[[Accelerator], Method]


def _ddpm(loss: str = "l2", classes: bool = False, **options) -> Objective:
    config = DDPMConfig(loss_type=loss, **options)
    net = build_network(
        NET,
        channels=CHANNELS,
        resolution=SIDE,
        out_channels=output_channels(config, CHANNELS),
        num_class_embeds=len(CLASSES) + 1 if classes else None,
    )
    if not classes:
        return DDPM(net, schedule_of(ProcessConfig()), config, UnconditionalPipeline)
    return DDPM(
        net,
        schedule_of(ProcessConfig()),
        config,
        lambda net, scheduler: ClassConditionalPipeline(net, scheduler, CLASSES),
        LabelDropout(len(CLASSES), 0.1),
    )


def _vdm(classes: bool = False, **options) -> Objective:
    config = VDMConfig(class_conditional=classes, **options)
    rows = len(CLASSES) + 1 if classes else None
    net = build_vdm(NET, config, channels=CHANNELS, resolution=SIDE, num_class_embeds=rows)
    return VDM(net, config, CLASSES if classes else None)


def _flow(classes: bool = False, **options) -> Objective:
    config = FlowConfig(class_conditional=classes, **options)
    rows = len(CLASSES) + 1 if classes else None
    net = build_network(NET, channels=CHANNELS, resolution=SIDE, num_class_embeds=rows)
    return Flow(net, config, CLASSES if classes else None)


def _tuning(classes: bool = False, flow: bool = False, **options) -> Build:
    """Distillation from a network with the same weights, as a diffusion model's or as a flow's."""

    def build(accelerator: Accelerator) -> Method:
        config = ConsistencyConfig(
            class_conditional=classes, distil=True, stages=4, stage_steps=1, denoising_steps=0, **options
        )
        rows, names = (len(CLASSES) + 1, CLASSES) if classes else (None, None)
        net = build_network(NET, channels=CHANNELS, resolution=SIDE, num_class_embeds=rows)
        teacher = Teacher(copy.deepcopy(net).to(accelerator.device).eval(), is_flow=flow)
        condition = LabelDropout(len(CLASSES), 0.1) if classes else None
        made = Consistency(net, schedule_of(ProcessConfig()), config, condition, names, teacher)
        return Tuning(made.to(accelerator.device), accelerator, OptimConfig(**OPTIM), 100)

    return build


def _vae() -> Objective:
    net = VAEModel(sample_size=SIDE, in_channels=CHANNELS, latent_dim=8, block_out_channels=(16, 16))
    return VAE(net, VAEConfig(free_bits=0.1))


def _descent(objective: Callable[..., Objective], *arguments, **options) -> Build:
    def build(accelerator: Accelerator) -> Method:
        made = objective(*arguments, **options).to(accelerator.device)
        return GradientDescent(made, accelerator, OptimConfig(**OPTIM), 100)

    return build


def _gan(classes: bool = False, steps: int = 1) -> Build:
    def build(accelerator: Accelerator) -> Method:
        config = DDGANConfig(
            class_conditional=classes, r1_interval=2, discriminator_steps=steps, watchdog_steps=1000
        )
        net = build_network(latent_row(NET), channels=CHANNELS, resolution=SIDE)
        judge = Discriminator(CHANNELS, SIDE, (16, 16), len(CLASSES) if classes else 0)
        net, judge = net.to(accelerator.device), judge.to(accelerator.device)
        optim = GANOptimConfig(**OPTIM)
        return DDGAN(net, judge, accelerator, config, optim, 100, CLASSES if classes else None)

    return build


METHODS: dict[str, Build] = {
    "unconditional": _descent(_ddpm),
    "unconditional mmd": _descent(_ddpm, "mmd"),
    "unconditional hybrid": _descent(_ddpm, "hybrid"),
    "unconditional vlb": _descent(_ddpm, "vlb"),
    "unconditional min-SNR": _descent(_ddpm, prediction_type="v_prediction", snr_gamma=5.0),
    "class-conditional": _descent(_ddpm, classes=True),
    "vae": _descent(_vae),
    "vdm": _descent(_vdm, gamma="learned_linear"),
    "vdm monotone": _descent(_vdm, gamma="monotone", fourier_features=(3, 4)),
    "vdm of T steps": _descent(_vdm, classes=True, vdm_timesteps=200),
    "vdm shortcut": _descent(_vdm, vdm_timesteps=200, shortcut_steps=5),
    "flow": _descent(_flow, time_density="logit_normal"),
    "flow with classes": _descent(_flow, classes=True),
    "consistency with guidance": _tuning(classes=True, guidance_scale=2.0),
    "consistency from a flow": _tuning(flow=True),
    "ddgan": _gan(),
    "ddgan with classes": _gan(classes=True, steps=2),
}


def batch(device: torch.device, count: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [-1, 1] on the 8-bit grid, and their labels."""
    levels = torch.randint(256, (count, CHANNELS, SIDE, SIDE), generator=torch.Generator().manual_seed(7))
    return (levels / 127.5 - 1).to(device), (torch.arange(count) % len(CLASSES)).to(device)
