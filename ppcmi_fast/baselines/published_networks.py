"""The networks of PPCMI-SF as its paper describes them (arXiv 2603.05541), scaled by a width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (16, 32, 64, 128, 256)
LATENT_STAGES = (2, 3, 4)  # strides 8, 16 and 32
MAPPING = (128, 256, 512, 512, 1024)
BINS = (1, 3, 5, 7)

Latents = dict[int, Tensor]


def scaled(channels: int, width: float) -> int:
    """Channels at a width, at least 4."""
    return max(4, round(channels * width))


def _stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Autoencoder(nn.Module):
    """Five stride-2 stages; latents at strides 8, 16 and 32, the finer two as skips of a bilinear decoder.

    Args:
        channels: of the picture: 1 of an image, one a foreground class of a mask.
        width: fraction of the published channels.
        skips: without, the coarsest latent is the only one.
    """

    def __init__(self, channels: int, width: float, *, skips: bool = True) -> None:
        super().__init__()
        self._widths = widths = [scaled(c, width) for c in STAGES]
        inputs = [channels, *widths[:-1]]
        self.down = nn.ModuleList(_stage(i, o, 2) for i, o in zip(inputs, widths, strict=True))
        self.kept = LATENT_STAGES if skips else LATENT_STAGES[-1:]
        joined = [widths[n] if n in self.kept and n < 4 else 0 for n in range(5)]
        self.up = nn.ModuleList(_stage(widths[n + 1] + joined[n], widths[n]) for n in range(4))
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)

    @property
    def latent_dims(self) -> dict[int, int]:
        """Stride -> channels."""
        return {2 ** (n + 1): self._widths[n] for n in self.kept}

    def encode(self, x: Tensor) -> Latents:
        """[N, channels, H, W] -> {stride: [N, C, H / stride, W / stride]}."""
        latents = {}
        for number, stage in enumerate(self.down):
            x = stage(x)
            if number in self.kept:
                latents[2 ** (number + 1)] = x
        return latents

    def decode(self, latents: Latents) -> Tensor:
        """Latents -> logits [N, channels, H, W]."""
        x = latents[32]
        for number in reversed(range(4)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            skip = latents.get(2 ** (number + 1))
            x = self.up[number](x if skip is None else torch.cat([x, skip], 1))
        out: Tensor = self.last(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the picture rebuilt."""
        return self.decode(self.encode(x))


class PyramidPooling(nn.Module):
    """Means over 1, 3, 5 and 7 bins a side, each by a 1x1 convolution, beside the features (Zhao et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // len(BINS)
        self.branches = nn.ModuleList(nn.Conv2d(channels, part, 1) for _ in BINS)
        self.join = nn.Conv2d(channels + part * len(BINS), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        views = [
            F.interpolate(
                branch(F.adaptive_avg_pool2d(x, bins)), size=x.shape[2:], mode="bilinear", align_corners=False
            )
            for bins, branch in zip(BINS, self.branches, strict=True)
        ]
        out: Tensor = self.join(torch.cat([x, *views], 1))
        return out


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2, inplace=True), nn.BatchNorm2d(outputs)
    )


class MappingBlock(nn.Module):
    """Image latents of one scale to mask latents: down by three poolings, pyramid pooling, up again.

    Grids that cannot be halved further stay as they are.

    Args:
        inputs, outputs: channels of the latents.
        width: fraction of the published channels.
        pyramid: without, the deepest features go up as they are.
    """

    def __init__(self, inputs: int, outputs: int, width: float, *, pyramid: bool = True) -> None:
        super().__init__()
        a, b, c, d, e = (scaled(channels, width) for channels in MAPPING)
        self.down = nn.ModuleList([_block(inputs, a), _block(a, b), _block(b, c)])
        self.deep = nn.Sequential(_block(c, d), _block(d, e))
        self.pyramid: nn.Module = PyramidPooling(e) if pyramid else nn.Identity()
        self.up = nn.ModuleList([_block(e, d), _block(d, b), _block(b, a)])
        self.last = nn.Conv2d(a, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]."""
        sizes = []
        for block in self.down:
            x = block(x)
            sizes.append(x.shape[2:])
            x = F.max_pool2d(x, 2, ceil_mode=True)
        x = self.pyramid(self.deep(x))
        for block, size in zip(self.up, reversed(sizes), strict=True):
            x = block(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        out: Tensor = self.last(x)
        return out


class Mapping(nn.Module):
    """A mapping block a scale."""

    def __init__(
        self, inputs: dict[int, int], outputs: dict[int, int], width: float, *, pyramid: bool = True
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(
            {str(s): MappingBlock(inputs[s], outputs[s], width, pyramid=pyramid) for s in inputs}
        )

    def forward(self, latents: Latents) -> Latents:
        """Image latents by stride -> mask latents by stride."""
        return {scale: self.blocks[str(scale)](z) for scale, z in latents.items()}
