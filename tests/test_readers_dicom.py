"""DICOM series with DICOM SEG: read in the patient's axes, written in the slices' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from native_layouts import Array, dicom, disc, write_slice

from ppcmi_fast.data.arrays import load_arrays
from ppcmi_fast.data.readers import ReadOptions, open_dataset
from ppcmi_fast.data.readers.dicom import Turn
from ppcmi_fast.data.readers.dicom_seg import one_series, write_segmentation
from ppcmi_fast.errors import DataError

ALL_BROKEN = ReadOptions(max_broken=1.0)


def change(path: Path, **values: Any) -> None:
    found = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(found, name, value)
    found.save_as(path)


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_series_become_slices_with_classes_by_label(tmp_path: Path) -> None:
    dataset = open_dataset(dicom(tmp_path / "Ströme"))
    assert dataset.class_names == ("liver", "spleen") and dataset.classes == 3
    first = [record for record in dataset.records if record.subject == "1.2.826.1"]
    assert {record.site for record in dataset.records} == {"Hospital A-B"}
    assert [record.index for record in first] == [0, 1, 2, 3] and first[0].slice_distance == 2.5
    assert [record.classes for record in first] == [(), (1, 2), (1, 2), (1, 2)]
    labels = np.maximum(disc((4, 32, 40), 9), np.roll(disc((4, 32, 40), 3, 2), 14, 2))
    for index, record in enumerate(first):
        units = np.random.default_rng(10 + index).normal(40, 20, (32, 40)).round()
        np.testing.assert_array_equal(dataset.source.pixels(record), units)
        np.testing.assert_array_equal(dataset.source.mask(record), labels[index] if index else 0 * labels[0])
        assert record.spacing == (0.7, 0.7)


def test_segments_are_matched_by_label_whatever_their_numbers(tmp_path: Path) -> None:
    root = dicom(tmp_path / "d", patients=2)
    labels = np.full((4, 32, 40), 2, np.uint8)
    labels[:, :, :9] = 1
    write_segmentation(one_series(root / "p2" / "ct"), labels, ["spleen", "liver"], root / "p2" / "seg.dcm")
    dataset = open_dataset(root)
    record = next(record for record in dataset.records if record.subject == "1.2.826.2")
    assert dataset.class_names == ("liver", "spleen")
    np.testing.assert_array_equal(dataset.source.mask(record), 3 - labels[0])


def test_damage_is_listed_by_file(tmp_path: Path) -> None:
    root = dicom(tmp_path / "d", patients=6)
    truncate(root / "p1" / "seg.dcm", 0.5)
    truncate(root / "p2" / "ct" / "I2", 0.95)
    for path in (root / "p3" / "ct").iterdir():
        path.unlink()
    (root / "p4" / "again.dcm").write_bytes((root / "p4" / "seg.dcm").read_bytes())
    change(root / "p5" / "ct" / "I1", PixelSpacing=[0.9, 0.9])
    dataset = open_dataset(root, options=ALL_BROKEN)
    reasons = dict(dataset.broken)
    assert "got a damaged one" in reasons["p1/seg.dcm"]
    assert "p2/ct/I2: expected a readable DICOM file" in reasons["p2/seg.dcm"]
    assert "expected the series that it refers to, found none" in reasons["p3/seg.dcm"]
    assert "expected one SEG a series, got again.dcm too" in reasons["p4/seg.dcm"]
    assert "expected slices of one spacing, got (0.7, 0.7), (0.9, 0.9)" in reasons["p5/seg.dcm"]
    assert {record.subject for record in dataset.records} == {"1.2.826.4", "1.2.826.6"}
    with pytest.raises(DataError, match="expected at most 5% unreadable files, got 5 of"):
        open_dataset(root)


def test_a_slice_stored_twice_and_one_without_identifiers_are_named(tmp_path: Path) -> None:
    root = dicom(tmp_path / "d", patients=3)
    change(root / "p1" / "ct" / "I1", ImagePositionPatient=[-10.0, -20.0, 2.5])
    change(root / "p2" / "ct" / "I1", SeriesInstanceUID="")
    reasons = dict(open_dataset(root, options=ALL_BROKEN).broken)
    assert "expected one file a slice, got the place of" in reasons["p1/seg.dcm"]
    assert "expected the identifiers of its series and slice" in reasons["p2/ct/I1"]


def test_segments_that_overlap_are_named(tmp_path: Path) -> None:
    root = dicom(tmp_path / "d", patients=2)
    sources = [pydicom.dcmread(header.path) for header in one_series(root / "p1" / "ct")]
    described = hd.seg.segread(root / "p1" / "seg.dcm").SegmentSequence
    hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ones((4, 32, 40, 2), np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[hd.seg.SegmentDescription.from_dataset(each) for each in described],
        series_instance_uid=hd.UID(),
        series_number=2,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    ).save_as(root / "p1" / "seg.dcm")
    reasons = dict(open_dataset(root, options=ALL_BROKEN).broken)
    assert "two cover one pixel" in reasons["p1/seg.dcm"]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rows", [1, -1])
@pytest.mark.parametrize("columns", [1, -1])
def test_turns_bring_every_axial_slice_to_one_view_and_back(transpose: bool, rows: int, columns: int) -> None:
    wanted = np.arange(12).reshape(3, 4)
    stored = wanted[::rows, ::columns]
    x, y = [columns, 0, 0], [0, rows, 0]
    if transpose:
        stored, x, y = stored.T, y, x
    turn = Turn.of((*x, *y))
    np.testing.assert_array_equal(turn.apply(stored), wanted)
    np.testing.assert_array_equal(turn.undo(wanted), stored)
    assert turn.spacing((2.0, 1.0)) == ((1.0, 2.0) if transpose else (2.0, 1.0))


def series(folder: Path, volume: Array, **changes: Any) -> Path:
    for index, values in enumerate(volume):
        write_slice(folder / f"{index}.dcm", values, index + 1, series="1.2.840.7", **changes)
    return folder


def test_a_prone_scan_lies_as_a_supine_one_does(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(0, 50, (3, 20, 24)).round()
    labels = (volume > 20).astype(np.uint8)
    for name, step, changes in (
        ("supine", 1, {}),
        ("prone", -1, {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}),
    ):
        root = series(tmp_path / name / "ct", volume[:, ::step, ::step], **changes).parent
        write_segmentation(
            one_series(root / "ct"),
            np.ascontiguousarray(labels[:, ::step, ::step]),
            ["bright"],
            root / "s.dcm",
        )
        dataset = open_dataset(root)
        for index, record in enumerate(dataset.records):
            np.testing.assert_array_equal(dataset.source.pixels(record), volume[index])
            np.testing.assert_array_equal(dataset.source.mask(record), labels[index])


def test_a_written_seg_is_aligned_to_its_source_for_another_reader(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(0, 50, (3, 20, 24)).round()
    folder = series(tmp_path / "ct", volume)
    labels = disc((3, 20, 24), 6)
    labels[1, 2:5, 3:9] = 2
    headers = one_series(folder)
    write_segmentation(headers, labels, ["one", "two"], tmp_path / "seg.dcm")
    found = hd.seg.segread(tmp_path / "seg.dcm")
    stack = found.get_pixels_by_source_instance(
        [header.instance for header in headers],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    np.testing.assert_array_equal(stack, labels)
    assert [str(segment.SegmentLabel) for segment in found.SegmentSequence] == ["one", "two"]
    # By geometry alone, as a viewer places it.
    shared = found.SharedFunctionalGroupsSequence[0]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.7, 0.7]
    frames = found.PerFrameFunctionalGroupsSequence
    places = {float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in frames}
    assert places == {2.5, 5.0, 7.5} and str(found.FrameOfReferenceUID) == "1.2.840.7.1"


def test_an_empty_segmentation_is_still_a_seg(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", np.zeros((2, 8, 8)))
    write_segmentation(one_series(folder), np.zeros((2, 8, 8), np.uint8), ["one"], tmp_path / "seg.dcm")
    assert not hd.seg.segread(tmp_path / "seg.dcm").pixel_array.any()


def test_slices_that_a_seg_cannot_refer_to_are_named(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", np.zeros((2, 8, 8)))
    for path in folder.iterdir():
        found = pydicom.dcmread(path)
        del found.StudyInstanceUID
        found.save_as(path)
    with pytest.raises(DataError, match="expected slices with the attributes that a SEG takes over"):
        write_segmentation(one_series(folder), np.zeros((2, 8, 8), np.uint8), ["one"], tmp_path / "s.dcm")


def test_one_series_needs_one_series(tmp_path: Path) -> None:
    series(tmp_path / "ct", np.zeros((2, 8, 8)))
    write_slice(tmp_path / "ct" / "other.dcm", np.zeros((8, 8)), 1, series="1.2.840.8")
    with pytest.raises(DataError, match="expected one DICOM series, got 2"):
        one_series(tmp_path / "ct")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected one DICOM series, got 0"):
        one_series(tmp_path / "empty")
    truncate(tmp_path / "ct" / "other.dcm", 0.1)
    with pytest.raises(DataError, match="expected a readable DICOM file"):
        one_series(tmp_path / "ct")


def test_a_dicom_set_becomes_tensors_with_millimetres(tmp_path: Path) -> None:
    arrays = load_arrays(open_dataset(dicom(tmp_path / "d", patients=2)), 16)
    assert arrays.images.shape == (8, 1, 16, 16) and arrays.masks.unique().tolist() == [0, 1, 2]
    assert arrays.spacing is not None and arrays.spacing[0].tolist() == pytest.approx([1.4, 1.75])
