"""Ultrasound of a limb by a linear probe.

Layered tissue, a honeycomb nerve, a vessel with enhancement behind it; fully developed speckle from a complex field,
attenuation, log compression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ppcmi_fast.data.phantom_shapes import Pixels, elliptic_radius, speckle

DYNAMIC_RANGE_DB = 54.0


@dataclass(frozen=True)
class Limb:
    """One subject's anatomy; lengths as fractions of the picture."""

    skin: float
    fat: float
    fascia: tuple[float, ...]
    tilt: float
    nerve: tuple[float, float, float, float, float]
    vessel: tuple[float, float, float, float]
    fibre_angle: float


def draw_limb(rng: np.random.Generator, anatomy: float) -> Limb:
    """Draw a subject; nerve and vessel lie side by side, as in most blocks."""
    depth, side = rng.uniform(0.4, 0.62), rng.choice([-1.0, 1.0])
    middle = rng.uniform(0.42, 0.58)
    vessel_radius = anatomy * rng.uniform(0.06, 0.1)
    nerve_radius = anatomy * rng.uniform(0.075, 0.12)
    gap = vessel_radius + nerve_radius + rng.uniform(0.01, 0.06)
    return Limb(
        skin=rng.uniform(0.03, 0.05),
        fat=rng.uniform(0.12, 0.2),
        fascia=tuple(np.sort(rng.uniform(0.24, 0.9, 4))),
        tilt=rng.uniform(-0.12, 0.12),
        nerve=(
            depth + rng.uniform(-0.04, 0.04),
            middle + side * gap / 2,
            nerve_radius * rng.uniform(0.55, 0.9),
            nerve_radius,
            rng.uniform(-0.4, 0.4),
        ),
        vessel=(
            depth + rng.uniform(-0.06, 0.06),
            middle - side * gap / 2,
            vessel_radius * rng.uniform(0.75, 1.0),
            vessel_radius,
        ),
        fibre_angle=rng.uniform(-0.25, 0.25),
    )


def fibres(rng: np.random.Generator, y: Pixels, x: Pixels, angle: float) -> Pixels:
    """Echogenicity of muscle in decibels: dark, with bright streaks along the fibres; y, x in widths of the picture."""
    rows, size = y.shape
    field = gaussian_filter(rng.normal(size=y.shape), (size / 128, 9 * size / 128))
    streaks = field / max(float(field.std()), 1e-9)
    at = np.clip(((y + np.tan(angle) * (x - 0.5)) * size).astype(int), 0, rows - 1)
    along: Pixels = streaks[at, np.arange(size)[None, :]]
    return -27.0 + 6.5 * np.clip(along, -1.0, 2.5)


def _honeycomb(
    rng: np.random.Generator, y: Pixels, x: Pixels, centre: tuple[float, float], radii: tuple[float, float]
) -> Pixels:
    """Echogenicity inside a nerve in decibels: dark fascicles in a bright sheath."""
    pitch = max(radii) / 2.6
    level = np.full(y.shape, -6.0)
    offsets = np.arange(-4, 5)
    for row in offsets:
        for column in offsets:
            place = (
                centre[0] + pitch * 0.87 * row + rng.normal(0, 0.08 * pitch),
                centre[1] + pitch * (column + 0.5 * (row % 2)) + rng.normal(0, 0.08 * pitch),
            )
            level[np.hypot(y - place[0], x - place[1]) < pitch * 0.4] = -24.0
    return level


def _speckle(rng: np.random.Generator, decibels: Pixels, blur: float) -> Pixels:
    """Envelope in decibels of a scattering field with this mean echogenicity (Rayleigh statistics)."""
    size = decibels.shape[1]
    return speckle(rng, decibels, (0.55 * blur * size / 128 + 0.25, 1.1 * blur * size / 128 + 0.25))


def show(rng: np.random.Generator, decibels: Pixels, scanner: dict[str, float]) -> NDArray[np.uint8]:
    """Echogenicity, attenuation included, as a linear probe shows it: speckle, gain, noise, log compression."""
    image = _speckle(rng, decibels, scanner["blur"])
    image += 10 * np.log10(scanner["gain"]) + rng.normal(0, 0.6 * scanner["noise"], image.shape)
    shown = np.clip((image + DYNAMIC_RANGE_DB - 8) / DYNAMIC_RANGE_DB, 0, 1)
    return (shown * 255).astype(np.uint8)


def ultrasound_frame(
    rng: np.random.Generator, limb: Limb, scanner: dict[str, float], level: float, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One frame as the probe slides (`level` 0..1): uint8 image and mask [size, size], 1 = nerve, 2 = vessel."""
    grid = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(grid, grid, indexing="ij")
    slide = 0.08 * (level - 0.5)
    depth = y + limb.tilt * (x - 0.5)
    decibels = fibres(rng, y, x, limb.fibre_angle)
    decibels[depth < limb.fat] = -21.0
    septa = np.sin(2 * np.pi * (depth * 34 + 1.5 * np.sin(9 * x + 40 * level)))
    decibels[(depth < limb.fat) & (septa > 0.86)] = -8.0
    decibels[depth < limb.skin] = -6.0
    for at in limb.fascia:
        line = depth - at - 0.012 * np.sin(7 * x + 11 * at)
        decibels[np.abs(line) < 0.007] = -4.0
    mask = np.zeros(y.shape, dtype=np.uint8)
    ny, nx, nh, nw, angle = limb.nerve
    nerve = elliptic_radius(y, x, (ny, nx + slide), (nh, nw), angle)
    comb = _honeycomb(rng, y, x, (ny, nx + slide), (nh, nw))
    decibels[nerve < 1.1] = -4.0
    decibels[nerve < 0.95] = comb[nerve < 0.95]
    mask[nerve < 1] = 1
    vy, vx, vh, vw = limb.vessel
    pulse = rng.uniform(0.9, 1.08)
    vessel = elliptic_radius(y, x, (vy, vx - slide / 2), (vh * pulse, vw), 0.0)
    decibels[vessel < 1.12] = -7.0
    decibels[vessel < 1] = -44.0
    mask[vessel < 1] = 2
    behind = (np.abs(x - vx + slide / 2) < 0.85 * vw) & (y > vy)
    attenuation = -20.0 * y * scanner["noise"] + gaussian_filter(
        np.where(behind & (vessel > 1), 7.0, 0.0), size / 64
    )
    return show(rng, decibels + attenuation, scanner), mask
