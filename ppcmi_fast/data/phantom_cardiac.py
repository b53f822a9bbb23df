"""Short-axis cine MRI.

Chest wall, lungs, liver, right ventricle, myocardium, bright cavity with papillary muscles; coil shading and Rician
noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppcmi_fast.data.phantom_shapes import Pixels, elliptic_radius, receive, smooth_noise

# Steady-state free precession at 1.5 T, relative: blood and fat bright, muscle grey, lung nearly nothing.
BLOOD, FAT, LIVER, MUSCLE, VESSEL, LUNG = 0.86, 0.95, 0.42, 0.30, 0.62, 0.06


@dataclass(frozen=True)
class Heart:
    """One subject's anatomy; lengths as fractions of the field of view."""

    centre: tuple[float, float]
    cavity: float
    wall: float
    squeeze: float
    angle: float
    wobble: NDArray[np.float64]
    right: float
    chest: tuple[float, float]
    shading: tuple[float, float]


def draw_heart(rng: np.random.Generator, anatomy: float) -> Heart:
    """Draw a subject."""
    return Heart(
        centre=(rng.uniform(0.44, 0.56), rng.uniform(0.46, 0.58)),
        cavity=anatomy * rng.uniform(0.062, 0.1),
        wall=anatomy * rng.uniform(0.024, 0.042),
        squeeze=rng.uniform(0.84, 1.0),
        angle=rng.uniform(-0.9, 0.9),
        wobble=rng.normal(0, [0.03, 0.02, 0.012, 0.008]),
        right=rng.uniform(0.75, 1.15),
        chest=(rng.uniform(0.36, 0.41), rng.uniform(0.43, 0.48)),
        shading=(rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.8)),
    )


def _texture(rng: np.random.Generator, size: int, grain: float) -> Pixels:
    return smooth_noise(rng, (size, size), grain * size / 128)


def _tissue(rng: np.random.Generator, heart: Heart, y: Pixels, x: Pixels) -> Pixels:
    size = y.shape[0]
    image = np.full(y.shape, 0.02)
    body = elliptic_radius(y, x, (0.5, 0.5), heart.chest, 0.0)
    image[body < 1] = FAT
    image[body < 0.93] = MUSCLE
    image[body < 0.84] = LUNG
    vessels = _texture(rng, size, 1.4)
    image[(body < 0.84) & (vessels > 2.1)] = 0.3
    mediastinum = elliptic_radius(
        y, x, (heart.centre[0] + 0.02, heart.centre[1] - 0.05), (0.2, 0.22), heart.angle
    )
    image[mediastinum < 1] = 0.35
    image[(mediastinum < 1) & (mediastinum > 0.9)] = FAT * 0.9
    liver = elliptic_radius(y, x, (heart.centre[0] + 0.27, heart.centre[1] - 0.2), (0.13, 0.26), -0.2)
    image[(liver < 1) & (body < 0.84)] = LIVER
    stomach = elliptic_radius(y, x, (heart.centre[0] + 0.26, heart.centre[1] + 0.16), (0.1, 0.13), 0.3)
    image[(stomach < 1) & (body < 0.84)] = 0.22
    spine = elliptic_radius(y, x, (0.5 + heart.chest[0] * 0.72, 0.5), (0.06, 0.06), 0.0)
    image[spine < 1] = VESSEL
    aorta = elliptic_radius(y, x, (0.5 + heart.chest[0] * 0.5, 0.57), (0.026, 0.026), 0.0)
    image[aorta < 1] = BLOOD
    return image


def cardiac_slice(
    rng: np.random.Generator, heart: Heart, scanner: dict[str, float], level: float, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One slice, `level` 0 (base) to 1 (apex): uint8 image and mask [size, size], mask 1 = cavity."""
    grid = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(grid, grid, indexing="ij")
    image = _tissue(rng, heart, y, x)
    shrink = np.sqrt(max(1 - (0.92 * level) ** 2, 0.1))
    cavity = heart.cavity * shrink * rng.uniform(0.8, 1.15)
    theta = np.arctan2(y - heart.centre[0], x - heart.centre[1])
    bumps = sum(w * np.cos((k + 2) * theta + 2.1 * k) for k, w in enumerate(heart.wobble))
    radius = elliptic_radius(y, x, heart.centre, (1.0, heart.squeeze), heart.angle) / (1 + bumps)
    outer = cavity + heart.wall * (0.8 + 0.4 * shrink)
    side = heart.angle + np.pi + rng.uniform(-0.15, 0.15)
    right_centre = (
        heart.centre[0] + 0.75 * outer * np.sin(side),
        heart.centre[1] + 0.75 * outer * np.cos(side),
    )
    right = elliptic_radius(y, x, right_centre, (outer * 1.25 * heart.right, outer * heart.right), side)
    image[right < 1.12] = MUSCLE
    image[right < 1] = BLOOD * 0.95
    image[radius < outer] = MUSCLE * 0.85
    image[radius < cavity] = BLOOD
    mask = (radius < cavity).astype(np.uint8)
    for turn in (0.6, 2.4):
        angle = heart.angle + turn + rng.uniform(-0.3, 0.3)
        place = (
            heart.centre[0] + 0.66 * cavity * np.sin(angle),
            heart.centre[1] + 0.66 * cavity * np.cos(angle),
        )
        muscle = elliptic_radius(y, x, place, (0.2 * cavity, 0.2 * cavity), 0.0)
        # Papillary muscles count as cavity, as the annotators of cine data draw it.
        image[(muscle < 1) & (level < 0.75)] = MUSCLE * 1.2
    image += 0.025 * _texture(rng, size, 1.2) * (image > 0.1)
    noisy = receive(rng, image, heart.shading, scanner)
    return (np.clip(noisy / 1.5, 0, 1) * 255).astype(np.uint8), mask
