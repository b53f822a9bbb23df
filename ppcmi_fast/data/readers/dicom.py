"""DICOM slices: headers, order along the patient, and pixels in rescaled units such as Hounsfield's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.data.readers.base import SHOWN, require
from ppcmi_fast.data.records import Pixels
from ppcmi_fast.errors import DataError

TAGS = (
    "Modality",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "InstitutionName",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAME_PLACE = 1e-3  # mm; two slices nearer than this are one slice stored twice


@dataclass(frozen=True)
class Header:
    """What a file says of itself; None or "" where it does not say."""

    path: Path
    modality: str
    sop_class: str
    instance: str
    series: str
    patient: str
    institution: str
    number: int | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...]
    spacing: tuple[float, float] | None
    thickness: float | None
    size: tuple[int, int]

    @property
    def place(self) -> float:
        """Millimetres along the normal, growing towards left, posterior or superior; else the instance number."""
        if self.position is None:
            return float(self.number or 0)
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
        return float(np.dot(normal, self.position))


def damaged(path: Path, error: Exception) -> DataError:
    """The error for a file that a DICOM library could not take."""
    return DataError(f"{path}: expected a readable DICOM file, got a damaged one ({error}); replace it")


def is_dicom(path: Path) -> bool:
    """Whether the file bears the mark of DICOM after its preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """A file's header, without its pixels.

    Raises:
        DataError: no DICOM file, or a damaged one.
        ConfigError: pydicom is not installed.
    """
    pydicom = require("pydicom")
    try:
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        position, spacing = tags.get("ImagePositionPatient"), tags.get("PixelSpacing")
        return Header(
            path,
            str(tags.get("Modality") or ""),
            str(tags.get("SOPClassUID") or ""),
            str(tags.get("SOPInstanceUID") or ""),
            str(tags.get("SeriesInstanceUID") or ""),
            str(tags.get("PatientID") or ""),
            str(tags.get("InstitutionName") or ""),
            None if tags.get("InstanceNumber") is None else int(tags.InstanceNumber),
            tuple(float(value) for value in position) if position else None,
            tuple(float(value) for value in tags.get("ImageOrientationPatient") or AXIAL),
            (float(spacing[0]), float(spacing[1])) if spacing else None,
            float(tags.SliceThickness) if tags.get("SliceThickness") else None,
            (int(tags.get("Rows") or 0), int(tags.get("Columns") or 0)),
        )
    except Exception as error:
        raise damaged(path, error) from None


def read_pixels(path: Path) -> Pixels:
    """A slice [H, W] as stored, after its rescale slope and intercept.

    Raises:
        DataError: damaged, in colour, or of several frames.
    """
    pydicom = require("pydicom")
    try:
        found = pydicom.dcmread(path)
        values = found.pixel_array
        slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
    except Exception as error:
        raise damaged(path, error) from None
    if values.ndim != 2:
        raise DataError(
            f"{path}: expected one slice of grey values, got {list(values.shape)}; export single grey slices"
        )
    pixels: Pixels = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return pixels


def check_series(headers: Sequence[Header]) -> None:
    """Raise DataError unless the slices, in the order of their places, form one volume."""
    folder = headers[0].path.parent
    for name, values in (
        ("size", {header.size for header in headers}),
        ("spacing", {header.spacing and tuple(round(v, 4) for v in header.spacing) for header in headers}),
        ("orientation", {tuple(round(v, 3) + 0.0 for v in header.orientation) for header in headers}),
    ):
        if len(values) > 1:
            found = sorted(map(str, values))[:SHOWN]
            raise DataError(
                f"{folder}: expected slices of one {name}, got {', '.join(found)}; they mix series"
            )
    for one, other in zip(headers, headers[1:], strict=False):
        if one.position is not None and other.place - one.place < SAME_PLACE:
            raise DataError(
                f"{other.path}: expected one file a slice, got the place of {one.path.name} again; remove one of them"
            )


def slice_distance(headers: Sequence[Header]) -> float:
    """Median millimetres between neighbouring slices; of a single one its thickness, else 1."""
    places = [header.place for header in headers if header.position is not None]
    if len(places) > 1:
        return float(np.median(np.abs(np.diff(places))))
    return headers[0].thickness or 1.0


@dataclass(frozen=True)
class Turn:
    """Brings stored rows and columns to the patient's axes.

    Columns then run to the left or to the back, rows to the back or to the feet.
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    @staticmethod
    def of(orientation: tuple[float, ...]) -> Turn:
        """From ImageOrientationPatient: the direction along a row, then along a column, in LPS."""
        along = [np.asarray(orientation[:3]), np.asarray(orientation[3:])]
        axes = [int(np.argmax(np.abs(direction))) for direction in along]
        transpose = axes[0] > axes[1]
        if transpose:
            along.reverse()
            axes.reverse()
        # The head is up in a picture, so an axis towards it runs the other way.
        backwards = [
            bool(direction[axis] < 0) != (axis == 2) for direction, axis in zip(along, axes, strict=True)
        ]
        return Turn(transpose, flip_rows=backwards[1], flip_columns=backwards[0])

    def apply(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Turn [H, W]."""
        values = values.T if self.transpose else values
        values = values[::-1] if self.flip_rows else values
        return values[:, ::-1] if self.flip_columns else values

    def undo(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Undo `apply`."""
        values = values[::-1] if self.flip_rows else values
        values = values[:, ::-1] if self.flip_columns else values
        return values.T if self.transpose else values

    def spacing(self, spacing: tuple[float, float]) -> tuple[float, float]:
        """Turn (y, x)."""
        return (spacing[1], spacing[0]) if self.transpose else spacing
