"""Scores of one image or volume, with a stated policy for empty masks.

Policy: both masks empty - overlap measures 1, distances 0; one empty - overlap measures 0, distances the diagonal of
the image or volume. So a missed structure costs in every measure, and an image without it rewards silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ppcmi_fast.labels import check_labels
from ppcmi_fast.metrics.surfaces import Mask, SurfaceDistances

NSD_TOLERANCE = 2.0
EMPTY_MASK_POLICY = (
    "both masks empty: Dice, IoU, NSD, sensitivity and precision 1, distances 0; one mask empty: Dice, IoU, NSD,"
    " sensitivity and precision 0, distances the diagonal of the image, or of the volume"
)
HD95_DEFINITIONS = {
    "hd95": "the larger of the two directed 95th percentiles over boundary pixels",
    "hd95_pooled": "the 95th percentile of the distances of both directions together",
    "hd95_surface": "the larger of the two directed 95th percentiles over surface elements, weighted by their area",
}


@dataclass(frozen=True)
class ImageScores:
    """The figures of one image or volume, one per foreground class; distances in mm with a spacing, else pixels."""

    dice: list[float]
    iou: list[float]
    nsd: list[float]
    hd95: list[float]
    hd95_pooled: list[float]
    hd95_surface: list[float]
    asd: list[float]
    sensitivity: list[float]
    precision: list[float]


MEASURES = tuple(field.name for field in fields(ImageScores))
DISTANCES = ("hd95", "hd95_pooled", "hd95_surface", "asd")


def _check(pred: Tensor, truth: Tensor, classes: int) -> None:
    for name, value in (("pred", pred), ("truth", truth)):
        if value.ndim != 3 or value.dtype != torch.int64:
            raise ValueError(
                f"{name}: expected int64 [N, H, W], got {value.dtype} {list(value.shape)}; use argmax or long()"
            )
    if pred.shape != truth.shape:
        raise ValueError(f"pred: expected the shape of truth {list(truth.shape)}, got {list(pred.shape)}")
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    check_labels("pred", pred, classes)
    check_labels("truth", truth, classes)


def _check_tolerance(tolerance: float) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance: expected a finite number of at least 0, got {tolerance}")


def dice_scores(pred: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Dice per image and foreground class, float32 [N, classes - 1]; int64 [N, H, W] in.

    Raises:
        ValueError: shapes, dtypes, or a label that is no class.
    """
    _check(pred, truth, classes)
    rows = []
    for label in range(1, classes):
        guess, real = (pred == label).flatten(1), (truth == label).flatten(1)
        total = guess.sum(1) + real.sum(1)
        rows.append(torch.where(total == 0, 1.0, 2 * (guess & real).sum(1) / total.clamp_min(1)))
    return torch.stack(rows, dim=1)


def _score_masks(pred: Mask, truth: Mask, spacing: tuple[float, ...], tolerance: float) -> dict[str, float]:
    guessed, real = int(pred.sum()), int(truth.sum())
    if not guessed or not real:
        right = guessed == real
        diagonal = math.hypot(*(n * step for n, step in zip(truth.shape, spacing, strict=True)))
        distance = 0.0 if right else diagonal
        return {name: distance if name in DISTANCES else float(right) for name in MEASURES}
    hit = int((pred & truth).sum())
    surfaces = SurfaceDistances.between(pred, truth, spacing)
    return {
        "dice": 2 * hit / (guessed + real),
        "iou": hit / (guessed + real - hit),
        "nsd": surfaces.nsd(tolerance),
        "hd95": surfaces.hd95_directed(),
        "hd95_pooled": surfaces.hd95_pooled(),
        "hd95_surface": surfaces.hd95_surface(),
        "asd": surfaces.asd(),
        "sensitivity": hit / real,
        "precision": hit / guessed,
    }


def _score_classes(
    pred: Tensor, truth: Tensor, classes: int, spacing: tuple[float, ...], tolerance: float
) -> ImageScores:
    guess, real = pred.numpy(), truth.numpy()
    found = [
        _score_masks(np.equal(guess, label), np.equal(real, label), spacing, tolerance)
        for label in range(1, classes)
    ]
    return ImageScores(**{name: [scores[name] for scores in found] for name in MEASURES})


def segmentation_scores(
    pred: Tensor,
    truth: Tensor,
    classes: int,
    spacing: Tensor | None = None,
    tolerance: float = NSD_TOLERANCE,
) -> list[ImageScores]:
    """Score images.

    Args:
        pred: int64 [N, H, W] class maps on the CPU.
        truth: the same shape and dtype.
        classes: classes including the background.
        spacing: float32 [N, 2], (y, x) mm a pixel; None measures in pixels.
        tolerance: of NSD, in the unit of the distances.

    Raises:
        ValueError: shapes, dtypes, or a label that is no class.
        ConfigError: MONAI or SciPy is not installed.
    """
    _check(pred, truth, classes)
    _check_tolerance(tolerance)
    if spacing is not None and tuple(spacing.shape) != (len(truth), 2):
        raise ValueError(f"spacing: expected [{len(truth)}, 2], got {list(spacing.shape)}")
    steps = [[1.0, 1.0]] * len(truth) if spacing is None else spacing.tolist()
    return [
        _score_classes(guess, real, classes, tuple(step), tolerance)
        for guess, real, step in zip(pred, truth, steps, strict=True)
    ]


def volume_scores(
    pred: Tensor,
    truth: Tensor,
    classes: int,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    tolerance: float = NSD_TOLERANCE,
) -> ImageScores:
    """Score one volume.

    Args:
        pred: int64 [slices, H, W] class map on the CPU.
        truth: the same shape and dtype.
        classes: classes including the background.
        spacing: (slice distance, y, x) in mm.
        tolerance: of NSD, in the unit of the distances.

    Raises:
        ValueError: shapes, dtypes, or a label that is no class.
        ConfigError: MONAI or SciPy is not installed.
    """
    _check(pred, truth, classes)
    _check_tolerance(tolerance)
    if len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"spacing: expected three lengths above 0 (slice distance, y, x), got {spacing}")
    return _score_classes(pred, truth, classes, tuple(spacing), tolerance)
