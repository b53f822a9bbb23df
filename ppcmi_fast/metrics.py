"""Dice, HD95 and ASD per image and class, with a stated policy for empty masks.

Policy: both masks empty - Dice 1, distances 0; one empty - Dice 0, distances the image's diagonal. So a missed
structure costs, and an image without the structure rewards silence. HD95 is the larger of the two directed 95th
percentiles, ASD the symmetric average surface distance, both as MONAI computes them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppcmi_fast.errors import ConfigError
from ppcmi_fast.labels import check_labels

MEASURES = ("dice", "hd95", "asd")


@dataclass(frozen=True)
class ImageScores:
    """One image's figures, one per foreground class; distances in mm where spacing was given, else pixels."""

    dice: list[float]
    hd95: list[float]
    asd: list[float]


def _check(pred: Tensor, truth: Tensor, classes: int, spacing: Tensor | None) -> None:
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
    if spacing is not None and tuple(spacing.shape) != (len(truth), 2):
        raise ValueError(f"spacing: expected [{len(truth)}, 2], got {list(spacing.shape)}")


def dice_scores(pred: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Dice per image and foreground class, float32 [N, classes - 1]; int64 [N, H, W] in.

    Raises:
        ValueError: shapes, dtypes, or a label that is no class.
    """
    _check(pred, truth, classes, None)
    rows = []
    for label in range(1, classes):
        guess, real = (pred == label).flatten(1), (truth == label).flatten(1)
        total = guess.sum(1) + real.sum(1)
        rows.append(torch.where(total == 0, 1.0, 2 * (guess & real).sum(1) / total.clamp_min(1)))
    return torch.stack(rows, dim=1)


def segmentation_scores(
    pred: Tensor, truth: Tensor, classes: int, spacing: Tensor | None = None
) -> list[ImageScores]:
    """Score images.

    Args:
        pred: int64 [N, H, W] class maps.
        truth: the same shape and dtype.
        classes: classes including the background.
        spacing: float32 [N, 2], (y, x) mm a pixel; None measures in pixels.

    Raises:
        ValueError: shapes, dtypes, or a label that is no class.
        ConfigError: MONAI is not installed.
    """
    _check(pred, truth, classes, spacing)
    try:
        from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
    except ImportError as error:
        raise ConfigError('metrics: MONAI is missing; cure: pip install "ppcmi-fast[train]"') from error
    dice = dice_scores(pred, truth, classes)
    guesses = F.one_hot(pred, classes).movedim(-1, 1)[:, 1:]
    truths = F.one_hot(truth, classes).movedim(-1, 1)[:, 1:]
    steps = torch.ones(len(pred), 2) if spacing is None else spacing
    result = []
    for index in range(len(pred)):
        step = [float(s) for s in steps[index]]
        diagonal = math.hypot(pred.shape[1] * step[0], pred.shape[2] * step[1])
        hd95, asd = [], []
        for label in range(classes - 1):
            guess, real = guesses[index, label], truths[index, label]
            if not guess.any() or not real.any():
                distance = diagonal if guess.any() or real.any() else 0.0
                hd95.append(distance)
                asd.append(distance)
                continue
            pair: dict[str, Any] = {
                "y_pred": guess[None, None],
                "y": real[None, None],
                "include_background": True,
                "spacing": step,
            }
            with warnings.catch_warnings():
                # MONAI warns of a deprecated argument that it passes to itself.
                warnings.simplefilter("ignore", FutureWarning)
                hd95.append(float(compute_hausdorff_distance(**pair, percentile=95)))
                asd.append(float(compute_average_surface_distance(**pair, symmetric=True)))
        result.append(ImageScores(dice[index].tolist(), hd95, asd))
    return result


def summarise(scores: Sequence[ImageScores], sites: Sequence[str]) -> dict[str, Any]:
    """Means of each measure: `site` (over its images and classes), `class` and `mean`, both over sites' means.

    Every site counts the same, however many images it has.

    Raises:
        ValueError: no scores, or another number of sites.
    """
    if not scores or len(scores) != len(sites):
        raise ValueError(f"sites: expected one per image, got {len(sites)} for {len(scores)} images")
    names = sorted(set(sites))
    summary: dict[str, Any] = {}
    for measure in MEASURES:
        table = np.array([getattr(score, measure) for score in scores])
        per_site = np.stack([table[[s == name for s in sites]].mean(0) for name in names])
        summary[measure] = {
            "mean": float(per_site.mean()),
            "site": {name: float(row.mean()) for name, row in zip(names, per_site, strict=True)},
            "class": {str(label + 1): float(value) for label, value in enumerate(per_site.mean(0))},
        }
    return summary
