"""Solids that phantoms of volumes are made of; places are (z, y, x) in mm towards the head, the back and the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Voxels = NDArray[np.float32]
Place = tuple[float, float, float]


@dataclass(frozen=True)
class Grid:
    """Voxels of a volume around its middle.

    Attributes:
        shape: [slices, rows, columns].
        spacing: mm between slices, rows and columns.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @cached_property
    def axes(self) -> tuple[Voxels, Voxels, Voxels]:
        """Millimetres along z, y and x, ready to be broadcast against each other."""
        z, y, x = (
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step in zip(self.shape, self.spacing, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, slice, slice]:
        """The voxels between two corners."""
        sides = []
        for n, step, a, b in zip(self.shape, self.spacing, low, high, strict=True):
            middle = (n - 1) / 2
            first, last = int(np.floor(a / step + middle)), int(np.ceil(b / step + middle)) + 1
            sides.append(slice(min(max(first, 0), n), min(max(last, 0), n)))
        return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class Tube:
    """A straight piece of a vessel that tapers, with round ends."""

    start: Place
    end: Place
    start_radius: float
    end_radius: float

    def at(self, share: float) -> Place:
        """A place on its axis, 0 at the start and 1 at the end."""
        z, y, x = (a + share * (b - a) for a, b in zip(self.start, self.end, strict=True))
        return z, y, x

    def radius_at(self, share: float) -> float:
        """Its radius there."""
        return self.start_radius + share * (self.end_radius - self.start_radius)


def fill_tube(share: Voxels, grid: Grid, tube: Tube) -> None:
    """Raise `share`, the part of each voxel that is filled, by a tube; edges are as wide as a voxel."""
    start, end = np.array(tube.start), np.array(tube.end)
    reach = max(tube.start_radius, tube.end_radius) + max(grid.spacing[1:])
    where = grid.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
    if 0 in share[where].shape:
        return
    z, y, x = (
        axis[tuple(side if axis.shape[i] > 1 else slice(None) for i, side in enumerate(where))]
        for axis in grid.axes
    )
    along = end - start
    length = max(float(along @ along), 1e-6)
    t = ((z - start[0]) * along[0] + (y - start[1]) * along[1] + (x - start[2]) * along[2]) / length
    t = np.clip(t, 0, 1)
    distance = np.sqrt(
        (z - start[0] - t * along[0]) ** 2
        + (y - start[1] - t * along[1]) ** 2
        + (x - start[2] - t * along[2]) ** 2
    )
    radius = tube.start_radius + t * (tube.end_radius - tube.start_radius)
    filled = np.clip(0.5 + (radius - distance) / grid.spacing[2], 0, 1).astype(np.float32)
    share[where] = np.maximum(share[where], filled)


def ellipsoid(grid: Grid, centre: Place, radii: Place, turn: float = 0.0) -> Voxels:
    """Below 1 inside; `turn` in radians turns it in the axial plane from the left towards the back."""
    z, y, x = grid.axes
    v, u = y - centre[1], x - centre[2]
    a = (u * np.cos(turn) + v * np.sin(turn)) / radii[2]
    b = (-u * np.sin(turn) + v * np.cos(turn)) / radii[1]
    radius: Voxels = np.sqrt(a**2 + b**2 + ((z - centre[0]) / radii[0]) ** 2).astype(np.float32)
    return radius


def body_depth(grid: Grid, radii: tuple[float, float]) -> Voxels:
    """Millimetres below the skin of a chest, negative outside, [1, rows, columns]: the same in every slice."""
    _, y, x = grid.axes
    theta = np.arctan2(y, x)
    # A chest is rounder than a box and squarer than an ellipse.
    level = (np.abs(y / radii[0]) ** 2.6 + np.abs(x / radii[1]) ** 2.6) ** (1 / 2.6)
    level = level / (1 - 0.02 * np.sin(theta) + 0.012 * np.sin(3 * theta))
    depth: Voxels = ((1 - level) * (radii[0] + radii[1]) / 2).astype(np.float32)
    return depth


def rib_shadow(grid: Grid, depth: Voxels, at: float) -> NDArray[np.bool_]:
    """Where ribs are: slanted bands `at` mm below the skin."""
    z, y, x = grid.axes
    theta = np.arctan2(y, np.abs(x))
    bands = np.sin(2 * np.pi * (z + 26 * theta) / 26) > 0.1
    ribs: NDArray[np.bool_] = bands & (np.abs(depth - at) < 4.5) & (np.abs(x) > 18)
    return ribs
