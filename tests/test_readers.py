"""Published layouts as they come: what they hold, and every way in which a download can be damaged."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from native_layouts import WRITERS, acdc, disc, fumpe, jnu_ifm, msd, nerve, psfhs, write_itk, write_slice
from PIL import Image

from ppcmi_fast.data.arrays import load_arrays
from ppcmi_fast.data.readers import ReadOptions, open_dataset
from ppcmi_fast.data.readers.msd import MsdReader
from ppcmi_fast.data.readers.nerve import decode_runs, encode_runs
from ppcmi_fast.data.readers.volumes import read_volume, write_labels
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.data.similarity import group_similar
from ppcmi_fast.errors import DataError


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_is_found_and_becomes_tensors(layout: str, tmp_path: Path) -> None:
    dataset = open_dataset(WRITERS[layout](tmp_path / "Größe 1"))
    assert dataset.layout == layout and not dataset.broken
    assert len({record.subject for record in dataset.records}) == 4
    arrays = load_arrays(dataset, 32)
    assert arrays.images.shape == (len(dataset.records), 1, 32, 32)
    assert arrays.images.min() >= 0 and arrays.images.max() <= 1
    assert set(arrays.masks.unique().tolist()) == set(range(dataset.classes))
    for record, mask in zip(dataset.records, arrays.masks, strict=True):
        assert record.classes == tuple(label for label in mask.unique().tolist() if label)


def test_psfhs_groups_frames_that_look_alike(tmp_path: Path) -> None:
    dataset = open_dataset(psfhs(tmp_path / "d"))
    subjects = [record.subject for record in dataset.records]
    assert [subjects[i] == subjects[i + 1] for i in range(7)] == [True, False] * 3 + [True]
    assert dataset.class_names == ("pubic symphysis", "fetal head") and dataset.classes == 3


def test_similar_frames_are_connected_through_others() -> None:
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 40, 50))
    sweep = {f"{i}": (1 - i / 9) * start + i / 9 * end for i in range(10)}
    other = rng.normal(size=(40, 50))
    groups = group_similar({**sweep, "other": other, "broken": None}, alike=0.9)
    assert len({groups[name] for name in sweep}) == 1
    assert len(set(groups.values())) == 3
    assert group_similar({}) == {}


def test_jnu_ifm_maps_7_and_8_and_takes_videos_for_subjects(tmp_path: Path) -> None:
    dataset = open_dataset(jnu_ifm(tmp_path / "d"))
    record = dataset.records[0]
    assert record.subject == "2019_0000" and record.classes == (1, 2)
    stored = np.asarray(Image.open(record.mask))
    assert np.array_equal(dataset.source.mask(record) == 2, stored == 8)


def test_nerve_keeps_or_drops_empty_masks_and_says_how_many(tmp_path: Path) -> None:
    root = nerve(tmp_path / "d")
    kept, dropped = open_dataset(root), open_dataset(root, options=ReadOptions(drop_empty=True))
    assert (len(kept.records), len(dropped.records)) == (12, 4)
    assert kept.empty_masks == dropped.empty_masks == 8


def test_nerve_run_lengths_go_down_the_columns_from_1() -> None:
    mask = decode_runs("1 2 6 1", 3, 2)
    assert mask.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert encode_runs(mask) == "1 2 6 1" and encode_runs(np.zeros((3, 2), np.int64)) == ""
    for text, message in (("1", "pairs"), ("0 1", "within 1..6"), ("5 3", "within 1..6"), ("a b", "invalid")):
        with pytest.raises(ValueError, match=message):
            decode_runs(text, 3, 2)


def test_nerve_reads_masks_from_the_table_alone(tmp_path: Path) -> None:
    root = nerve(tmp_path / "d")
    before = load_arrays(open_dataset(root), 32).masks
    for path in (root / "train").glob("*_mask.tif"):
        path.unlink()
    assert torch.equal(load_arrays(open_dataset(root), 32).masks, before)


def test_nerve_lists_a_mask_that_is_not_the_tables(tmp_path: Path) -> None:
    root = nerve(tmp_path / "d")
    tifffile.imwrite(root / "train" / "2_1_mask.tif", np.roll(disc((42, 58), 9), 3, 0) * np.uint8(255))
    dataset = open_dataset(root, options=ReadOptions(max_broken=0.1))
    assert [name for name, _ in dataset.broken] == ["train/2_1.tif"]
    assert "expected the mask of train_masks.csv" in dataset.broken[0][1]


def test_fumpe_is_in_hounsfield_units_by_instance_number(tmp_path: Path) -> None:
    dataset = open_dataset(fumpe(tmp_path / "d"), options=ReadOptions(window=(-900, -500)))
    second = [record for record in dataset.records if record.subject == "PAT002"]
    reader = dataset.source
    assert [float(reader.pixels(record)[0, 0]) for record in second] == [-798, -698, -598]
    assert [bool(reader.mask(record).any()) for record in second] == [False, True, True]
    assert second[0].spacing == (0.7, 0.7)
    images = load_arrays(dataset, 32, second).images
    assert images.mean((1, 2, 3)).tolist() == pytest.approx([102 / 400, 202 / 400, 302 / 400], abs=1e-4)


def test_msd_names_its_classes_and_skips_what_archives_add(tmp_path: Path) -> None:
    dataset = open_dataset(msd(tmp_path / "d"))
    assert dataset.class_names == ("left atrium",) and dataset.classes == 2
    assert len(dataset.records) == 4 * 6 and {r.index for r in dataset.records} == set(range(6))
    assert dataset.records[0].spacing == pytest.approx((1.25, 1.25))


def test_volumes_are_turned_to_the_patients_axes_with_their_masks(tmp_path: Path) -> None:
    # The same anatomy stored along turned axes gives the same slices.
    values = np.random.default_rng(0).normal(size=(5, 20, 24)).astype(np.float32)
    labels = np.zeros((5, 20, 24), np.uint8)
    labels[:, 2:9, 3:7] = 1
    plain, turned = tmp_path / "plain", tmp_path / "turned"
    for root, flip in ((plain, False), (turned, True)):
        geometry = {"Direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)} if flip else {}
        for part, array in (("imagesTr", values), ("labelsTr", labels)):
            write_itk(
                array[:, :, ::-1].copy() if flip else array, root / part / "a.nii.gz", (1, 1, 4), **geometry
            )
    first, second = (open_dataset(root).records for root in (plain, turned))
    reader = MsdReader()
    for a, b in zip(first, second, strict=True):
        assert np.allclose(reader.pixels(a), reader.pixels(b))
        assert np.array_equal(reader.mask(a), reader.mask(b)) and reader.mask(a).any()


@pytest.mark.parametrize(
    ("shape", "spacing", "direction"),
    [
        ((5, 20, 24), (1.0, 1.2, 6.0), (1, 0, 0, 0, 1, 0, 0, 0, 1)),
        ((5, 20, 24), (1.0, 1.2, 6.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1)),
        ((20, 6, 24), (1.0, 8.0, 1.1), (1, 0, 0, 0, 1, 0, 0, 0, -1)),
        ((7, 20, 24), (1.0, 1.0, 1.0), (0, 0, 1, 1, 0, 0, 0, 1, 0)),
    ],
)
def test_class_maps_are_written_where_the_source_lies(
    shape: tuple[int, ...], spacing: tuple[float, ...], direction: tuple[int, ...], tmp_path: Path
) -> None:
    # The slices of the source itself, written as labels, must be the source again, voxel by voxel.
    values = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    source, out = tmp_path / "source.nii.gz", tmp_path / "labels.nii.gz"
    write_itk(values, source, spacing, Direction=direction, Origin=(3.0, -7.0, 11.0))
    write_labels(read_volume(source).values.astype(np.uint8), source, out)
    before, after = sitk.ReadImage(str(source)), sitk.ReadImage(str(out))
    assert np.array_equal(sitk.GetArrayFromImage(after), values)
    for name in ("Origin", "Spacing", "Direction", "Size"):
        assert np.allclose(getattr(before, f"Get{name}")(), getattr(after, f"Get{name}")(), atol=1e-5), name


def test_slices_are_cut_across_the_coarse_axis(tmp_path: Path) -> None:
    values = np.zeros((20, 6, 24), np.float32)  # z y x, coarse along y
    write_itk(values, tmp_path / "d" / "imagesTr" / "a.nii", (1.0, 8.0, 1.0))
    write_itk(np.ones_like(values, np.uint8), tmp_path / "d" / "labelsTr" / "a.nii", (1.0, 8.0, 1.0))
    records = open_dataset(tmp_path / "d").records
    assert len(records) == 6 and records[0].spacing == (1, 1)
    assert MsdReader().pixels(records[0]).shape == (20, 24)


def test_acdc_keeps_groups_and_frames_of_a_patient_together(tmp_path: Path) -> None:
    dataset = open_dataset(acdc(tmp_path / "d"))
    assert {r.group for r in dataset.records} == {"DCM", "NOR"} and dataset.classes == 4
    first = [r for r in dataset.records if r.subject == "patient001"]
    assert len(first) == 8 and len({r.image for r in first}) == 2
    assert dataset.class_names == ("right ventricle", "myocardium", "left ventricle")


Damage = Callable[[Path], object]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED: list[tuple[str, Damage, str, str]] = [
    (
        "psfhs",
        lambda d: truncated(d / "image_mha" / "00002.mha"),
        "image_mha/00002.mha",
        "readable image, got a damaged",
    ),
    (
        "psfhs",
        lambda d: truncated(d / "label_mha" / "00003.mha"),
        "image_mha/00003.mha",
        "readable image, got a damaged",
    ),
    ("psfhs", lambda d: (d / "image_mha" / "00001.mha").unlink(), "image_mha/00001.mha", "found nothing"),
    (
        "psfhs",
        lambda d: write_itk(np.zeros((9, 9), np.uint8), d / "label_mha" / "00004.mha"),
        "image_mha/00004.mha",
        r"shape of its image 00004.mha \[64, 64\], got \[9, 9\]",
    ),
    (
        "msd",
        lambda d: truncated(d / "imagesTr" / "la_001.nii.gz"),
        "imagesTr/la_001.nii.gz",
        "got a damaged file",
    ),
    ("msd", lambda d: (d / "labelsTr" / "la_002.nii.gz").unlink(), "imagesTr/la_002.nii.gz", "found nothing"),
    (
        "msd",
        lambda d: write_itk(disc((6, 30, 32), 8), d / "labelsTr" / "la_001.nii.gz", (2.0, 2.0, 2.7)),
        "imagesTr/la_001.nii.gz",
        "expected the spacing of its image 2.7 x 1.25 x 1.25 mm, got 2.7 x 2 x 2 mm",
    ),
    (
        "msd",
        lambda d: write_itk(disc((6, 30, 32), 8) * 0.5, d / "labelsTr" / "la_001.nii.gz", (1.25, 1.25, 2.7)),
        "imagesTr/la_001.nii.gz",
        "expected whole class indices",
    ),
    (
        "msd",
        lambda d: sitk.WriteImage(
            sitk.GetImageFromArray(np.zeros((6, 30, 32, 3), np.uint8), isVector=True),
            str(d / "imagesTr" / "la_001.nii.gz"),
        ),
        "imagesTr/la_001.nii.gz",
        "expected grey values, got 3 components",
    ),
    (
        "fumpe",
        lambda d: truncated(d / "CT_scans" / "PAT002" / "D0002.dcm"),
        "CT_scans/PAT002",
        "D0002.dcm: expected a readable DICOM",
    ),
    (
        "fumpe",
        lambda d: write_slice(d / "CT_scans" / "PAT003" / "D0009.dcm", np.zeros((32, 32)), 9, spacing=0.9),
        "CT_scans/PAT003",
        "expected slices of one spacing",
    ),
    ("fumpe", lambda d: truncated(d / "GroundTruth" / "PAT001.mat"), "CT_scans/PAT001", "readable .mat file"),
    ("fumpe", lambda d: shutil.rmtree(d / "CT_scans" / "PAT004"), "CT_scans/PAT004", "expected DICOM slices"),
    ("nerve", lambda d: truncated(d / "train" / "1_2.tif"), "train/1_2.tif", "got a damaged file"),
    (
        "nerve",
        lambda d: tifffile.imwrite(d / "train" / "1_2.tif", np.zeros((42, 58, 3), np.uint8)),
        "train/1_2.tif",
        "expected grey values of 8 bits, got uint8",
    ),
    (
        "nerve",
        lambda d: tifffile.imwrite(d / "train" / "1_2.tif", np.zeros((42, 58), np.uint16)),
        "train/1_2.tif",
        "expected grey values of 8 bits, got uint16",
    ),
    (
        "jnu-ifm",
        lambda d: Image.fromarray(disc((40, 50), 9, 5)).save(d / "mask" / "2019_0001_0_mask.png"),
        "image/2019_0001_0.png",
        "expected the values 0, 7 and 8, got 5",
    ),
]


@pytest.mark.parametrize(("layout", "damage", "name", "message"), DAMAGED)
def test_a_broken_file_is_listed_and_ends_the_run_only_above_a_share(
    layout: str, damage: Damage, name: str, message: str, tmp_path: Path
) -> None:
    root = WRITERS[layout](tmp_path / "d")
    damage(root)
    whole = len(open_dataset(WRITERS[layout](tmp_path / "whole")).records)
    dataset: Dataset = open_dataset(root, options=ReadOptions(max_broken=0.5))
    ((listed, reason),) = dataset.broken
    assert listed == name and 0 < len(dataset.records) < whole
    with pytest.raises(AssertionError if not message else DataError, match=message):
        raise DataError(reason)
    with pytest.raises(DataError, match=r"expected at most 0% unreadable files, got 1 of"):
        open_dataset(root, options=ReadOptions(max_broken=0))


def test_16_bits_and_negative_units_are_kept(tmp_path: Path) -> None:
    values = np.linspace(-1000, 3000, 6 * 30 * 32).reshape(6, 30, 32).astype(np.int16)
    root = msd(tmp_path / "d", 1)
    write_itk(
        values,
        root / "imagesTr" / "la_000.nii.gz",
        (1.25, 1.25, 2.7),
        Direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1),
    )
    reader = MsdReader()
    found = np.stack([reader.pixels(record) for record in open_dataset(root).records])
    assert (found.min(), found.max()) == (-1000, 3000)


def test_two_files_of_one_name_are_both_named(tmp_path: Path) -> None:
    root = msd(tmp_path / "d")
    shutil.copy(root / "imagesTr" / "la_001.nii.gz", root / "imagesTr" / "la_001.nii")
    with pytest.raises(
        DataError, match=r"expected one file of each name, got la_001\.nii and la_001\.nii\.gz"
    ):
        open_dataset(root)


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "Task02_Heart.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", "b")
    with pytest.raises(DataError, match="expected a folder, got an archive; unpack it"):
        open_dataset(archive)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DataError, match="got a file; give the folder"):
        open_dataset(tmp_path / "file.txt")
    with pytest.raises(DataError, match="found none; check the path"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found an empty folder"):
        open_dataset(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("")
    with pytest.raises(
        DataError, match=r"expected a known layout \(folder: manifest\.csv .*write a manifest"
    ):
        open_dataset(tmp_path / "other")
    both = psfhs(msd(tmp_path / "both"))
    with pytest.raises(DataError, match="got the marks of psfhs, msd; name the right one"):
        open_dataset(both)
    assert open_dataset(both, "psfhs").layout == "psfhs"
    with pytest.raises(ValueError, match="layout: expected auto or one of folder, psfhs"):
        open_dataset(both, "dicomdir")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_broken": 2}, "max_broken: expected a share"),
        ({"window": (5, 5)}, "window: expected low < high"),
        ({"classes": 1}, "classes: expected at least 2"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadOptions(**options)  # type: ignore[arg-type]


def test_a_missing_library_names_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ppcmi_fast.errors import ConfigError

    root = nerve(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ConfigError, match=r"tifffile is missing; cure: pip install \"ppcmi-fast\[data\]\""):
        open_dataset(root)
