"""Variational diffusion: network and noise schedule learn one bound on the likelihood, in bits per dimension.

Kingma, Salimans, Poole & Ho 2021 (arXiv 2107.00630), with time continuous (T = infinity) or in T steps; the
terms are those of `training/diffusion/variational.py`. Optionally, the fidelity of shortcut MCMC
(Y. Huang 2022) is trained as well.
"""

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.pipelines.networks.vdm_model import VDMModel, exact
from trilemma.pipelines.shared import exact_device
from trilemma.pipelines.vdm import VDMPipeline, alpha_sigma, denoised, shortcut_step
from trilemma.training.devices.compiled import compiled_forward
from trilemma.training.diffusion.label_dropout import LabelDropout
from trilemma.training.diffusion.losses import mean_per_example
from trilemma.training.diffusion.process import normal_like
from trilemma.training.diffusion.variational import (
    Levels,
    Reach,
    diffusion_bpd,
    levels_at,
    prior_bpd,
    reconstruction_bpd,
)
from trilemma.training.families.vdm import VDMConfig
from trilemma.training.loop.method import Logs, Objective
from trilemma.training.networks.build import build_network


class VDM(Objective):
    """The bound of a `VDMModel`, one time per image.

    class_names: of a class-conditional model, one for each class, or None for a model without classes.
    """

    passes = ("denoise",)

    def __init__(self, net: VDMModel, config: VDMConfig, class_names: tuple[str, ...] | None = None):
        super().__init__()
        self.net, self.denoise, self.class_names = net, net.forward, class_names
        self.timesteps = config.vdm_timesteps or None
        self.shortcut_steps, self.fidelity_weight = config.shortcut_steps, config.fidelity_weight
        self.num_classes = len(class_names) if class_names else None
        self.condition = LabelDropout(len(class_names), config.p_uncond) if class_names else None
        self.reach = Reach()

    def forward(
        self, x0: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Logs]:
        """Losses (B,) in bits per dimension for x0 (B, C, H, W) in [-1, 1], plus a weighted fidelity if any;
        logs the bound, its three terms and the ends of gamma.
        """
        labels = self.condition(labels) if self.condition else None
        start, end = self.net.gamma.ends()
        time = _spread_times(len(x0), x0.device, generator)
        levels = levels_at(self.net.gamma, time, self.timesteps)
        noise = normal_like(x0, generator)
        alpha, sigma = alpha_sigma(levels.gamma, x0)
        eps_hat = self.denoise(alpha * x0 + sigma * noise, levels.gamma, labels)
        diffusion = diffusion_bpd(noise, eps_hat, levels.weight)
        _lessen_variance(levels, diffusion.detach())
        prior = prior_bpd(x0, end).float().to(x0.device)
        far = self.reach(start) if self.training else None
        reconstruction = reconstruction_bpd(x0, normal_like(x0, generator), start, far)
        losses = diffusion + prior + reconstruction
        logs: Logs = {
            "bpd": losses.detach(),
            "diffusion_bpd": diffusion.detach(),
            "prior_bpd": prior.detach(),
            "reconstruction_bpd": reconstruction.detach(),
            "gamma_0": start.detach().float().to(x0.device),
            "gamma_1": end.detach().float().to(x0.device),
        }
        if self.shortcut_steps:
            fidelity = self.fidelity(x0, labels, generator)
            losses = losses + self.fidelity_weight * fidelity
            logs["fidelity"] = fidelity.detach()
        return losses, logs

    def fidelity(self, x0: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """||x0 - x0_hat||^2 per dimension, averaged over the steps of a shortcut chain, (B,).

        K of the T steps are drawn; the chain starts from q(z | x0) at the noisiest and goes down through
        them as sampling does, each x0_hat being made from the state that the one before led to. The
        gradient flows back through the whole chain, so that an early step learns what it spoils later. It is
        the network's alone: gamma learns from the bound, whose meaning this term would take from it.
        """
        device = x0.device if generator is None else generator.device
        order = torch.randperm(self.timesteps, generator=generator, device=device)[: self.shortcut_steps] + 1
        times = exact(order.to(x0.device).sort(descending=True).values) / self.timesteps
        gamma = self.net.gamma(times).detach()
        alpha, sigma = alpha_sigma(gamma[0], x0)
        z = alpha * x0 + sigma * normal_like(x0, generator)
        errors = []
        for k in range(len(gamma)):
            eps_hat = self.denoise(z, gamma[k].expand(len(x0)), labels)
            errors.append(mean_per_example((x0 - denoised(z, eps_hat, gamma[k])).square()))
            if k + 1 < len(gamma):
                z = shortcut_step(z, eps_hat, normal_like(x0, generator), gamma[k], gamma[k + 1])
        return torch.stack(errors).mean(0)

    def pipeline(self, net: VDMModel) -> DiffusionPipeline:
        """A pipeline that samples from `net`, by the shortcut chain if it was trained for it."""
        chain = "shortcut" if self.shortcut_steps else "ancestral"
        return VDMPipeline(net, self.class_names, chain=chain, timesteps=self.timesteps)

    def compile(self, required: bool = True) -> None:
        """Compile the forward pass alone: `net` stays as it is for sampling and saving."""
        self.denoise = compiled_forward(self.net.forward, required)


def _lessen_variance(levels: Levels, diffusion: Tensor) -> None:
    """Let the shape of gamma minimise the variance of the diffusion loss (B,), in place of its mean.

    In continuous time the mean is the same for all shapes with the same ends (paper, section 5.1): its
    gradient is noise, while the variance over times depends on the shape (appendix I.2). With the mean
    fixed, the least variance is the least mean square, whose gradient is that of the mean with each example's
    part times twice its loss. All that an example's loss knows of the shape passes through two numbers, value
    and slope at the example's time, so the gradients of these are multiplied on their way back; those of the
    ends and of the network go elsewhere and stay as they are. So one backward does for both aims, under
    accumulation, scaling and several processes alike.
    """
    for part in levels.of_shape:
        if part.requires_grad:
            part.register_hook(lambda gradient: gradient * 2 * exact(diffusion))


def build_vdm(
    row: dict[str, Any],
    config: VDMConfig,
    *,
    channels: int,
    resolution: int,
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    dropout: float | None = None,
) -> VDMModel:
    """A VDMModel around the network of a row of `NETS`, or of a VDMModel's own configuration.

    The other arguments are `build_network`'s; the output has the images' channels whatever `out_channels`.
    """
    features = config.fourier_features or ()
    net = build_network(
        row.get("network", row),
        channels=channels * (1 + 2 * len(features)),
        resolution=resolution,
        out_channels=channels,
        num_class_embeds=num_class_embeds,
        dropout=dropout,
    )
    of_data = ("sample_size", "in_channels", "out_channels", "num_class_embeds")
    options = {name: value for name, value in net.config.items() if name[0] != "_" and name not in of_data}
    model = VDMModel(
        {"_class_name": type(net).__name__, **options},
        sample_size=resolution,
        in_channels=channels,
        num_class_embeds=num_class_embeds,
        gamma_type=config.gamma,
        gamma_min=config.gamma_min,
        gamma_max=config.gamma_max,
        fourier_features=features,
    )
    model.net.load_state_dict(net.state_dict())
    return model


def _spread_times(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Times in [0, 1), float64 (count,), each uniform and together evenly spread (paper, appendix I.1)."""
    device = exact_device(device)
    where = device if generator is None else generator.device
    first = torch.rand(1, generator=generator, device=where, dtype=torch.float64)
    return ((first + torch.arange(count, device=where) / count) % 1).to(device)
