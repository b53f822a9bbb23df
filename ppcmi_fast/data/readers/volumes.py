"""Volumes: medical images of several slices, in the patient's axes, read and written with their geometry."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.data.readers.base import Case, require, same_shape, whole
from ppcmi_fast.data.records import Mask, Pixels, Record
from ppcmi_fast.errors import DataError


@dataclass(frozen=True)
class Volume:
    """An image file as slices: values [slices, H, W], spacing (slice, y, x) in mm."""

    values: np.ndarray[tuple[int, int, int], np.dtype[np.float32]]
    spacing: tuple[float, float, float]


ANISOTROPIC = 1.5


def check_nifti_length(path: Path) -> None:
    """Raise DataError for a NIfTI-1 file that ends before its data: ITK fills up what is missing without a word."""
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            header = file.read(352)
            if len(header) < 352:
                raise EOFError("the header is cut")
            order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"
            dims = struct.unpack_from(f"{order}8h", header, 40)
            (bits,) = struct.unpack_from(f"{order}h", header, 72)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
            wanted = int(offset) + math.prod(dims[1 : 1 + dims[0]]) * bits // 8
            there = len(header)
            while chunk := file.read(1 << 20):
                there += len(chunk)
            if there < wanted:
                raise EOFError(f"{there} of {wanted} bytes")
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a readable image, got a damaged file ({error}); replace it"
        ) from None


def _read_itk(path: Path) -> Any:
    """An image of grey values in 2 or 3 dimensions."""
    sitk = require("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if path.name.endswith((".nii", ".nii.gz")):
        check_nifti_length(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DataError(
            f"{path}: expected a readable image, got a damaged file ({reason}); replace it"
        ) from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(
            f"{path}: expected grey values, got {image.GetNumberOfComponentsPerPixel()} components a pixel;"
            " convert it to grey"
        )
    if image.GetDimension() not in (2, 3):
        raise DataError(f"{path}: expected 2 or 3 dimensions, got {image.GetDimension()}; split the series")
    return image


def _turned(image: Any) -> tuple[Any, tuple[int, int, int]]:
    """A volume along the patient's axes, and the order of its array's axes in which it is cut into slices.

    The patient's axes: slices from feet to head, rows from front to back, columns from right to left.
    """
    turned = require("SimpleITK").DICOMOrient(image, "LPS")
    spacing = tuple(reversed(turned.GetSpacing()))
    # Slices are cut where the volume was acquired in slices: across its one coarse axis.
    coarse = int(np.argmax(spacing))
    rest = [spacing[i] for i in range(3) if i != coarse]
    axis = coarse if spacing[coarse] > ANISOTROPIC * max(rest) else 0
    first, second = (i for i in range(3) if i != axis)
    return turned, (axis, first, second)


@lru_cache(maxsize=8)
def _read_volume(path: Path, _changed: float) -> Volume:
    sitk = require("SimpleITK")
    image = _read_itk(path)
    if image.GetDimension() == 2:
        x, y = image.GetSpacing()
        return Volume(sitk.GetArrayFromImage(image)[None].astype(np.float32), (1.0, y, x))
    turned, order = _turned(image)
    values = sitk.GetArrayFromImage(turned).astype(np.float32).transpose(order)
    spacing = tuple(reversed(turned.GetSpacing()))
    return Volume(np.ascontiguousarray(values), (spacing[order[0]], spacing[order[1]], spacing[order[2]]))


def read_volume(path: Path) -> Volume:
    """A medical image of any format that SimpleITK reads, in the patient's axes; the last few are kept.

    Raises:
        DataError: missing, damaged, in colour, or of more than three dimensions.
        ConfigError: SimpleITK is not installed.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected an image file, found nothing; add the file or remove its partner")
    return _read_volume(path, path.stat().st_mtime)


def write_labels(labels: np.ndarray[Any, np.dtype[np.uint8]], source: Path, out: Path) -> None:
    """Write class maps as slices of `source` lie in it: with its axes, origin, spacing and directions.

    Args:
        labels: uint8 [slices, H, W], as `read_volume` cuts the source.
        source: the image that they belong to.
        out: file of a format that SimpleITK writes.

    Raises:
        DataError: the source cannot be read.
    """
    sitk = require("SimpleITK")
    image = _read_itk(source)
    if image.GetDimension() == 2:
        result = sitk.GetImageFromArray(labels[0])
    else:
        turned, order = _turned(image)
        result = sitk.GetImageFromArray(np.ascontiguousarray(labels.transpose(np.argsort(order))))
        result.CopyInformation(turned)
        own = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(image.GetDirection())
        result = sitk.DICOMOrient(result, own)
    result.CopyInformation(image)
    sitk.WriteImage(result, str(out), useCompression=out.name.endswith((".gz", ".mha", ".nrrd")))


def volume_case(
    image: Path,
    mask: Path,
    record: Record,
    relabel: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None,
) -> Case:
    """A volume and its label volume: a record a slice."""

    def read() -> list[tuple[Record, Mask]]:
        volume, labels = read_volume(image), read_volume(mask)
        same_shape(image, mask, volume.values.shape, labels.values.shape)
        if not np.allclose(volume.spacing, labels.spacing, rtol=1e-2):
            raise DataError(
                f"{mask}: expected the spacing of its image {_listed(volume.spacing)}, got {_listed(labels.spacing)};"
                " resample it"
            )
        classes = whole(labels.values, mask)
        classes = classes if relabel is None else relabel(classes)
        spacing = (volume.spacing[1], volume.spacing[2])
        return [
            (
                replace(
                    record,
                    image=image,
                    mask=mask,
                    index=index,
                    spacing=spacing,
                    volume=str(image),
                    slice_distance=volume.spacing[0],
                ),
                classes[index],
            )
            for index in range(len(classes))
        ]

    return Case(image, read)


def _listed(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"


def slice_of(path: Path, record: Record) -> Pixels:
    """The record's slice of a volume."""
    pixels: Pixels = read_volume(path).values[record.index or 0]
    return pixels
