"""What phantoms share: shapes, textures, and what the device of a site does to an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.float64]


def elliptic_radius(
    y: Pixels, x: Pixels, centre: tuple[float, float], radii: tuple[float, float], angle: float
) -> Pixels:
    """Below 1 inside an ellipse; `centre` and `radii` are (y, x), `angle` turns the ellipse in radians."""
    v, u = y - centre[0], x - centre[1]
    a = (u * np.cos(angle) + v * np.sin(angle)) / radii[1]
    b = (-u * np.sin(angle) + v * np.cos(angle)) / radii[0]
    radius: Pixels = np.hypot(a, b)
    return radius


def draw_scanner(seed: int, site: int) -> dict[str, float]:
    """The domain shift of a site, as factors around 1: "gain", "noise", "blur" and "anatomy"."""
    shift = np.random.default_rng([seed, site, 1 << 20])
    return {
        "gain": shift.uniform(0.8, 1.25),
        "noise": shift.uniform(0.7, 1.5),
        "blur": shift.uniform(0.45, 1.0),
        "anatomy": shift.uniform(0.88, 1.14),
    }


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float | tuple[float, ...]
) -> Pixels:
    """Gaussian noise of unit variance with a correlation length of `sigma` samples."""
    field = gaussian_filter(rng.normal(size=shape), sigma)
    result: Pixels = field / max(float(field.std()), 1e-9)
    return result


def soft_step(distance: Pixels, width: float) -> Pixels:
    """1 where `distance` is well below 0, 0 well above, a smooth edge of about `width` between."""
    result: Pixels = 0.5 - 0.5 * np.tanh(distance / width)
    return result


def speckle(
    rng: np.random.Generator,
    decibels: Pixels,
    spread: tuple[float, float],
    later: np.random.Generator | None = None,
    moved: float = 0.0,
) -> Pixels:
    """Envelope in decibels of a scattering field with this mean echogenicity (Rayleigh statistics).

    Args:
        rng: places the scatterers.
        decibels: echogenicity, depth along the first axis.
        spread: width of the pulse and of the beam in samples (standard deviations).
        later: places those that have moved since the clip began.
        moved: their share.

    Returns:
        As `decibels`.
    """
    amplitude = 10 ** (decibels / 20)
    parts = []
    for _ in range(2):
        scatterers = rng.normal(size=decibels.shape)
        if later is not None:
            scatterers = np.sqrt(1 - moved) * scatterers + np.sqrt(moved) * later.normal(size=decibels.shape)
        parts.append(gaussian_filter(scatterers * amplitude, spread))
    envelope = np.hypot(*parts) * np.sqrt(2 * np.pi * spread[0] * spread[1] * 2)
    result: Pixels = 20 * np.log10(envelope + 1e-5)
    return result


def receive(
    rng: np.random.Generator, image: Pixels, shading: tuple[float, float], scanner: dict[str, float]
) -> Pixels:
    """A slice as a surface coil and magnitude reconstruction show it: blur, shading, gain, Rician noise."""
    size = max(image.shape)
    y, x = ((np.arange(n) + 0.5) / n for n in image.shape)
    image = gaussian_filter(image, scanner["blur"] * size / 128)
    image = image * np.clip(1.15 + shading[0] * (x[None] - 0.5) - shading[1] * (y[:, None] - 0.35), 0.25, 1.8)
    image = image * scanner["gain"]
    sigma = 0.028 * scanner["noise"]
    noisy: Pixels = np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape))
    return noisy
