"""Sampling from a variational diffusion model in any number of steps; shipped beside the weights.

Kingma, Salimans, Poole & Ho 2021 (arXiv 2107.00630), section 3.3. The model is a `VDMModel`: its gamma says
how noisy z is at a time in [0, 1], its forward predicts the noise. Time goes from 1 to 0 in steps of equal
length, each a draw of z_s given z_t, s < t, by one of two chains:

    ancestral  p(z_s | z_t) = q(z_s | z_t, x0 = x0_hat(z_t)), equations 32-34
    shortcut   z_s = alpha_s x0_hat(z_t) + sigma_s noise: forget z_t, keep what it says of the image. For few
               steps; the chain of shortcut MCMC (Y. Huang 2022)

The image is z_0 / alpha_0, the most likely value of the 8-bit decoder p(x | z_0) once rounded to its grid.
A class-conditional model may be guided (Ho & Salimans 2022, arXiv 2207.12598, eq. 6; the paper's w is
guidance_scale - 1): either chain then takes eps_unknown + guidance_scale (eps_class - eps_unknown) for eps.
"""

import copy
import math
import numbers
from collections.abc import Callable, Iterable, Sequence

import torch
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from trilemma.pipelines.shared import (
    ImagesOutput,
    ShippedPipeline,
    check_output_type,
    check_sampler,
    exact_device,
    ids_with_null,
    image_shape,
    images_output,
    is_integer,
    kept_steps,
    listed,
    names_by_id,
    read_generators,
)

STEPS = 250


def alpha_sigma(gamma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of gamma (B,) or (), float32, shaped to multiply (B, C, H, W)."""
    alpha, sigma = gamma.neg().sigmoid().sqrt(), gamma.sigmoid().sqrt()
    shape = (-1, *[1] * (like.ndim - 1))
    return tuple(part.float().view(shape).to(like.device) for part in (alpha, sigma))


def denoised(z: Tensor, eps_hat: Tensor, gamma: Tensor) -> Tensor:
    """x0_hat = (z - sigma eps_hat) / alpha; z and eps_hat (B, C, H, W), gamma (B,) or ()."""
    alpha, sigma = alpha_sigma(gamma, z)
    return (z - sigma * eps_hat) / alpha


def ancestral_step(z: Tensor, eps_hat: Tensor, noise: Tensor, gamma_t: Tensor, gamma_s: Tensor) -> Tensor:
    """z_s ~ p(z_s | z_t): all (B, C, H, W), gammas float64 () with gamma_s < gamma_t."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t, z), alpha_sigma(gamma_s, z)
    share = -torch.expm1(gamma_s - gamma_t)  # 1 - SNR(t) / SNR(s), exact where the two are close
    mean = alpha_s / alpha_t * (z - share.float().to(z.device) * sigma_t * eps_hat)
    return mean + sigma_s * share.sqrt().float().to(z.device) * noise


def shortcut_step(z: Tensor, eps_hat: Tensor, noise: Tensor, gamma_t: Tensor, gamma_s: Tensor) -> Tensor:
    """z_s ~ q(z_s | x0_hat(z_t)): the same arguments."""
    alpha_s, sigma_s = alpha_sigma(gamma_s, z)
    return alpha_s * denoised(z, eps_hat, gamma_t) + sigma_s * noise


CHAINS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ancestral": ancestral_step,
    "shortcut": shortcut_step,
}


class VDMPipeline(ShippedPipeline):
    """Noise -> image.

    class_names: one name for each class of a class-conditional model, None for others. `model_index.json`
        keeps it as `{"0": name, ...}`: diffusers takes a list there for a component.
    chain: the chain that is run unless the call names another.
    timesteps: T, where the model was trained on a bound of T steps; None for continuous time. Sampling may
        take any number of steps.
    """

    family = "vdm"
    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: ModelMixin,
        class_names: dict[str, str] | list[str] | tuple[str, ...] | None = None,
        chain: str = "ancestral",
        timesteps: int | None = None,
    ):
        super().__init__()
        _check_chain(chain)
        self.register_modules(unet=unet)
        self.register_to_config(class_names=names_by_id(class_names), chain=chain, timesteps=timesteps)

    @property
    def network(self) -> ModelMixin:
        """The model, which is called at each step."""
        return self.unet

    @property
    def default_guidance(self) -> float | None:
        """1.0, no guidance, for models with classes; None for others, which cannot be guided."""
        return None if self.class_names is None else 1.0

    @property
    def sampler(self) -> str:
        """The name of the chain in use, as --sampler takes it."""
        return self.config.chain

    def samplers(self) -> tuple[str, ...]:
        """The names of the chains."""
        return tuple(CHAINS)

    def with_sampler(self, name: str) -> "VDMPipeline":
        """A copy with another chain; this pipeline stays as it is."""
        check_sampler(self, name)
        other = copy.copy(self)
        other.register_to_config(chain=name)
        return other

    def steps(self, wanted: int | None) -> int:
        """250, the usual number of steps, or `wanted`, which may be any number."""
        steps = STEPS if wanted is None else wanted
        if not is_integer(steps) or steps < 1:
            raise ValueError(f"--num_inference_steps must be an integer of at least 1; got {steps}")
        return steps

    def calls(self, steps: int, guided: bool) -> int:
        """Network evaluations that an image costs."""
        return steps * (1 + guided)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        class_labels: str | int | Iterable[str | int | None] | None = None,
        guidance_scale: float = 1.0,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        chain: str | None = None,
        trajectory: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagesOutput | tuple:
        """Generate images.

        batch_size: the number of images; follows from `seeds` or a list of labels if they are given.
        class_labels: names, ids in 0..K-1, or None for an image of unknown class; one for all images or one
            for each. Only for models with classes.
        guidance_scale: diffusers' scale, 1 + w of Ho & Salimans; for models with classes. At 1 the network is
            not called with the unknown class at all; 0 is the unconditional model.
        seeds: one for each image. All its noise is drawn from it, on the CPU: a seed stands for one image
            on any device, in any batch and on any number of processes.
        generator: in place of seeds, one for all images or a list with one for each, as in diffusers.
        num_inference_steps: any number, 250 by default.
        chain: ancestral or shortcut; the pipeline's own by default.
        trajectory: how many states to keep, evenly spaced from the noise to the image.
        output_type: pil, np or pt.
        """
        check_output_type(output_type)
        steps = self.steps(num_inference_steps)
        step = CHAINS[_check_chain(chain or self.config.chain)]
        class_labels = listed(class_labels)
        generator, batch_size = read_generators(batch_size, seeds, generator, class_labels)
        kept = kept_steps(trajectory, steps)

        config, device = self.unet.config, self._execution_device
        labels = ids_with_null(class_labels, batch_size, self.class_names, self._execution_device)
        guided = self._guided(guidance_scale, labels)
        shape = image_shape(config, batch_size)
        options = dict(generator=generator, device=device, dtype=torch.float32)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=exact_device(device))
        gamma = self.unet.gamma(times)
        z = randn_tensor(shape, **options)
        states = []
        for i in self.progress_bar(range(steps)):
            if i in kept:
                states.append(z)
            eps_hat = self._eps_hat(z, gamma[i], labels, guided, guidance_scale)
            z = step(z, eps_hat, randn_tensor(shape, **options), gamma[i], gamma[i + 1])
        image = z / alpha_sigma(gamma[-1], z)[0]
        self.maybe_free_model_hooks()
        return images_output(image, states, output_type, return_dict)

    def _guided(self, scale: float, labels: Tensor | None) -> list[int]:
        """The images that guidance changes: at a scale of 1 none, and none of unknown class."""
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale must be a finite number; got {scale!r}")
        if scale == 1:
            return []
        if labels is None:
            raise ValueError(f"guidance_scale must be 1 for a model that has no classes; got {scale}")
        return [i for i, label in enumerate(labels.tolist()) if label != len(self.class_names)]

    def _eps_hat(
        self, z: Tensor, gamma: Tensor, labels: Tensor | None, guided: list[int], scale: float
    ) -> Tensor:
        """The noise in z (B, C, H, W) at gamma (); both outputs of the `guided` images in one call."""
        if not guided:
            return self.unet(z, gamma.expand(len(z)), labels)
        unknown = labels.new_full((len(guided),), len(self.class_names))
        both = torch.cat([z, z[guided]]), gamma.expand(len(z) + len(guided)), torch.cat([labels, unknown])
        eps_hat, unconditional = self.unet(*both).split([len(z), len(guided)])
        eps_hat[guided] = unconditional + scale * (eps_hat[guided] - unconditional)
        return eps_hat


def _check_chain(chain: str) -> str:
    if chain not in CHAINS:
        raise ValueError(f"chain must be one of {', '.join(CHAINS)}; got {chain!r}")
    return chain
