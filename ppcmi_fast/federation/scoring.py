"""Every method's scores on the held-out images, and what metrics.json and scores.csv say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.records import Record
from ppcmi_fast.metrics import (
    EMPTY_MASK_POLICY,
    HD95_DEFINITIONS,
    NSD_TOLERANCE,
    ScoreRow,
    compare_methods,
    segmentation_scores,
    summarise,
    volume_scores,
)
from ppcmi_fast.metrics.statistics import RESAMPLES
from ppcmi_fast.metrics.table import WHOLE_VOLUME


@dataclass(frozen=True)
class Scorer:
    """The held-out images of every site and how they are measured.

    Attributes:
        tests: site -> its test images.
        classes: with the background.
        root: folder of the data set, which image names are relative to.
        millimetres: whether every image's spacing is known; else all is measured in pixels, so that sites compare.
        tolerance: of NSD, in that unit.
    """

    tests: Mapping[str, Arrays]
    classes: int
    root: Path
    millimetres: bool
    tolerance: float = NSD_TOLERANCE

    def score(self, predictions: Mapping[str, Tensor]) -> list[ScoreRow]:
        """One method's rows, site by site: its images in their order, then its volumes."""
        return [
            row
            for site in self.tests
            for rows in (self._images, self._volumes)
            for row in rows(site, predictions)
        ]

    def _row(self, site: str, record: Record, position: str, scores: Any) -> ScoreRow:
        inside = record.image.is_relative_to(self.root)
        name = record.image.relative_to(self.root).as_posix() if inside else record.image.name
        return ScoreRow(site, record.subject, name, position, scores)

    def _images(self, site: str, predictions: Mapping[str, Tensor]) -> list[ScoreRow]:
        data = self.tests[site]
        spacing = data.spacing if self.millimetres else None
        found = segmentation_scores(predictions[site], data.masks, self.classes, spacing, self.tolerance)
        return [
            self._row(site, record, "" if record.index is None else str(record.index), scores)
            for record, scores in zip(data.records, found, strict=True)
        ]

    def _volumes(self, site: str, predictions: Mapping[str, Tensor]) -> list[ScoreRow]:
        data, rows = self.tests[site], []
        for members in volumes_of(data.records):
            first = data.records[members[0]]
            spacing = (1.0, 1.0, 1.0)
            if self.millimetres and data.spacing is not None and first.slice_distance is not None:
                y, x = data.spacing[members[0]].tolist()
                spacing = (first.slice_distance, y, x)
            positions = [data.records[member].index or 0 for member in members]
            guess = stack_slices(predictions[site][members], positions)
            truth = stack_slices(data.masks[members], positions)
            scores = volume_scores(guess, truth, self.classes, spacing, self.tolerance)
            rows.append(self._row(site, first, WHOLE_VOLUME, scores))
        return rows

    def describe(self) -> dict[str, Any]:
        """What the figures mean: definitions, unit, policy, and how often the truth lacks a class."""
        masks = [data.masks for data in self.tests.values()]
        volumes = [(data, members) for data in self.tests.values() for members in volumes_of(data.records)]
        facts: dict[str, Any] = {
            "unit": "mm" if self.millimetres else "px",
            "nsd_tolerance": self.tolerance,
            "hd95_definitions": HD95_DEFINITIONS,
            "empty_mask_policy": EMPTY_MASK_POLICY,
            "bootstrap_resamples": RESAMPLES,
            "images": sum(len(mask) for mask in masks),
            "empty_truths": self._empty([truth for mask in masks for truth in mask]),
        }
        if volumes:
            facts["volumes"] = len(volumes)
            facts["empty_truth_volumes"] = self._empty([data.masks[members] for data, members in volumes])
            facts["slices_left_out"] = sum(_gaps(data.records, members) for data, members in volumes)
        return facts

    def _empty(self, truths: Sequence[Tensor]) -> dict[str, int]:
        labels = range(1, self.classes)
        return {str(label): sum(not bool((truth == label).any()) for truth in truths) for label in labels}


def volumes_of(records: Sequence[Record]) -> list[list[int]]:
    """Positions of the slices of each volume, from the first slice to the last; pictures and clips are no volumes."""
    found: dict[str, list[int]] = {}
    for position, record in enumerate(records):
        if record.volume and record.slice_distance is not None and record.index is not None:
            found.setdefault(record.volume, []).append(position)
    return [sorted(members, key=lambda member: records[member].index or 0) for members in found.values()]


def _gaps(records: Sequence[Record], members: Sequence[int]) -> int:
    first, last = (records[member].index or 0 for member in (members[0], members[-1]))
    return last - first + 1 - len(members)


def stack_slices(maps: Tensor, positions: Sequence[int]) -> Tensor:
    """Slices [N, H, W] at ascending positions as a volume; slices that were left out between them are background."""
    volume = torch.zeros(positions[-1] - positions[0] + 1, *maps.shape[1:], dtype=maps.dtype)
    volume[[position - positions[0] for position in positions]] = maps
    return volume


def _summary(rows: Sequence[ScoreRow], seed: int) -> dict[str, Any]:
    return summarise([r.scores for r in rows], [r.site for r in rows], [r.subject for r in rows], seed)


def summarise_rows(rows: Sequence[ScoreRow], seed: int = 0) -> dict[str, Any]:
    """One method's entry of metrics.json: its images' measures, and under `volume` its volumes', where it has any."""
    volumes = [row for row in rows if row.is_volume]
    summary = _summary([row for row in rows if not row.is_volume], seed)
    return summary | ({"volume": _summary(volumes, seed)} if volumes else {})


def compare_rows(methods: Mapping[str, Sequence[ScoreRow]], ours: str, seed: int = 0) -> list[dict[str, Any]]:
    """`comparisons` of metrics.json: our images' scores against each other method's, see `compare_methods`."""
    images = {method: [row for row in rows if not row.is_volume] for method, rows in methods.items()}
    sites, subjects = [row.site for row in images[ours]], [row.subject for row in images[ours]]
    scores = {method: [row.scores for row in rows] for method, rows in images.items()}
    return compare_methods(ours, scores, sites, subjects, seed)
