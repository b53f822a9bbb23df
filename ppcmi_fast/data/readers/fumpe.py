"""FUMPE: CT angiography of the lungs with pulmonary emboli (Masoudi et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.data.readers.base import Case, require, same_shape, whole
from ppcmi_fast.data.readers.dicom import check_series, read_header, read_pixels, slice_distance
from ppcmi_fast.data.records import Mask, Pixels, Record
from ppcmi_fast.errors import DataError

KEYS = ("GT", "Mask", "seg", "volume")
Values = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]


@dataclass(frozen=True)
class Scan:
    """A patient's slices by instance number, as the truth counts them.

    Attributes:
        values: [slices, H, W] in Hounsfield units.
        spacing: (y, x) mm a pixel.
        slice_distance: mm.
    """

    values: Values
    spacing: tuple[float, float]
    slice_distance: float


@lru_cache(maxsize=4)
def _read_scan(folder: Path, names: tuple[str, ...]) -> Scan:
    headers = [read_header(folder / name) for name in names]
    if all(header.number is not None for header in headers):
        headers.sort(key=lambda header: header.number or 0)
    check_series(sorted(headers, key=lambda header: header.place))
    spacing = headers[0].spacing
    if spacing is None:
        raise DataError(f"{folder}: expected slices with their pixel spacing, got none; export them again")
    values = np.stack([read_pixels(header.path) for header in headers])
    return Scan(values, spacing, slice_distance(headers))


def read_scan(folder: Path) -> Scan:
    """A patient's scan; the last few are kept.

    Raises:
        DataError: no slice, a damaged one, or slices of several series.
    """
    names = tuple(sorted(path.name for path in folder.glob("*.dcm")))
    if not names:
        raise DataError(f"{folder}: expected DICOM slices *.dcm, found none; add them")
    return _read_scan(folder, names)


@lru_cache(maxsize=4)
def _read_truth(path: Path, _changed: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    scipy_io = require("scipy.io")
    try:
        content = scipy_io.loadmat(path)
    except Exception as error:
        raise DataError(
            f"{path}: expected a readable .mat file, got a damaged one ({error}); replace it"
        ) from None
    key = next((key for key in KEYS if key in content), None)
    if key is None:
        found = sorted(name for name in content if not name.startswith("__"))
        raise DataError(f"{path}: expected one of the variables {', '.join(KEYS)}, got {found}; replace it")
    values = np.atleast_3d(content[key])
    return (whole(values, path) > 0).astype(np.int64).transpose(2, 0, 1)


def read_truth(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[slices, H, W] of 0 and 1, from [H, W, slices].

    Raises:
        DataError: missing, damaged, or without a known variable.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected the ground truth, found nothing; add it or remove the patient")
    return _read_truth(path, path.stat().st_mtime)


class FumpeReader:
    """`CT_scans/PATnnn/*.dcm`, `GroundTruth/PATnnn.mat` [H, W, slices]."""

    name = "fumpe"
    title = "FUMPE folders CT_scans/PATnnn and GroundTruth/PATnnn.mat"
    class_names: tuple[str, ...] = ("pulmonary embolism",)
    modality = "ct"
    groups_by_similarity = False

    def detect(self, root: Path) -> bool:
        """Whether both folders are there."""
        return (root / "CT_scans").is_dir() and (root / "GroundTruth").is_dir()

    def cases(self, root: Path) -> Iterator[Case]:
        """A patient a case."""
        patients = {path.name for path in (root / "CT_scans").iterdir() if path.is_dir()}
        patients |= {path.stem for path in (root / "GroundTruth").glob("*.mat")}
        for patient in sorted(patients):
            yield self._case(root / "CT_scans" / patient, root / "GroundTruth" / f"{patient}.mat", patient)

    def _case(self, folder: Path, truth: Path, patient: str) -> Case:
        def read() -> list[tuple[Record, Mask]]:
            scan, labels = read_scan(folder), read_truth(truth)
            same_shape(folder, truth, scan.values.shape, labels.shape)
            record = Record(
                folder,
                truth,
                patient,
                "site",
                scan.spacing,
                volume=patient,
                slice_distance=scan.slice_distance,
            )
            return [(replace(record, index=index), labels[index]) for index in range(len(labels))]

        return Case(folder, read)

    def pixels(self, record: Record) -> Pixels:
        """A slice in Hounsfield units."""
        pixels: Pixels = read_scan(record.image).values[record.index or 0]
        return pixels

    def mask(self, record: Record) -> Mask:
        """Its embolism."""
        labels: Mask = read_truth(record.mask)[record.index or 0]
        return labels
