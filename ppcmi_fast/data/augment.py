"""Augmentation of a batch, the same for every method of a comparison."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION_DEGREES = 20.0
SCALE = (0.85, 1.2)
SHIFT = 0.08
GAMMA = (0.7, 1.4)
CONTRAST = (0.8, 1.2)
BRIGHTNESS = 0.1
NOISE = 0.05


def augment(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate, scale, shift, then change gamma, contrast, brightness and add noise; every image its own draw.

    No flips: anatomy has sides.

    Args:
        images: float32 [N, 1, H, W] in 0..1.
        masks: int64 [N, H, W].
        generator: fixes the draw.

    Returns:
        Images and masks of the same shapes; images may leave 0..1 a little.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle = uniform(-ROTATION_DEGREES, ROTATION_DEGREES) * (math.pi / 180)
    zoom = 1 / uniform(*SCALE)
    shift_x, shift_y = uniform(-2 * SHIFT, 2 * SHIFT), uniform(-2 * SHIFT, 2 * SHIFT)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    matrix = torch.stack(
        [torch.stack([cosine, -sine, shift_x], 1), torch.stack([sine, cosine, shift_y], 1)], 1
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    labels = F.grid_sample(masks.unsqueeze(1).float(), grid, mode="nearest", align_corners=False)
    per_image = (-1, 1, 1, 1)
    moved = moved.clamp(0, 1) ** uniform(*GAMMA).view(per_image)
    moved = (
        (moved - 0.5) * uniform(*CONTRAST).view(per_image)
        + 0.5
        + uniform(-BRIGHTNESS, BRIGHTNESS).view(per_image)
    )
    noise = torch.randn(images.shape, generator=generator) * uniform(0, NOISE).view(per_image)
    return moved + noise, labels.squeeze(1).round().long()
