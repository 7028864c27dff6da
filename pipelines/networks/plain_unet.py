"""The ablation's plain U-Net, called as stock networks are: `net(x_t, t, class_labels).sample` with x_t
(B, C, H, W) and t (B,) in diffusers' 0..T-1.
"""

from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class NoShortcut(nn.Module):
    """In the place of a residual block's shortcut: zero, so that the block has no residual connection."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class PlainUNet2DModel(ModelMixin, ConfigMixin):
    """A U-Net without residual connections and attention, with or without group norm (`normalize`).

    The stock `UNet2DModel` with those parts taken out, so that these rows of the ablation differ from the
    others in nothing else. The concatenated skips between the two halves, which make it a U-Net, stay.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownBlock2D",) * 3,
        up_block_types: tuple[str, ...] = ("UpBlock2D",) * 3,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 2,
        norm_num_groups: int = 8,
        norm_eps: float = 1e-6,
        downsample_padding: int = 0,
        flip_sin_to_cos: bool = False,
        freq_shift: int = 1,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        normalize: bool = True,
    ):
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            downsample_padding=downsample_padding,
            flip_sin_to_cos=flip_sin_to_cos,
            freq_shift=freq_shift,
            dropout=dropout,
            num_class_embeds=num_class_embeds,
            add_attention=False,
        )
        for block in [module for module in self.unet.modules() if isinstance(module, ResnetBlock2D)]:
            block.conv_shortcut = NoShortcut()
            if not normalize:
                block.norm1, block.norm2 = nn.Identity(), nn.Identity()
        if not normalize:
            self.unet.conv_norm_out = nn.Identity()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """sample (B, C, H, W), timestep (B,) or one for all, class_labels (B,) -> (B, out_channels, H, W)."""
        return self.unet(sample, timestep, class_labels, return_dict=return_dict)
