"""Surface distances on analytic shapes in 2D and 3D, anisotropic: against closed forms, MONAI and medpy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("monai", reason="the extra `train` is not installed")
pytest.importorskip("scipy", reason="the extra `train` is not installed")

from ppcmi_fast.metrics import segmentation_scores, volume_scores
from ppcmi_fast.metrics.surfaces import (
    SurfaceDistances,
    boundary_pixels,
    surface_elements,
    weighted_percentile,
)

Mask = Any


def ball(shape: tuple[int, ...], radius: float, spacing: tuple[float, ...], shift: float = 0.0) -> Mask:
    """A disc or ball of `radius`, in the unit of the spacing, `shift` away from the middle along the first axis."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    axes[0] = axes[0] - shift
    grid = np.meshgrid(*axes, indexing="ij")
    return sum(axis**2 for axis in grid) <= radius**2


def box(shape: tuple[int, ...], corner: tuple[int, ...], size: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))] = True
    return mask


def speckle(shape: tuple[int, ...], seed: int) -> Mask:
    """A ragged mask of several pieces that touches the border of the image."""
    scipy_ndimage = pytest.importorskip("scipy.ndimage", reason="the extra `train` is not installed")
    return scipy_ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.05


FLAT, DEEP = (40, 48), (14, 30, 26)
PAIRS: dict[str, tuple[Mask, Mask, tuple[float, ...]]] = {
    "discs": (ball(FLAT, 11, (1.0, 1.0)), ball(FLAT, 14, (1.0, 1.0)), (1.0, 1.0)),
    "discs, anisotropic": (ball(FLAT, 9, (0.7, 1.9), 2.5), ball(FLAT, 12, (0.7, 1.9)), (0.7, 1.9)),
    "shifted squares": (box(FLAT, (8, 8), (12, 12)), box(FLAT, (8, 13), (12, 12)), (1.5, 0.5)),
    "a square at the border": (box(FLAT, (0, 0), (9, 9)), box(FLAT, (2, 1), (9, 9)), (1.0, 1.3)),
    "ragged, flat": (speckle(FLAT, 0), speckle(FLAT, 1), (1.2, 0.8)),
    "two points": (box(FLAT, (5, 5), (1, 1)), box(FLAT, (8, 9), (1, 1)), (2.0, 0.5)),
    "balls, anisotropic": (
        ball(DEEP, 9, (3.0, 1.1, 0.9), 3.0),
        ball(DEEP, 11, (3.0, 1.1, 0.9)),
        (3.0, 1.1, 0.9),
    ),
    "shifted boxes": (box(DEEP, (3, 5, 5), (6, 9, 7)), box(DEEP, (5, 5, 5), (6, 9, 7)), (2.5, 1.0, 0.6)),
    "ragged, deep": (speckle(DEEP, 2), speckle(DEEP, 3), (2.0, 0.9, 1.4)),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Mask, Mask, tuple[float, ...]]:
    return PAIRS[request.param]


def by_monai(name: str, pred: Mask, truth: Mask, spacing: tuple[float, ...], **settings: Any) -> float:
    import monai.metrics

    with warnings.catch_warnings():
        # MONAI passes itself an argument that it has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        function: Callable[..., Any] = getattr(monai.metrics, name)
        pair = (torch.from_numpy(mask)[None, None] for mask in (pred, truth))
        return float(function(*pair, include_background=True, spacing=spacing, **settings))


def test_distances_are_those_of_monai(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    pred, truth, spacing = pair
    found = SurfaceDistances.between(pred, truth, spacing)
    hd95 = by_monai("compute_hausdorff_distance", pred, truth, spacing, percentile=95)
    asd = by_monai("compute_average_surface_distance", pred, truth, spacing, symmetric=True)
    assert found.hd95_directed() == pytest.approx(hd95, rel=1e-5)
    assert found.asd() == pytest.approx(asd, rel=1e-5)


@pytest.mark.parametrize("tolerance", [0.45, 1.05, 2.05])
def test_nsd_is_that_of_monai(pair: tuple[Mask, Mask, tuple[float, ...]], tolerance: float) -> None:
    pred, truth, spacing = pair
    expected = by_monai(
        "compute_surface_dice", pred, truth, spacing, class_thresholds=[tolerance], use_subvoxels=True
    )
    assert SurfaceDistances.between(pred, truth, spacing).nsd(tolerance) == pytest.approx(expected, rel=1e-5)


def test_surface_weighted_hd95_is_that_of_monais_distances_and_areas(
    pair: tuple[Mask, Mask, tuple[float, ...]],
) -> None:
    from monai.metrics.utils import get_edge_surface_distance

    pred, truth, spacing = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        edges, distances, areas = get_edge_surface_distance(
            torch.from_numpy(pred),
            torch.from_numpy(truth),
            spacing=spacing,
            use_subvoxels=True,
            symmetric=True,
        )
    directed = []
    for edge, distance, area in zip(edges, distances, areas, strict=True):
        weights = area[edge].double()
        limits = distance.unique()
        share = torch.stack([weights[distance <= limit].sum() / weights.sum() for limit in limits])
        directed.append(float(limits[share >= 0.95][0]))
    found = SurfaceDistances.between(pred, truth, spacing).hd95_surface()
    assert found == pytest.approx(max(directed), rel=1e-5)


def test_pooled_hd95_and_asd_are_those_of_medpy(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    medpy = pytest.importorskip("medpy.metric.binary", reason="the extra `dev` is not installed")
    pred, truth, spacing = pair
    found = SurfaceDistances.between(pred, truth, spacing)
    assert found.hd95_pooled() == pytest.approx(medpy.hd95(pred, truth, voxelspacing=spacing))
    assert found.asd() == pytest.approx(medpy.assd(pred, truth, voxelspacing=spacing))


@pytest.mark.parametrize(
    ("spacing", "axis", "steps"),
    [((1.0, 1.0), 1, 5), ((1.5, 0.5), 0, 4), ((2.5, 1.0, 0.6), 0, 3), ((2.5, 1.0, 0.6), 2, 6)],
)
def test_shifted_boxes_are_as_far_apart_as_they_were_shifted(
    spacing: tuple[float, ...], axis: int, steps: int
) -> None:
    shape, corner = (26,) * len(spacing), [7] * len(spacing)
    truth = box(shape, tuple(corner), (12,) * len(spacing))
    corner[axis] += steps
    found = SurfaceDistances.between(box(shape, tuple(corner), (12,) * len(spacing)), truth, spacing)
    shift = steps * spacing[axis]
    # Every definition: the far face, more than a twentieth of each surface, is `shift` away from the other box.
    assert found.hd95_directed() == pytest.approx(shift)
    assert found.hd95_pooled() == pytest.approx(shift)
    assert found.hd95_surface() == pytest.approx(shift)
    assert found.nsd(shift) == 1.0
    assert 0 < found.nsd(0.9 * shift) < 1.0


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.5, 0.8), (0.8, 0.5, 0.5)])
def test_concentric_balls_are_a_difference_of_radii_apart(spacing: tuple[float, ...]) -> None:
    shape, inner, outer, pixel = (64, 64, 64)[: len(spacing)], 6.0, 10.0, max(spacing)
    found = SurfaceDistances.between(ball(shape, inner, spacing), ball(shape, outer, spacing), spacing)
    for value in (found.hd95_directed(), found.hd95_pooled(), found.hd95_surface(), found.asd()):
        assert value == pytest.approx(outer - inner, abs=pixel)
    assert found.nsd(outer - inner + pixel) == 1.0
    assert found.nsd(outer - inner - 2 * pixel) == 0.0


def test_surface_of_a_box_and_of_a_ball_has_its_area() -> None:
    spacing = (2.5, 1.0, 0.6)
    _, areas = surface_elements(box((14, 24, 24), (2, 2, 2), (10, 20, 20)), spacing)
    sides = np.array([10, 20, 20]) * spacing
    whole = 2 * (sides[0] * sides[1] + sides[1] * sides[2] + sides[2] * sides[0])
    # Edges and corners are bevelled, by less than a voxel.
    assert 0.9 * whole < areas.sum() < whole
    _, areas = surface_elements(ball((50, 50, 50), 20.0, (1.0, 1.0, 1.0)), (1.0, 1.0, 1.0))
    assert areas.sum() == pytest.approx(4 * math.pi * 20**2, rel=0.1)
    _, lengths = surface_elements(box((14, 24), (2, 2), (10, 20)), (2.0, 0.5))
    bevel = 4 * (2.0 + 0.5) / 2 - 4 * math.hypot(2.0, 0.5) / 2
    assert lengths.sum() == pytest.approx(2 * (10 * 2.0 + 20 * 0.5) - bevel)


def test_the_three_definitions_differ_where_they_should() -> None:
    truth = box((60, 60), (10, 10), (20, 20))
    # The answer has a whisker: more than 5 % of its own boundary, less than 5 % of both boundaries together.
    pred = truth | box((60, 60), (30, 20), (5, 1))
    found = SurfaceDistances.between(pred, truth, (1.0, 1.0))
    assert len(found.pred) == 80 and len(found.truth) == 76
    # The 76th and 77th of 80 distances are 1 and 2 pixels, and the percentile lies a twentieth of the way.
    assert found.hd95_directed() == pytest.approx(1.05)
    assert found.hd95_pooled() == pytest.approx(0.0)
    # Its two sides make it a tenth of the surface: more than the 5 % of pixels that it is.
    assert found.hd95_surface() > found.hd95_directed()


def test_weighted_percentile_counts_weights_not_values() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 90.0, 9.0])
    assert weighted_percentile(values, weights, 90) == 1.0
    assert weighted_percentile(values, weights, 95) == 2.0
    assert weighted_percentile(values, weights, 99.5) == 3.0
    assert weighted_percentile(np.array([4.0]), np.array([2.0]), 95) == 4.0


def test_boundary_of_a_cube_is_its_shell() -> None:
    assert len(boundary_pixels(np.pad(np.ones((4, 4, 4), bool), 1))) == 4**3 - 2**3


def test_empty_masks_of_a_volume_cost_its_diagonal() -> None:
    empty = torch.zeros(4, 32, 32, dtype=torch.int64)
    some = torch.from_numpy(box((4, 32, 32), (1, 4, 4), (2, 9, 9))).long()
    spacing = (5.0, 2.0, 1.0)
    both = volume_scores(empty, empty, 2, spacing)
    for name in ("dice", "iou", "nsd", "sensitivity", "precision"):
        assert getattr(both, name) == [1.0]
    for name in ("hd95", "hd95_pooled", "hd95_surface", "asd"):
        assert getattr(both, name) == [0.0]
    for pred, truth in ((empty, some), (some, empty)):
        one = volume_scores(pred, truth, 2, spacing)
        for name in ("dice", "iou", "nsd", "sensitivity", "precision"):
            assert getattr(one, name) == [0.0]
        for name in ("hd95", "hd95_pooled", "hd95_surface", "asd"):
            assert getattr(one, name) == [pytest.approx(math.sqrt(20**2 + 64**2 + 32**2))]


def test_overlap_measures_by_hand() -> None:
    truth = torch.from_numpy(box((1, 32, 32), (0, 8, 8), (1, 8, 8))).long()
    pred = torch.from_numpy(box((1, 32, 32), (0, 8, 10), (1, 8, 4))).long()
    (score,) = segmentation_scores(pred, truth, 2)
    assert score.sensitivity == [0.5] and score.precision == [1.0]
    assert score.iou == [0.5] and score.dice == [pytest.approx(2 / 3)]


def test_a_volume_is_not_the_mean_of_its_slices() -> None:
    truth = torch.zeros(3, 32, 32, dtype=torch.int64)
    truth[1, 8:16, 8:16] = 1
    pred = truth.roll(1, 0)
    # Slice by slice the structure is missed twice; as a volume it lies one slice, 4 mm, away.
    slices = segmentation_scores(pred, truth, 2)
    assert [score.dice[0] for score in slices] == [1.0, 0.0, 0.0]
    volume = volume_scores(pred, truth, 2, (4.0, 1.0, 1.0), tolerance=4.0)
    assert volume.hd95 == [pytest.approx(4.0)] and volume.asd == [pytest.approx(4.0)]
    assert volume.nsd == [1.0]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.0, 1.0, 1.0), (1.0, math.nan, 1.0)])
def test_a_spacing_that_is_none_is_named(spacing: Any) -> None:
    volume = torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="spacing: expected three lengths above 0"):
        volume_scores(volume, volume, 2, spacing)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_named(tolerance: float) -> None:
    image = torch.zeros(1, 4, 4, dtype=torch.int64)
    for call in (segmentation_scores, volume_scores):
        with pytest.raises(ValueError, match="tolerance: expected a finite number of at least 0"):
            call(image, image, 2, tolerance=tolerance)
