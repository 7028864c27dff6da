"""The network of a variational autoencoder, and what its outputs stand for; shipped with the weights.

Kingma & Welling 2014 (arXiv 1312.6114). An image's code is a vector z, p(z) = N(0, I); the encoder gives the
mean and log variance of q(z | x). The decoder gives each value of each pixel a logistic distribution, with a
location and a log scale of its own, whose mass on the 8-bit bins is p(x | z): the discretised logistic of
Kingma et al. 2016 (arXiv 1606.04934), with the scale predicted as in Salimans et al. 2017 (arXiv 1701.05517).
"""

import math

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn
from torch.nn import functional as F

MIN_LOG_SCALE = -7.0
"""A scale of e^-7 is a ninth of a bin's width: one bin has it all. The bound is Salimans et al.'s."""


class VAEModel(ModelMixin, ConfigMixin):
    """The convolutions of diffusers' `AutoencoderKL`, whose code is a vector instead of a picture.

    Each of `block_out_channels` after the first halves the image, whose side is `sample_size`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        latent_dim: int = 32,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
    ):
        super().__init__()
        levels, factor = len(block_out_channels), 2 ** (len(block_out_channels) - 1)
        if sample_size % factor:
            raise ValueError(
                f"a network of {levels} levels (--vae_channels) takes images whose side (--resolution) is a "
                f"multiple of {factor}; got {sample_size}"
            )
        top = block_out_channels[-1]
        self.top_shape = (top, sample_size // factor, sample_size // factor)
        size = math.prod(self.top_shape)
        options = dict(
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=False,
        )
        self.encoder = Encoder(in_channels, top, ("DownEncoderBlock2D",) * levels, double_z=False, **options)
        self.to_code = nn.Linear(size, 2 * latent_dim)
        self.from_code = nn.Linear(latent_dim, size)
        self.decoder = Decoder(top, 2 * in_channels, ("UpDecoderBlock2D",) * levels, **options)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) in [-1, 1] -> mean and log variance of q(z | x), each (B, latent_dim) float32."""
        mean, log_variance = self.to_code(self.encoder(x.to(self.dtype)).flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)  # as diffusers' AutoencoderKL: exp() stays finite

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, latent_dim) -> location, without bounds but near [-1, 1], and log scale of each value of the
        image, each (B, C, H, W) float32.
        """
        top = self.from_code(z.to(self.dtype)).unflatten(1, self.top_shape)
        location, raw = self.decoder(top).float().chunk(2, dim=1)
        # A maximum would do too, but has no gradient below it.
        return location, MIN_LOG_SCALE + F.softplus(raw - MIN_LOG_SCALE)
