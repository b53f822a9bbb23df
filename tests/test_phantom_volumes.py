"""Phantoms of CT angiography and of MRI of the left atrium: written as read, and made of what they claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the published layouts are written with the extra [data]")

import pydicom
import SimpleITK as sitk
from scipy.ndimage import binary_dilation, label

from ppcmi_fast.data import phantom_fumpe, phantom_heart
from ppcmi_fast.data.phantom import write_native
from ppcmi_fast.data.phantom_volume_shapes import Grid, Tube, ellipsoid, fill_tube
from ppcmi_fast.data.readers import open_dataset

Array = np.ndarray[Any, Any]
SCANNER = {"gain": 1.0, "noise": 1.0, "blur": 0.7, "anatomy": 1.0}
SLICES = 24


def scan(emboli: int = 5, **scanner: float) -> tuple[phantom_fumpe.Chest, Array, Array]:
    """The same patient by scanners that differ from SCANNER."""
    found = SCANNER | scanner
    rng = np.random.default_rng(3)
    chest = phantom_fumpe.draw_chest(rng, found, emboli)
    return chest, *phantom_fumpe.fumpe_volume(rng, chest, found, 128, SLICES)


def atrium(**scanner: float) -> tuple[Array, Array]:
    found = SCANNER | scanner
    rng = np.random.default_rng(5)
    torso = phantom_heart.draw_torso(rng, found["anatomy"])
    return phantom_heart.heart_volume(rng, torso, found, 128, SLICES)


def test_ct_reads_back_in_hounsfield_units_from_head_to_feet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Array, Array]] = []
    draw = phantom_fumpe.fumpe_volume

    def keep(*arguments: Any) -> tuple[Array, Array]:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(phantom_fumpe, "fumpe_volume", keep)
    phantom_fumpe.write_fumpe(tmp_path, subjects=2, sites=2, seed=1, size=64, slices=12)
    dataset = open_dataset(tmp_path)
    assert {record.subject for record in dataset.records} == {"PAT001", "PAT002"}
    assert {record.site for record in dataset.records} == {"site-0", "site-1"}
    for patient, (units, mask) in zip(("PAT001", "PAT002"), drawn, strict=True):
        own = [record for record in dataset.records if record.subject == patient]
        assert [record.index for record in own] == list(range(12))
        for record, image, truth in zip(own, units[::-1], mask[::-1], strict=True):
            np.testing.assert_array_equal(dataset.source.pixels(record), image)
            np.testing.assert_array_equal(dataset.source.mask(record), truth)
        assert own[0].slice_distance == phantom_fumpe.SLICE_DISTANCE
        assert own[0].spacing == pytest.approx((350 / 64, 350 / 64), rel=1e-4)
    top = pydicom.dcmread(tmp_path / "CT_scans" / "PAT001" / "D0001.dcm")
    below = pydicom.dcmread(tmp_path / "CT_scans" / "PAT001" / "D0002.dcm")
    assert (
        top.InstanceNumber == 1 and top.Modality == "CT" and top.SeriesInstanceUID == below.SeriesInstanceUID
    )
    assert top.SOPInstanceUID != below.SOPInstanceUID and top.FrameOfReferenceUID == below.FrameOfReferenceUID
    assert list(top.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"] and top.PatientPosition == "HFS"
    assert {"KVP", "AcquisitionNumber"} <= set(top.dir())
    assert top.ImagePositionPatient[2] == below.ImagePositionPatient[2] + phantom_fumpe.SLICE_DISTANCE


def test_tissues_have_their_hounsfield_units() -> None:
    chest, units, mask = scan()
    grid = Grid(units.shape, (phantom_fumpe.SLICE_DISTANCE, 350 / 128, 350 / 128))
    arteries = np.zeros(units.shape, dtype=np.float32)
    for tube in chest.arteries[:5]:
        fill_tube(arteries, grid, tube)
    open_vessel = (arteries > 0.99) & ~binary_dilation(mask > 0, iterations=2)
    assert 250 < np.median(units[open_vessel]) < 420
    core = mask.astype(bool)
    assert core.sum() > 30 and 30 < np.median(units[core]) < 130
    assert np.median(units[:, :4, :4]) == pytest.approx(-1000, abs=25)
    lungs = (units < -600) & (units > -960)
    assert np.median(units[lungs]) < -700
    assert (units > 400).any()


def test_emboli_lie_in_arteries_and_leave_some_of_them_open() -> None:
    chest, _, mask = scan()
    _, clean, empty = scan(emboli=0)
    assert not empty.any() and mask.any() and mask.any((1, 2)).mean() < 0.8
    grid = Grid(mask.shape, (phantom_fumpe.SLICE_DISTANCE, 350 / 128, 350 / 128))
    arteries = np.zeros(mask.shape, dtype=np.float32)
    for tube in chest.arteries:
        fill_tube(arteries, grid, tube)
    assert (arteries[mask > 0] > 0.4).all()
    rim = binary_dilation(mask > 0, iterations=2) & (arteries > 0.9) & (mask == 0)
    assert rim.sum() > 0.2 * mask.sum()
    assert clean.shape == mask.shape


def test_vessels_of_the_lungs_stay_out_of_the_liver() -> None:
    slices = 36
    grid = Grid((slices, 128, 128), (phantom_fumpe.SLICE_DISTANCE, 350 / 128, 350 / 128))
    astray = Tube((-66.0, 6.0, -85.0), (-66.0, 6.0, -45.0), 6.0, 6.0)
    where = np.zeros(grid.shape, dtype=np.float32)
    fill_tube(where, grid, astray)
    chest = replace(scan()[0], arteries=[astray], veins=[astray], emboli=[astray])
    units, mask = phantom_fumpe.fumpe_volume(np.random.default_rng(3), chest, SCANNER, 128, slices)
    # The liver has about 60 HU, an artery 250 and more.
    assert (where > 0.9).sum() > 100 and 30 < np.median(units[where > 0.9]) < 100
    assert not mask.any()


def test_scanners_of_ct_differ_in_contrast_noise_and_kernel() -> None:
    weak, strong = (scan(gain=gain)[0].contrast for gain in (0.8, 1.25))
    assert strong > 1.3 * weak
    still, quiet, loud = (scan(noise=noise)[1].astype(float) for noise in (1e-6, 0.7, 1.5))
    middle = still[:, 50:78, 50:78]
    assert (loud[:, 50:78, 50:78] - middle).std() == pytest.approx(
        1.5 / 0.7 * (quiet[:, 50:78, 50:78] - middle).std(), rel=0.05
    )
    edges = [
        np.abs(np.diff(scan(blur=blur, noise=0.01)[1].astype(float), axis=2)).max() for blur in (0.3, 2.0)
    ]
    assert edges[0] > 1.05 * edges[1]


def test_one_patient_in_twelve_has_no_embolus(tmp_path: Path) -> None:
    phantom_fumpe.write_fumpe(tmp_path, subjects=12, sites=2, seed=0, size=64, slices=20)
    dataset = open_dataset(tmp_path)
    shown = {r.subject: False for r in dataset.records}
    for record in dataset.records:
        shown[record.subject] |= bool(record.classes)
    assert not shown["PAT012"] and sum(shown.values()) >= 10


def test_the_atrium_is_one_piece_of_blood_with_walls() -> None:
    image, mask = atrium()
    pieces, count = label(mask)
    assert count == 1 and pieces.max() == 1
    assert 0.25 < mask.any((1, 2)).mean() < 0.95
    inside = image[mask > 0].mean()
    ring = binary_dilation(mask > 0, iterations=3) & ~binary_dilation(mask > 0, iterations=1)
    assert inside > 1.25 * np.median(image[ring])
    # About 60 to 200 ml.
    assert 50 < mask.sum() * (400 / 128) ** 2 * phantom_heart.SLICE_DISTANCE * 1e-3 < 230


def test_scanners_of_mri_differ_in_gain_noise_and_anatomy() -> None:
    assert atrium(gain=1.25)[0].mean() > 1.3 * atrium(gain=0.8)[0].mean()
    assert atrium(noise=1.5)[0][:, :8, :8].mean() > 1.6 * atrium(noise=0.7)[0][:, :8, :8].mean()
    assert atrium(anatomy=1.14)[1].sum() > 1.5 * atrium(anatomy=0.88)[1].sum()


def test_mri_reads_back_along_the_patients_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Array, Array]] = []
    draw = phantom_heart.heart_volume

    def keep(*arguments: Any) -> tuple[Array, Array]:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(phantom_heart, "heart_volume", keep)
    phantom_heart.write_heart(tmp_path, subjects=1, sites=1, seed=1, size=64, slices=12)
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("left atrium",) and dataset.modality == "mri"
    for record, image, truth in zip(dataset.records, *drawn[0], strict=True):
        np.testing.assert_array_equal(dataset.source.pixels(record), image)
        np.testing.assert_array_equal(dataset.source.mask(record), truth)
    header: Any = sitk.ReadImage(str(tmp_path / "imagesTr" / "la_001.nii.gz"))
    assert header.GetDirection() == pytest.approx((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert header.GetSpacing() == pytest.approx((6.25, 6.25, phantom_heart.SLICE_DISTANCE))


def test_default_sizes_take_seconds_at_most(tmp_path: Path) -> None:
    for kind in ("fumpe", "heart"):
        write_native(kind, tmp_path / kind, subjects=1, sites=1)
        assert len(open_dataset(tmp_path / kind).records) == 40


def test_a_tube_is_as_wide_as_its_radii_and_is_cut_by_the_volume() -> None:
    grid = Grid((21, 41, 41), (1.0, 1.0, 1.0))
    share = np.zeros(grid.shape, dtype=np.float32)
    fill_tube(share, grid, Tube((-10.0, 0.0, 0.0), (10.0, 0.0, 0.0), 8.0, 4.0))
    areas = share.sum((1, 2))
    assert areas[0] == pytest.approx(np.pi * 64, rel=0.03) and areas[-1] == pytest.approx(
        np.pi * 16, rel=0.05
    )
    before = share.copy()
    fill_tube(share, grid, Tube((0.0, 60.0, 0.0), (0.0, 90.0, 0.0), 3.0, 3.0))
    np.testing.assert_array_equal(share, before)
    ball = ellipsoid(grid, (0.0, 0.0, 0.0), (6, 6, 6)) < 1
    assert ball.sum() == pytest.approx(4 / 3 * np.pi * 216, rel=0.05)
