"""FUMPE: CT angiography of the lungs with pulmonary emboli (Masoudi et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.data.readers.base import Case, Mask, Pixels, require, same_shape, whole
from ppcmi_fast.data.records import Record
from ppcmi_fast.errors import DataError

KEYS = ("GT", "Mask", "seg", "volume")
Values = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]


@lru_cache(maxsize=4)
def _read_series(folder: Path, _names: tuple[str, ...]) -> tuple[Values, tuple[float, float]]:
    pydicom = require("pydicom")
    slices: list[tuple[float, Any, Path]] = []
    for name in _names:
        path = folder / name
        try:
            found = pydicom.dcmread(path)
            pixels = found.pixel_array.astype(np.float32)
        except Exception as error:
            raise DataError(
                f"{path}: expected a readable DICOM image, got a damaged file ({error}); replace it"
            ) from None
        if pixels.ndim != 2:
            raise DataError(
                f"{path}: expected one grey slice, got {list(pixels.shape)}; export single slices"
            )
        found.units = pixels * float(found.get("RescaleSlope", 1)) + float(found.get("RescaleIntercept", 0))
        slices.append((float(found.get("InstanceNumber", len(slices))), found, path))
    slices.sort(key=lambda entry: entry[0])
    spacings = {tuple(round(float(v), 4) for v in found.PixelSpacing) for _, found, _ in slices}
    if len(spacings) != 1:
        raise DataError(f"{folder}: expected slices of one spacing, got {sorted(spacings)}; they mix series")
    shapes = {found.units.shape for _, found, _ in slices}
    if len(shapes) != 1:
        raise DataError(f"{folder}: expected slices of one size, got {sorted(shapes)}; they mix series")
    (spacing,) = spacings
    return np.stack([found.units for _, found, _ in slices]), (spacing[0], spacing[1])


def read_series(folder: Path) -> tuple[Values, tuple[float, float]]:
    """[slices, H, W] in Hounsfield units by instance number, and (y, x) mm a pixel.

    Raises:
        DataError: no slice, a damaged one, or slices of several series.
    """
    names = tuple(sorted(path.name for path in folder.glob("*.dcm")))
    if not names:
        raise DataError(f"{folder}: expected DICOM slices *.dcm, found none; add them")
    return _read_series(folder, names)


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
            values, spacing = read_series(folder)
            labels = read_truth(truth)
            same_shape(folder, truth, values.shape, labels.shape)
            return [
                (Record(folder, truth, patient, "site", spacing, index), labels[index])
                for index in range(len(labels))
            ]

        return Case(folder, read)

    def pixels(self, record: Record) -> Pixels:
        """A slice in Hounsfield units."""
        pixels: Pixels = read_series(record.image)[0][record.index or 0]
        return pixels

    def mask(self, record: Record) -> Mask:
        """Its embolism."""
        labels: Mask = read_truth(record.mask)[record.index or 0]
        return labels
