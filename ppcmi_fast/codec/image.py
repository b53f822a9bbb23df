"""The image codec: an image becomes unit-RMS latents at several strides, from which it can be rebuilt."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ppcmi_fast.codec.layers import conv_norm, residual_blocks
from ppcmi_fast.codec.mask import LatentDecoder, check_scales, unit_rms


class ImageCodec(nn.Module):
    """Skip-connected multi-scale autoencoder (paper section III, with unit-RMS latents).

    Args:
        scales: strides of the latents, ascending powers of two.
        channels: latent channels per stride.
        width: channels of the first stage (stride 2), doubled at every stride up to 8 x.
        blocks: residual blocks a stage.
    """

    def __init__(
        self,
        scales: tuple[int, ...] = (4, 8, 16),
        channels: tuple[int, ...] = (16, 32, 64),
        width: int = 24,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        check_scales(scales, channels)
        self.scales, self.channels = tuple(scales), tuple(channels)
        depth = int(math.log2(scales[-1]))
        widths = [width * min(8, 2**i) for i in range(depth)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                conv_norm(1 if i == 0 else widths[i - 1], widths[i], stride=2),
                residual_blocks(widths[i], 1 if i == 0 else blocks),
            )
            for i in range(depth)
        )
        self.to_latent = nn.ModuleDict(
            {
                str(s): nn.Conv2d(widths[int(math.log2(s)) - 1], c, 1)
                for s, c in zip(scales, channels, strict=True)
            }
        )
        self.decoder = LatentDecoder(self.scales, self.channels, max(8, width // 2), 1)

    @property
    def encoder(self) -> nn.Module:
        """What `encode` uses, sharing its weights; not the decoder."""
        return nn.ModuleList([self.stages, self.to_latent])

    @property
    def latent_dims(self) -> dict[int, int]:
        """Stride -> channels of the latent."""
        return dict(zip(self.scales, self.channels, strict=True))

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """[N, 1, H, W] float32 in 0..1 -> {stride: [N, channels, H/stride, W/stride]}, unit RMS over channels.

        Raises:
            ValueError: `images` has another rank or channel count, or H or W no multiple of the coarsest stride.
        """
        coarsest = self.scales[-1]
        if (
            images.ndim != 4
            or images.shape[1] != 1
            or images.shape[2] % coarsest
            or images.shape[3] % coarsest
        ):
            raise ValueError(
                f"images: expected [N, 1, H, W] with H and W multiples of {coarsest}, got {list(images.shape)};"
                " resize them"
            )
        x = images * 2 - 1
        latents = {}
        for level, stage in enumerate(self.stages):
            x = stage(x)
            stride = 2 ** (level + 1)
            if stride in self.scales:
                latents[stride] = unit_rms(self.to_latent[str(stride)](x))
        return latents

    def decode(self, latents: dict[int, Tensor]) -> Tensor:
        """Latents -> images [N, 1, H, W], about 0..1."""
        out: Tensor = self.decoder(latents)
        return (out + 1) / 2
