"""DICOM series with DICOM SEG masks, in any arrangement of files and folders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast import __version__
from ppcmi_fast.data.readers.base import Case, require
from ppcmi_fast.data.readers.dicom import (
    Header,
    Turn,
    check_series,
    damaged,
    is_dicom,
    read_header,
    read_pixels,
    slice_distance,
)
from ppcmi_fast.data.records import Mask, Pixels, Record
from ppcmi_fast.errors import DataError

MODALITIES = {"CT": "ct", "MR": "mri", "US": "ultrasound"}
SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


def dicom_files(root: Path) -> Iterator[Path]:
    """Every visible DICOM file below the folder, with any name or none."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts) or path.name == "DICOMDIR"
        if not hidden and path.is_file() and (path.suffix.lower() == ".dcm" or is_dicom(path)):
            yield path


def series_below(root: Path) -> tuple[dict[str, list[Header]], list[Header], list[tuple[Path, DataError]]]:
    """The slices of every series in order of their places, the SEG files, and the files without a header."""
    series: dict[str, list[Header]] = {}
    masks: list[Header] = []
    broken: list[tuple[Path, DataError]] = []
    for path in dicom_files(root):
        try:
            header = read_header(path)
        except DataError as error:
            broken.append((path, error))
            continue
        if not header.series or not header.instance:
            missing = DataError(
                f"{path}: expected the identifiers of its series and slice, got none; export it again"
            )
            broken.append((path, missing))
        elif header.sop_class == SEGMENTATION_STORAGE:
            masks.append(header)
        elif min(header.size) > 0:  # reports and plans have no pixels
            series.setdefault(header.series, []).append(header)
    for headers in series.values():
        headers.sort(key=lambda header: (header.place, header.path.name))
    return series, masks, broken


@lru_cache(maxsize=2)
def _read_segmentation(path: Path, _changed: float) -> Any:
    seg = require("highdicom.seg")
    try:
        return seg.segread(path)
    except Exception as error:
        raise damaged(path, error) from None


def _segmentation(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: expected a DICOM SEG file, found nothing; add it")
    return _read_segmentation(path, path.stat().st_mtime)


def _segments(path: Path) -> list[tuple[int, str]]:
    """Number and label of each segment."""
    return [(int(s.SegmentNumber), str(s.SegmentLabel)) for s in _segmentation(path).SegmentSequence]


def _referenced_series(path: Path) -> str:
    try:
        return str(_segmentation(path).ReferencedSeriesSequence[0].SeriesInstanceUID)
    except (AttributeError, IndexError):
        raise DataError(f"{path}: expected a SEG that names its series, got none; export it again") from None


def _described(path: Path) -> tuple[str, list[tuple[int, str]]] | DataError:
    """The series that a SEG refers to and its segments, or what is wrong with it."""
    try:
        return _referenced_series(path), _segments(path)
    except DataError as error:
        return error


def _slice_classes(path: Path, instance: str, classes: dict[str, int]) -> Mask:
    """Classes [H, W] of one slice as stored; a slice that the SEG has no frame of is empty."""
    segments = _segments(path)
    try:
        stack = _segmentation(path).get_pixels_by_source_instance(
            source_sop_instance_uids=[instance],
            segment_numbers=[number for number, _ in segments],
            assert_missing_frames_are_empty=True,
            ignore_spatial_locations=True,
            rescale_fractional=False,
        )[0]
    except Exception as error:
        raise damaged(path, error) from None
    covered = stack > 0
    if (covered.sum(-1) > 1).any():
        raise DataError(
            f"{path}: expected segments that do not overlap, two cover one pixel; remove the overlap"
        )
    return np.asarray((covered * np.array([classes[label] for _, label in segments])).sum(-1), dtype=np.int64)


class DicomSegReader:
    """Patient ID is the subject, the institution the site; segments of one label are one class."""

    name = "dicom"
    title = "DICOM series with DICOM SEG files, in any folders"
    class_names: tuple[str, ...] = ()
    modality = "general"
    groups_by_similarity = False

    def detect(self, root: Path) -> bool:
        """Whether a SEG file is somewhere below."""
        return bool(series_below(root)[1]) if any(dicom_files(root)) else False

    def cases(self, root: Path) -> Iterator[Case]:
        """A series with its SEG a case; a series without one is left out, a SEG without its series is broken."""
        series, masks, broken = series_below(root)
        for path, error in broken:
            yield _failing(path, error)
        series_of: dict[Path, str] = {}
        labels: dict[str, None] = {}
        for mask in masks:
            found = _described(mask.path)
            if isinstance(found, DataError):
                yield _failing(mask.path, found)
            else:
                series_of[mask.path], segments = found
                labels.update(dict.fromkeys(label for _, label in sorted(segments)))
        self.class_names = tuple(labels)
        kinds = {MODALITIES.get(headers[0].modality, "general") for headers in series.values()}
        self.modality = kinds.pop() if len(kinds) == 1 else "general"
        taken: dict[str, Path] = {}
        for path, name in series_of.items():
            if name not in series:
                what = "expected the series that it refers to, found none; add the series"
            elif taken.setdefault(name, path) != path:
                what = f"expected one SEG a series, got {taken[name].name} too; remove one of them"
            else:
                yield self._case(series[name], path)
                continue
            yield _failing(path, DataError(f"{path}: {what}"))

    def _case(self, headers: Sequence[Header], mask: Path) -> Case:
        def read() -> list[tuple[Record, Mask]]:
            check_series(headers)
            records = _records(headers, mask)
            for header in headers:
                read_pixels(header.path)
            return [(record, self.mask(record)) for record in records]

        return Case(mask, read)

    def pixels(self, record: Record) -> Pixels:
        """The slice in the patient's axes, in rescaled units such as Hounsfield's."""
        return Turn.of(read_header(record.image).orientation).apply(read_pixels(record.image))

    def mask(self, record: Record) -> Mask:
        """Its classes in the same axes, numbered as the labels of the whole set come."""
        header = read_header(record.image)
        classes = {label: number for number, label in enumerate(self.class_names, start=1)}
        return Turn.of(header.orientation).apply(_slice_classes(record.mask, header.instance, classes))


def _failing(path: Path, error: DataError) -> Case:
    def read() -> list[tuple[Record, Mask]]:
        raise error

    return Case(path, read)


def _records(headers: Sequence[Header], mask: Path) -> list[Record]:
    distance = slice_distance(headers)
    site = headers[0].institution.replace("/", "-").replace("\\", "-").lstrip(".").strip() or "site"
    return [
        Record(
            header.path,
            mask,
            header.patient or header.series,
            site,
            None if header.spacing is None else Turn.of(header.orientation).spacing(header.spacing),
            index,
            header.series,
            distance,
        )
        for index, header in enumerate(headers)
    ]


def one_series(where: Path) -> list[Header]:
    """The slices of the one series in a folder, in order of their places, or one slice.

    Raises:
        DataError: none or several series, or slices that form no volume.
    """
    if where.is_file():
        return [read_header(where)]
    series, _, broken = series_below(where)
    if broken:
        raise broken[0][1]
    if len(series) != 1:
        raise DataError(
            f"{where}: expected one DICOM series, got {len(series)}; give the folder, or a slice, of one series"
        )
    (headers,) = series.values()
    check_series(headers)
    return headers


def write_segmentation(
    headers: Sequence[Header], classes: np.ndarray[Any, np.dtype[np.uint8]], names: Sequence[str], out: Path
) -> None:
    """Write class maps as DICOM SEG that refers to the slices.

    Args:
        headers: slices of one series.
        classes: uint8 [slices, H, W] with the slices' rows and columns as they are stored.
        names: labels of the classes from 1 on.
        out: file to write.

    Raises:
        DataError: the slices lack what a SEG takes over from them.
    """
    hd, codes, pydicom = require("highdicom"), require("pydicom.sr.codedict").codes, require("pydicom")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="ppcmi-fast", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, start=1)
    ]
    try:
        with warnings.catch_warnings():
            # What it thinks of the patient's name is no matter of the mask's.
            warnings.filterwarnings("ignore", message=".*person name", category=UserWarning)
            found = hd.seg.Segmentation(
                source_images=[pydicom.dcmread(header.path) for header in headers],
                pixel_array=classes,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=hd.UID(),
                series_number=9000,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="ppcmi-fast",
                manufacturer_model_name="ppcmi-fast",
                software_versions=__version__,
                device_serial_number="0",
                # Emptiness is a finding, too: a SEG without any frame would not be a valid one.
                omit_empty_frames=bool(classes.any()),
            )
    except AttributeError as error:
        raise DataError(
            f"{headers[0].path.parent}: expected slices with the attributes that a SEG takes over, got {error}; export"
            " them whole"
        ) from None
    found.save_as(out)
