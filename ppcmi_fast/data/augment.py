"""Augmentation of a batch by modality, the same for every method of a comparison."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.errors import ConfigError

MODALITIES = ("general", "ultrasound", "mri", "ct")

ROTATION_DEGREES = 20.0
SCALE = (0.85, 1.2)
SHIFT = 0.08


@lru_cache(maxsize=len(MODALITIES))
def _greys(modality: str) -> Any:
    """What may happen to the grey values [1, H, W] of one image, as MONAI's transforms."""
    try:
        from monai import transforms as monai
    except ImportError as error:
        raise ConfigError('augment: MONAI is missing; cure: pip install "ppcmi-fast[train]"') from error
    gamma = monai.RandAdjustContrast(prob=0.5, gamma=(0.7, 1.4))
    gain = monai.RandScaleIntensity(prob=0.5, factors=0.2)
    offset = monai.RandShiftIntensity(prob=0.5, offsets=0.1)
    blur = monai.RandGaussianSmooth(prob=0.25, sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0))
    noise = monai.RandGaussianNoise(prob=0.5, std=0.05)
    # A smooth field multiplies: a coil's reach in MRI, time gain and shadows in ultrasound.
    field = monai.RandBiasField(prob=0.4, degree=2, coeff_range=(0.0, 0.25))
    steps = {
        "general": [gamma, gain, offset, noise],
        # Speckle multiplies, but is additive in pictures, which are compressed by a logarithm.
        "ultrasound": [gamma, offset, field, blur, monai.RandGaussianNoise(prob=0.5, std=0.08)],
        "mri": [gamma, gain, field, blur, monai.RandRicianNoise(prob=0.5, std=0.05)],
        # Contrast agent and window move levels; kernels blur and sharpen; a gamma has no cause in Hounsfield units.
        "ct": [gain, offset, blur, monai.RandGaussianSharpen(prob=0.25, alpha=(1.0, 3.0)), noise],
    }[modality]
    return monai.Compose([*steps, monai.ToTensor(track_meta=False)])


def sampling_grid(angle: Tensor, zoom: Tensor, shift_x: Tensor, shift_y: Tensor, shape: list[int]) -> Tensor:
    """Where `grid_sample` finds what a turn, a zoom and a shift move to each position of square images.

    Args:
        angle: float [N], radians.
        zoom: float [N], how much larger things become.
        shift_x: float [N], share of half an edge.
        shift_y: the same, down.
        shape: of the images, [N, C, S, S].

    Returns:
        Float [N, S, S, 2].
    """
    # A quotient by the zoom rounds otherwise, and trainings of before would not come out again.
    shrink = 1 / zoom
    cosine, sine = angle.cos() * shrink, angle.sin() * shrink
    matrix = torch.stack(
        [torch.stack([cosine, -sine, shift_x], 1), torch.stack([sine, cosine, shift_y], 1)], 1
    )
    return F.affine_grid(matrix, shape, align_corners=False)


def _moved(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every image and its mask rotated, scaled and shifted by its own draw."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle = uniform(-ROTATION_DEGREES, ROTATION_DEGREES) * (math.pi / 180)
    zoom = uniform(*SCALE)
    shift_x, shift_y = uniform(-2 * SHIFT, 2 * SHIFT), uniform(-2 * SHIFT, 2 * SHIFT)
    # MONAI moves one image at a time, at several times the cost of the rest.
    grid = sampling_grid(angle, zoom, shift_x, shift_y, list(images.shape))
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    labels = F.grid_sample(masks.unsqueeze(1).float(), grid, mode="nearest", align_corners=False)
    return moved.clamp(0, 1), labels.squeeze(1).round().long()


def augment(
    images: Tensor, masks: Tensor, generator: torch.Generator, modality: str = "general"
) -> tuple[Tensor, Tensor]:
    """Rotate, scale and shift, then change the grey values as this modality's images differ among scanners.

    No flips: anatomy has sides.

    Args:
        images: float32 [N, 1, H, W] in 0..1.
        masks: int64 [N, H, W].
        generator: fixes the draw.
        modality: one of MODALITIES.

    Returns:
        Images and masks of the same shapes; images may leave 0..1 a little.

    Raises:
        ConfigError: MONAI is not installed.
        ValueError: an unknown modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality: expected one of {', '.join(MODALITIES)}, got {modality!r}")
    moved, labels = _moved(images, masks, generator)
    greys = _greys(modality)
    greys.set_random_state(int(torch.randint(2**31, (), generator=generator)))
    return torch.stack([greys(image) for image in moved]), labels


def augmented_batch(data: Arrays, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What every network of a comparison trains on: images drawn with repetition, augmented as their modality asks.

    Args:
        data: what to draw from, at least one image.
        batch: images to draw.
        generator: fixes the draw.

    Returns:
        Images float32 [batch, 1, H, W] and masks int64 [batch, H, W].

    Raises:
        ConfigError: MONAI is not installed.
    """
    index = torch.randint(len(data.images), (batch,), generator=generator)
    return augment(data.images[index], data.masks[index], generator, data.modality)
