"""Distances between the surfaces of two masks, in two and three dimensions, with a spacing for each axis.

Two discretizations of a surface are in use and both are here. The boundary pixels of a mask are those with a neighbour
outside along an axis; HD95 and ASD count each once. The surface elements are the cells between pixel centres that a
surface passes through, each with the length (2D) or area (3D) of its piece; the area-weighted measures use them, since
on anisotropic grids a pixel of a flat face stands for another area than one of a steep face.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ppcmi_fast.errors import ConfigError

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

PERCENTILE = 95
# Spacing comes as float32: ten pixels of 0.2 mm must lie within a tolerance of 2 mm.
ROUNDING = 1e-6


def missing_extra(name: str) -> ConfigError:
    """The error for a library of the extra `train` that is not installed."""
    return ConfigError(f'metrics: {name} is missing; cure: pip install "ppcmi-fast[train]"')


def crop_to_both(pred: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Both masks cut to the box that holds them, with one pixel of background around it."""
    either = pred | truth
    box = []
    for axis in range(either.ndim):
        others = tuple(other for other in range(either.ndim) if other != axis)
        found = np.flatnonzero(either.any(axis=others))
        box.append(slice(found[0], found[-1] + 1))
    return np.pad(pred[tuple(box)], 1), np.pad(truth[tuple(box)], 1)


def boundary_pixels(mask: Mask) -> npt.NDArray[np.intp]:
    """Indices [K, D] of the pixels in the mask that have a neighbour outside; the mask has a margin of background."""
    core = mask.copy()
    for axis in range(mask.ndim):
        core &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return np.argwhere(mask & ~core)


@lru_cache(maxsize=1024)
def element_sizes(spacing: tuple[float, ...]) -> Floats:
    """Length (2D) or area (3D) of the surface in a cell, by the code of its corners; float64 [2 ** (2 ** D)]."""
    try:
        from monai.metrics.utils import get_code_to_measure_table
    except ImportError as error:
        raise missing_extra("MONAI") from error
    table: Floats = get_code_to_measure_table(spacing)[0].double().numpy()
    return table


def surface_elements(mask: Mask, spacing: tuple[float, ...]) -> tuple[npt.NDArray[np.intp], Floats]:
    """Cells [K, D] that the surface passes through and the size of its piece in each, float64 [K].

    A cell lies between 2 ** D pixel centres; the mask has a margin of background.
    """
    corners = list(itertools.product((slice(None, -1), slice(1, None)), repeat=mask.ndim))
    # The first corner is the highest bit, as the table of sizes has it.
    code = np.zeros([n - 1 for n in mask.shape], dtype=np.uint8)
    for corner in corners:
        code = np.bitwise_or(code << 1, mask[corner], dtype=np.uint8)
    everywhere = 2 ** len(corners) - 1
    crossed = (code != 0) & (code != everywhere)
    return np.argwhere(crossed), element_sizes(spacing)[code[crossed]]


def nearest(points: npt.NDArray[np.intp], others: npt.NDArray[np.intp], spacing: tuple[float, ...]) -> Floats:
    """Distance from each point to the nearest of the others, float64 [K]; indices [K, D] and [L, D] in."""
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise missing_extra("SciPy") from error
    scale = np.asarray(spacing)
    found: Floats = cKDTree(others * scale).query(points * scale)[0]
    return found


def weighted_percentile(values: Floats, weights: Floats, percent: float) -> float:
    """The smallest value that, with all below it, has `percent` of the weight."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    position = int(np.searchsorted(reached, reached[-1] * percent / 100))
    return float(values[order][min(position, len(values) - 1)])


@dataclass(frozen=True)
class SurfaceDistances:
    """What lies between two surfaces, in the unit of the spacing.

    Attributes:
        pred, truth: from each boundary pixel of one mask to the nearest of the other.
        pred_elements, truth_elements: the same between surface elements.
        pred_sizes, truth_sizes: length or area of these elements.
    """

    pred: Floats
    truth: Floats
    pred_elements: Floats
    truth_elements: Floats
    pred_sizes: Floats
    truth_sizes: Floats

    @classmethod
    def between(cls, pred: Mask, truth: Mask, spacing: tuple[float, ...]) -> SurfaceDistances:
        """Measure two masks of one shape, neither of them empty; what lies outside the image is background.

        Raises:
            ConfigError: MONAI or SciPy is not installed.
        """
        pred, truth = crop_to_both(pred, truth)
        pred_pixels, truth_pixels = boundary_pixels(pred), boundary_pixels(truth)
        pred_cells, pred_sizes = surface_elements(pred, spacing)
        truth_cells, truth_sizes = surface_elements(truth, spacing)
        return cls(
            nearest(pred_pixels, truth_pixels, spacing),
            nearest(truth_pixels, pred_pixels, spacing),
            nearest(pred_cells, truth_cells, spacing),
            nearest(truth_cells, pred_cells, spacing),
            pred_sizes,
            truth_sizes,
        )

    def hd95_directed(self) -> float:
        """The larger of the two directed 95th percentiles."""
        return float(max(np.percentile(self.pred, PERCENTILE), np.percentile(self.truth, PERCENTILE)))

    def hd95_pooled(self) -> float:
        """The 95th percentile of both directions' distances together."""
        return float(np.percentile(np.concatenate([self.pred, self.truth]), PERCENTILE))

    def hd95_surface(self) -> float:
        """The larger of the two directed 95th percentiles of the surface, weighted by its length or area."""
        return max(
            weighted_percentile(self.pred_elements, self.pred_sizes, PERCENTILE),
            weighted_percentile(self.truth_elements, self.truth_sizes, PERCENTILE),
        )

    def asd(self) -> float:
        """The mean of both directions' distances together."""
        return float(np.concatenate([self.pred, self.truth]).mean())

    def nsd(self, tolerance: float) -> float:
        """Share of both surfaces, by length or area, that lies within `tolerance` of the other."""
        limit = tolerance * (1 + ROUNDING)
        within = self.pred_sizes[self.pred_elements <= limit].sum()
        within += self.truth_sizes[self.truth_elements <= limit].sum()
        return float(within / (self.pred_sizes.sum() + self.truth_sizes.sum()))
