"""What readers of published layouts share: cases in, checked records out; a broken file is listed, not fatal."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ppcmi_fast.data.records import Dataset, Record
from ppcmi_fast.errors import ConfigError, DataError

Pixels = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Mask = np.ndarray[tuple[int, int], np.dtype[np.int64]]

SHOWN = 5
EXTRA = 'pip install "ppcmi-fast[data]"'


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is taken.

    Attributes:
        drop_empty: leave out slices whose mask is empty; else they are kept.
        max_broken: the share of files that may be unreadable; they are listed either way.
        window: (low, high) that pixels are clipped to, such as Hounsfield units; None leaves them to the rescaling by
            percentiles.
        classes: classes including the background; None counts those that occur.
    """

    drop_empty: bool = False
    max_broken: float = 0.05
    window: tuple[float, float] | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"max_broken: expected a share of 0 to 1, got {self.max_broken}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window: expected low < high, got {self.window}")
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes: expected at least 2 with the background, got {self.classes}")


@dataclass(frozen=True)
class Case:
    """An image file and what reads it: records with their masks, in order of their slices."""

    name: Path
    read: Callable[[], list[tuple[Record, Mask]]]


class Reader(Protocol):
    """One published layout.

    Attributes:
        name: what `layout=` calls it.
        title: for messages, with what marks the layout.
        class_names: from class 1 on; empty where the data says.
    """

    name: str
    title: str
    class_names: tuple[str, ...]

    def detect(self, root: Path) -> bool:
        """Whether the folder looks like it, from names alone."""

    def cases(self, root: Path) -> Iterable[Case]:
        """Every image of the folder.

        Raises:
            DataError: the folder lacks a part that the layout must have.
        """

    def pixels(self, record: Record) -> Pixels:
        """The record's image in its own units.

        Raises:
            DataError: it cannot be read any more.
        """

    def mask(self, record: Record) -> Mask:
        """The record's class map."""


@dataclass
class Scan:
    """Collects what is readable and lists what is not."""

    records: list[Record] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    empty: int = 0
    seen: int = 0

    def add(self, case: Case, options: ReadOptions) -> None:
        """Take a case, or list it as broken."""
        self.seen += 1
        try:
            pairs = case.read()
        except DataError as error:
            self.broken.append((case.name, str(error)))
            return
        for record, mask in pairs:
            labels = {int(value) for value in np.unique(mask)}
            if options.classes is not None and max(labels) >= options.classes:
                expected = f"expected classes 0..{options.classes - 1}, got {max(labels)}"
                self.broken.append((case.name, f"{record.mask}: {expected}; correct the setting classes"))
                return
            empty = labels <= {0}
            self.empty += empty
            self.labels |= labels
            if not (empty and options.drop_empty):
                self.records.append(replace(record, classes=tuple(sorted(labels - {0}))))


def finish(reader: Reader, root: Path, scan: Scan, options: ReadOptions) -> Dataset:
    """The checked data set.

    Raises:
        DataError: nothing readable, too much broken, no class above 0, two images of one name and subject.
    """
    if scan.seen == 0:
        raise DataError(f"{root}: expected {reader.title}, found no image; check the path")
    if len(scan.broken) > options.max_broken * scan.seen:
        texts = [reason for _, reason in scan.broken[:SHOWN]]
        more = f"\\n... and {len(scan.broken) - SHOWN} more" if len(scan.broken) > SHOWN else ""
        raise DataError(
            f"{root}: expected at most {options.max_broken:.0%} unreadable files, got {len(scan.broken)} of"
            f" {scan.seen}; repair or remove them, or raise max_broken:\n" + "\n".join(texts) + more
        )
    if not scan.records or max(scan.labels) == 0:
        raise DataError(
            f"{root}: expected masks with at least one class above 0, all are empty; check the masks"
        )
    classes = options.classes or max(max(scan.labels) + 1, len(reader.class_names) + 1)
    names = reader.class_names or tuple(str(index) for index in range(1, classes))
    return Dataset(
        root.resolve().name,
        root,
        scan.records,
        classes,
        layout=reader.name,
        class_names=names,
        broken=[(str(path.relative_to(root)), reason) for path, reason in scan.broken],
        empty_masks=scan.empty,
        window=options.window,
    )


def require(module: str) -> Any:
    """Import an optional library.

    Raises:
        ConfigError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"data: {module.split('.')[0]} is missing; cure: {EXTRA}") from error


def same_shape(image: Path, mask: Path, pixels: Sequence[int], labels: Sequence[int]) -> None:
    """Raise DataError unless both have one shape."""
    if tuple(pixels) != tuple(labels):
        raise DataError(
            f"{mask}: expected the shape of its image {image.name} {list(pixels)}, got {list(labels)};"
            " export the mask at the image's size"
        )


def whole(values: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels as integers.

    Raises:
        DataError: a value that is no whole number of at least 0.
    """
    integers = values.astype(np.int64)
    if (integers != values).any() or (integers.size and integers.min() < 0):
        raise DataError(
            f"{path}: expected whole class indices from 0 on, got {values.min()} to {values.max()}"
        )
    return integers


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
