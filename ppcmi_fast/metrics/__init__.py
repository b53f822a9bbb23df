"""How good a segmentation is: scores of images and volumes, their means over sites, intervals and tests.

docs/measures.md defines every measure.
"""

from __future__ import annotations

from ppcmi_fast.metrics.scores import (
    DISTANCES,
    EMPTY_MASK_POLICY,
    HD95_DEFINITIONS,
    MEASURES,
    NSD_TOLERANCE,
    ImageScores,
    dice_scores,
    segmentation_scores,
    volume_scores,
)
from ppcmi_fast.metrics.statistics import Cohort, compare_methods, holm
from ppcmi_fast.metrics.summary import summarise
from ppcmi_fast.metrics.table import ScoreRow, read_scores, write_scores

__all__ = [
    "DISTANCES",
    "EMPTY_MASK_POLICY",
    "HD95_DEFINITIONS",
    "MEASURES",
    "NSD_TOLERANCE",
    "Cohort",
    "ImageScores",
    "ScoreRow",
    "compare_methods",
    "dice_scores",
    "holm",
    "read_scores",
    "segmentation_scores",
    "summarise",
    "volume_scores",
    "write_scores",
]
