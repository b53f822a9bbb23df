"""Means of scores: every site counts the same, however many images it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppcmi_fast.metrics.scores import MEASURES, ImageScores
from ppcmi_fast.metrics.statistics import Cohort, image_means


def summarise(
    scores: Sequence[ImageScores],
    sites: Sequence[str],
    subjects: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Means of each measure.

    Args:
        scores: one an image, or one a volume.
        sites: one an image.
        subjects: one an image; with them comes `ci95`.
        seed: of the bootstrap.

    Returns:
        measure -> `site` (over its images and classes), `class` and `mean` (both over sites' means), `site_class`
        (site -> class), `ci95` ([low, high] of `mean`; None where a site has one subject).

    Raises:
        ValueError: no scores, or another number of sites or subjects.
    """
    if not scores or len(scores) != len(sites):
        raise ValueError(f"sites: expected one per image, got {len(sites)} for {len(scores)} images")
    names = sorted(set(sites))
    members = [np.array([site == name for site in sites]) for name in names]
    intervals = None
    if subjects is not None:
        intervals = Cohort.of(sites, subjects).intervals(image_means(scores), seed)
    summary: dict[str, Any] = {}
    for column, measure in enumerate(MEASURES):
        table = np.array([getattr(score, measure) for score in scores], dtype=np.float64)
        per_site = np.stack([table[member].mean(0) for member in members])
        labels = [str(label + 1) for label in range(table.shape[1])]
        summary[measure] = {
            "mean": float(per_site.mean()),
            "site": {name: float(row.mean()) for name, row in zip(names, per_site, strict=True)},
            "class": dict(zip(labels, per_site.mean(0).tolist(), strict=True)),
            "site_class": {
                name: dict(zip(labels, row.tolist(), strict=True))
                for name, row in zip(names, per_site, strict=True)
            },
        }
        if intervals is not None:
            summary[measure]["ci95"] = intervals[column]
    return summary
