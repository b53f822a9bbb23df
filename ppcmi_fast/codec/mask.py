"""Mask codecs: what a class map becomes before it is protected.

The server cannot decode, so it trains on squared error between codes. Squared error predicts a conditional mean.
`LinearMaskCodec` is linear in the one-hot mask, so that mean decodes to the class probabilities (and the squared
error is a Brier score); the mean of `MaskAutoencoder`'s codes (the paper's, section III) has no such meaning.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppcmi_fast.codec.layers import conv_norm, residual_blocks
from ppcmi_fast.labels import check_labels

AUTOENCODER_SCALES = (8, 16)
# Of a block's mean and of all other frequencies, before a code is protected. The mean has most of a code's energy, not
# most of what makes an answer right: in a code of few bits the others would be lost.
MASK_WEIGHTS = (0.7, 1.75)


def one_hot_foreground(masks: Tensor, classes: int) -> Tensor:
    """[N, H, W] int64 in 0..classes-1 -> [N, classes-1, H, W] float32 of 0 and 1, the background left out."""
    if masks.ndim != 3 or masks.dtype != torch.int64:
        raise ValueError(
            f"masks: expected [N, H, W] int64, got {list(masks.shape)} {masks.dtype}; use masks.long()"
        )
    check_labels("masks", masks, classes)
    values = torch.arange(1, classes, device=masks.device).view(1, -1, 1, 1)
    return (masks.unsqueeze(1) == values).float()


def dct_basis(block: int, rank: int) -> Tensor:
    """The `rank` lowest frequencies of the orthonormal 2-D DCT-II on block x block pixels, [rank, block^2]."""
    position = torch.arange(block, dtype=torch.float64)
    rows = torch.cos(math.pi / block * (position[None, :] + 0.5) * position[:, None]) * math.sqrt(2 / block)
    rows[0] /= math.sqrt(2)
    frequencies = [(i, j) for i in range(block) for j in range(block)]
    frequencies.sort(key=lambda ij: (ij[0] ** 2 + ij[1] ** 2, max(ij), ij))
    return torch.stack([torch.outer(rows[i], rows[j]).reshape(-1) for i, j in frequencies[:rank]]).float()


class LinearMaskCodec(nn.Module):
    """One-hot foreground as +1 / -1, projected block by block on the lowest DCT frequencies.

    A block of one class has unit RMS in code space, so that after mixing its entries match the N(0, 1) codebooks; what
    is mixed may be weighted before (`entry_weights`).
    The basis is fixed: nothing is fitted, hence nothing about any site's masks can leak through it.

    Args:
        classes: classes including the background, at least 2.
        block: block edge in pixels, the stride of the code's grid.
        rank: frequencies kept per class; block^2 keeps all.
    """

    basis: Tensor

    def __init__(self, classes: int, block: int = 8, rank: int = 16) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes: expected at least 2 (background and one more), got {classes}")
        if not 1 <= rank <= block * block:
            raise ValueError(f"rank: expected 1..{block * block} for block={block}, got {rank}")
        self.classes, self.block, self.rank = classes, block, rank
        self.gain = math.sqrt(rank) / block
        self.register_buffer("basis", dct_basis(block, rank), persistent=False)

    @property
    def latent_dims(self) -> dict[int, int]:
        """Stride -> channels of the code."""
        return {self.block: (self.classes - 1) * self.rank}

    def entry_weights(self, mean: float, details: float) -> dict[int, Tensor]:
        """A factor for each entry, {block: [1, (classes-1)*rank, 1, 1]}: for means, and for all other frequencies."""
        weights = torch.full((self.rank,), float(details))
        weights[0] = mean
        return {self.block: weights.repeat(self.classes - 1).view(1, -1, 1, 1)}

    def encode(self, masks: Tensor) -> dict[int, Tensor]:
        """[N, H, W] int64 -> {block: [N, (classes-1)*rank, H/block, W/block] float32}.

        Raises:
            ValueError: shape, dtype or values of `masks`, or H or W no multiple of `block`.
        """
        height, width = masks.shape[-2:]
        if height % self.block or width % self.block:
            raise ValueError(
                f"masks: expected H and W that {self.block} divides, got {height}x{width}; resize them"
            )
        return {self.block: self.project(one_hot_foreground(masks, self.classes) * 2 - 1)}

    def project(self, signs: Tensor) -> Tensor:
        """[N, classes-1, H, W] float32, +1 in a class and -1 out of it or between them -> the code of it."""
        weight = (self.basis * self.gain).view(self.rank, 1, self.block, self.block)
        return F.conv2d(
            signs, weight.repeat(self.classes - 1, 1, 1, 1), stride=self.block, groups=self.classes - 1
        )

    def decode(self, latents: dict[int, Tensor]) -> Tensor:
        """Codes -> class scores [N, classes, H, W] float32, the estimated probabilities; argmax is the class map."""
        code = latents[self.block]
        weight = (self.basis / self.gain).view(self.rank, 1, self.block, self.block)
        signs = F.conv_transpose2d(
            code, weight.repeat(self.classes - 1, 1, 1, 1), stride=self.block, groups=self.classes - 1
        )
        foreground = (signs + 1) / 2
        return torch.cat([1 - foreground.sum(1, keepdim=True), foreground], dim=1)


class MaskAutoencoder(nn.Module):
    """The paper's nonlinear mask codec: a skip-connected convolutional autoencoder with one latent per stride.

    Args:
        classes: classes including the background.
        scales: strides of the latents, powers of two, ascending.
        channels: latent channels per stride.
        width: channels at the first stage, doubled at every stride up to 8 x.
    """

    def __init__(
        self,
        classes: int,
        scales: tuple[int, ...] = AUTOENCODER_SCALES,
        channels: tuple[int, ...] = (16, 32),
        width: int = 16,
    ) -> None:
        super().__init__()
        check_scales(scales, channels)
        self.classes, self.scales, self.channels = classes, scales, channels
        depth = int(math.log2(scales[-1]))
        widths = [width * min(8, 2**i) for i in range(depth)]
        self.down = nn.ModuleList(
            conv_norm(classes - 1 if i == 0 else widths[i - 1], widths[i], stride=2) for i in range(depth)
        )
        self.to_latent = nn.ModuleDict(
            {
                str(s): nn.Conv2d(widths[int(math.log2(s)) - 1], c, 1)
                for s, c in zip(scales, channels, strict=True)
            }
        )
        self.decoder = LatentDecoder(scales, channels, width, classes)

    @property
    def latent_dims(self) -> dict[int, int]:
        """Stride -> channels of the latent."""
        return dict(zip(self.scales, self.channels, strict=True))

    def entry_weights(self, mean: float, details: float) -> dict[int, Tensor]:
        """As `LinearMaskCodec`'s, {stride: [1, channels, 1, 1]}; all are 1, for there are no frequencies here."""
        return {scale: torch.ones(1, dim, 1, 1) for scale, dim in self.latent_dims.items()}

    def encode(self, masks: Tensor) -> dict[int, Tensor]:
        """[N, H, W] int64 -> {stride: [N, channels, H/stride, W/stride]}, unit RMS over channels."""
        x = one_hot_foreground(masks, self.classes)
        latents = {}
        for level, stage in enumerate(self.down):
            x = stage(x)
            if 2 ** (level + 1) in self.scales:
                latents[2 ** (level + 1)] = unit_rms(self.to_latent[str(2 ** (level + 1))](x))
        return latents

    def decode(self, latents: dict[int, Tensor]) -> Tensor:
        """Latents -> class logits [N, classes, H, W]."""
        logits: Tensor = self.decoder(latents)
        return logits


class LatentDecoder(nn.Module):
    """Multi-scale latents -> [N, outputs, H, W]: from the coarsest stride up, finer scales joined as skips.

    The finest stage has no block of its own: it costs as much as all the others and sharpens nothing a mask needs.
    """

    def __init__(self, scales: tuple[int, ...], channels: tuple[int, ...], width: int, outputs: int) -> None:
        super().__init__()
        self.scales = scales
        self.depth = int(math.log2(scales[-1]))
        widths = [width * min(8, 2**i) for i in range(self.depth)]
        self.read = nn.ModuleDict(
            {
                str(s): nn.Conv2d(c, widths[int(math.log2(s)) - 1], 1)
                for s, c in zip(scales, channels, strict=True)
            }
        )
        self.stages = nn.ModuleList(residual_blocks(widths[i], 1 if i else 0) for i in range(self.depth))
        self.up = nn.ModuleList(nn.Conv2d(widths[i], widths[max(i - 1, 0)], 1) for i in range(self.depth))
        self.out = nn.Conv2d(widths[0], outputs, 3, padding=1)

    def forward(self, latents: dict[int, Tensor]) -> Tensor:
        """Decode; `latents` maps stride to [N, C, H/stride, W/stride]."""
        x: Tensor | None = None
        for level in reversed(range(self.depth)):
            stride = 2 ** (level + 1)
            if stride in self.scales:
                skip = self.read[str(stride)](latents[stride])
                x = skip if x is None else x + skip
            assert x is not None
            x = F.interpolate(
                self.up[level](self.stages[level](x)), scale_factor=2.0, mode="bilinear", align_corners=False
            )
        out: Tensor = self.out(x)
        return out


def unit_rms(x: Tensor) -> Tensor:
    """Divide each position's channel vector by its RMS; [N, C, H, W] -> the same."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-12)


def check_scales(scales: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """Raise ValueError unless scales are ascending powers of two from 2 on, with one channel count each."""
    powers = all(s >= 2 and s & (s - 1) == 0 for s in scales)
    if not scales or not powers or list(scales) != sorted(set(scales)):
        raise ValueError(f"scales: expected ascending powers of two from 2 on, got {scales}")
    if len(channels) != len(scales) or min(channels) < 1:
        raise ValueError(f"channels: expected {len(scales)} positive numbers, one a scale, got {channels}")
