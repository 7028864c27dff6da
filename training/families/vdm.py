"""The groups of options that one family alone has, in the form of `training/options/groups.py`."""

from dataclasses import dataclass
from typing import Literal

from trilemma.training.options.flags import option
from trilemma.training.options.groups import LogConfig, OptimConfig


@dataclass(frozen=True)
class ProcessConfig:
    """How images are noised."""

    ddpm_num_steps: int = option(1000, "T, the number of noise levels", low=1)
    ddpm_beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = option(
        "linear", "how the noise grows"
    )
    beta_start: float | None = option(
        None, "first beta, taken as it is; 1e-4 * 1000 / T if not given", low=0.0,
        needs=("ddpm_beta_schedule", ("linear", "scaled_linear", "sigmoid")),
    )  # fmt: skip
    beta_end: float | None = option(
        None, "last beta, taken as it is; 0.02 * 1000 / T if not given", low=0.0,
        needs=("ddpm_beta_schedule", ("linear", "scaled_linear", "sigmoid")),
    )  # fmt: skip


@dataclass(frozen=True)
class DDPMConfig:
    """What the network predicts and how wrong predictions are counted."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = option(
        "epsilon", "what the network predicts"
    )
    loss_type: Literal["l2", "l1", "huber", "mmd", "hybrid", "vlb"] = option(
        "l2", "distance between prediction and target; hybrid and vlb learn the variance too"
    )
    huber_delta: float = option(1.0, "where Huber turns linear", low=0.0, needs=("loss_type", ("huber",)))
    snr_gamma: float | None = option(None, "min-SNR weighting with this gamma (5 in the paper)", low=0.0)
    p2_gamma: float | None = option(None, "P2 weighting with this gamma (1 in the paper)", low=0.0)
    p2_k: float = option(1.0, "k of the P2 weighting", low=0.0, needs=("p2_gamma", ...))
    variance_type: Literal["fixed_small", "fixed_large"] = option(
        "fixed_large", "variance of the ancestral sampler", needs=("loss_type", ("l2", "l1", "huber", "mmd"))
    )

    def __post_init__(self):
        if self.snr_gamma is not None and self.p2_gamma is not None:
            raise ValueError("--snr_gamma and --p2_gamma are two weightings of one loss; give one of them")
        if self.loss_type not in ("l2", "hybrid") and (self.snr_gamma or self.p2_gamma):
            raise ValueError(f"--snr_gamma and --p2_gamma have no effect on --loss_type {self.loss_type}")


@dataclass(frozen=True)
class GuidanceConfig:
    """Classifier-free guidance."""

    p_uncond: float = option(0.1, "chance that an image is trained on without its label", low=0)

    def __post_init__(self):
        if self.p_uncond > 1:
            raise ValueError(f"--p_uncond must be in 0..1; got {self.p_uncond}")


@dataclass(frozen=True)
class DDGANConfig:
    """The few-step process of the denoising-diffusion GAN, its discriminator, and when a run has failed."""

    ddpm_num_steps: Literal[2, 4, 8] = option(4, "T, the number of denoising steps")
    beta_min: float = option(0.1, "noise rate at the start of the VP process", low=0.0)
    beta_max: float = option(20.0, "noise rate at its end", low=0.0)
    class_conditional: bool = option(False, "make images of a wanted class; the data must have labels")
    discriminator_channels: tuple[int, ...] = option(
        (128, 256, 512, 512), "channels of the discriminator's blocks, the first at full size"
    )
    discriminator_steps: int = option(1, "turns of the discriminator for each of the generator's", low=1)
    discriminator_learning_rate: float = option(1.25e-4, "peak learning rate of the discriminator", low=0.0)
    r1_gamma: float = option(0.02, "gamma / 2 weighs R1, the penalty on the discriminator's gradient", low=0)
    r1_interval: int = option(15, "steps between penalised ones", low=1, needs=("r1_gamma", ...))
    watchdog_steps: int = option(
        100, "steps between looks for the signs of a collapsed run; 0 for none", free=True, low=0
    )

    def __post_init__(self):
        if self.beta_max <= self.beta_min:
            raise ValueError(f"--beta_max must be above --beta_min; got {self.beta_min}..{self.beta_max}")
        widths = self.discriminator_channels
        if widths[0] < 4 or min(widths) < 1:
            raise ValueError(
                f"--discriminator_channels must be positive, and the first at least 4, which embeds t; got "
                f"{' '.join(map(str, widths))}"
            )


@dataclass(frozen=True)
class GANOptimConfig(OptimConfig):
    """Batches, and Adam of the generator; the discriminator's differs in its rate alone."""

    train_batch_size: int = option(256, "images per process; a multiple of 4", low=1)
    gradient_accumulation_steps: int = option(1, "not offered: the networks take turns on every batch", low=1)
    learning_rate: float = option(1.6e-4, "peak learning rate of the generator", low=0.0)
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = option(
        "cosine", "learning rates over optimizer steps"
    )
    lr_warmup_steps: int = option(0, "optimizer steps of warm-up", low=0)
    adam_beta1: float = option(0.5, "Adam's first decay", low=0)
    adam_beta2: float = option(0.9, "Adam's second decay", low=0)
    max_grad_norm: float = option(0.0, "gradients are clipped to this norm; 0 for no clipping", low=0)

    def __post_init__(self):
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                "--gradient_accumulation_steps is not offered: the generator learns against a discriminator "
                "that has just been updated on the same batch. Take a smaller --train_batch_size, or more "
                "processes"
            )
        if self.train_batch_size % 4:
            raise ValueError(
                f"--train_batch_size must be a multiple of 4, the group of the minibatch deviation; "
                f"got {self.train_batch_size}"
            )


@dataclass(frozen=True)
class FewStepLogConfig(LogConfig):
    """What is logged and drawn: T steps of the only sampler there is."""

    sampler: Literal["ddpm"] = option("ddpm", "the posterior; there is no other", free=True)
    ddpm_num_inference_steps: int | None = option(None, "T; there is no choice", free=True, low=1)


@dataclass(frozen=True)
class VAEConfig:
    """The variational autoencoder: its network, and how the two terms of its bound are weighed."""

    latent_dim: int = option(32, "numbers in the code of an image", low=1)
    vae_channels: tuple[int, ...] = option(
        (32, 64, 64), "channels of the levels, multiples of 8; each level after the first halves the image"
    )
    beta: float = option(1.0, "weight of the KL divergence of codes from the prior; 1 for the bound", low=0)
    free_bits: float = option(
        0.0, "nats of each latent dimension that the divergence does not count", low=0, needs=("beta", ...)
    )

    def __post_init__(self):
        wrong = [width for width in self.vae_channels if width < 8 or width % 8]
        if wrong:
            raise ValueError(f"--vae_channels must be multiples of 8, for the group norm; got {wrong[0]}")


@dataclass(frozen=True)
class DecoderLogConfig(LogConfig):
    """What is logged and drawn: one call of the decoder, the only sampler there is."""

    sampler: Literal["decoder"] = option("decoder", "the decoder; there is no other", free=True)
    ddpm_num_inference_steps: Literal[1] | None = option(None, "1; there is no choice", free=True)


MAX_FOURIER = 16
"""2^16 periods across the values of a pixel, of which 8 bits tell 2^7 apart."""


@dataclass(frozen=True)
class VDMConfig:
    """The variational diffusion model: its noise schedule, its bound, and shortcut MCMC beside it."""

    vdm_timesteps: int = option(0, "T of the bound; 0 for continuous time, infinitely many steps", low=0)
    gamma: Literal["linear", "learned_linear", "monotone", "monotone_fixed_ends"] = option(
        "learned_linear",
        "gamma = -log SNR over time: a line, a line with learned ends, or a monotone network",
    )
    gamma_min: float = option(-13.3, "gamma at time 0, at the start of training if it is learned")
    gamma_max: float = option(5.0, "gamma at time 1, at the start of training if it is learned")
    fourier_features: tuple[int, ...] | None = option(
        None, "n of the features sin and cos of 2^n pi z that the network sees beside z; 6 7 in the paper"
    )
    class_conditional: bool = option(False, "make images of a wanted class; the data must have labels")
    p_uncond: float = option(
        0.1, "chance that an image is trained on as of unknown class", low=0,
        needs=("class_conditional", (True,)),
    )  # fmt: skip
    shortcut_steps: int = option(
        0, "K of the shortcut chain that is trained beside the bound; 0 for none", low=0,
        needs=("vdm_timesteps", ...),
    )  # fmt: skip
    fidelity_weight: float = option(
        1.0, "weight of the chain's squared error", low=0.0, needs=("shortcut_steps", ...)
    )

    def __post_init__(self):
        wrong = [n for n in self.fourier_features or () if not 0 <= n <= MAX_FOURIER]
        if wrong:
            raise ValueError(f"--fourier_features must be in 0..{MAX_FOURIER}; got {wrong[0]}")
        if self.gamma_max <= self.gamma_min:
            raise ValueError(f"--gamma_max must be above --gamma_min; got {self.gamma_min}..{self.gamma_max}")
        if self.p_uncond > 1:
            raise ValueError(f"--p_uncond must be in 0..1; got {self.p_uncond}")
        if self.shortcut_steps > self.vdm_timesteps:
            raise ValueError(
                f"--shortcut_steps are drawn from the --vdm_timesteps {self.vdm_timesteps} of a bound in "
                f"steps and cannot be more; got {self.shortcut_steps}"
            )


@dataclass(frozen=True)
class VDMOptimConfig(OptimConfig):
    """Batches, AdamW and the learning rate, as the paper has them for CIFAR-10."""

    adam_beta2: float = option(0.99, "Adam's second decay", low=0)
    adam_weight_decay: float = option(0.01, "decoupled weight decay", low=0)


@dataclass(frozen=True)
class ChainLogConfig(LogConfig):
    """What is logged and drawn: a chain of any number of steps."""

    sampler: Literal["ancestral", "shortcut"] = option(
        "ancestral", "chain of sheets and of evaluation during training", free=True
    )
    ddpm_num_inference_steps: int | None = option(
        None, "steps of that chain; 250 if not given", free=True, low=1
    )
