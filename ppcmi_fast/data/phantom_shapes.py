"""Shapes that phantoms are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
