"""Phantoms in published layouts: what the readers make of them, same bytes again, sites that differ, their physics."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the published layouts are written with the extra [data]")

import SimpleITK as sitk
import tifffile
from scipy.ndimage import gaussian_filter

from ppcmi_fast.data import phantom_acdc, phantom_nerve, phantom_psfh
from ppcmi_fast.data.phantom import write_native
from ppcmi_fast.data.phantom_shapes import draw_scanner, speckle
from ppcmi_fast.data.phantom_ultrasound import DYNAMIC_RANGE_DB, show
from ppcmi_fast.data.readers import open_dataset
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.data.splits import split_by_subject
from ppcmi_fast.errors import DataError

Array = np.ndarray[Any, Any]

# Kind, layout, classes with the background.
KINDS = {
    "psfh": ("psfhs", 3),
    "nerve": ("nerve", 2),
    "fumpe": ("fumpe", 2),
    "heart": ("msd", 2),
    "acdc": ("acdc", 4),
}
# What draws a picture, or a volume, of the kinds whose drawing is looked at here.
DRAWN_BY = {
    "psfh": (phantom_psfh, "psfh_frame"),
    "nerve": (phantom_nerve, "nerve_frame"),
    "acdc": (phantom_acdc, "acdc_volume"),
}
SUBJECTS, SITES, SIZE = 9, 3, 64
SCANNER = {"gain": 1.0, "noise": 1.0, "blur": 0.8, "anatomy": 1.0}
RAYLEIGH = 1.91  # mean / standard deviation


@pytest.fixture(scope="module", params=KINDS)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Each kind, nine subjects at three sites, read back."""
    root = tmp_path_factory.mktemp("phantoms") / request.param
    assert write_native(request.param, root, subjects=SUBJECTS, sites=SITES, seed=4, size=SIZE) == SUBJECTS
    return open_dataset(root)


def test_the_reader_finds_layout_classes_subjects_and_sites(dataset: Dataset) -> None:
    layout, classes = KINDS[dataset.root.name]
    assert (dataset.layout, dataset.classes, dataset.broken) == (layout, classes, [])
    subjects = {record.subject: record.site for record in dataset.records}
    assert sorted(subjects.values()) == sorted(f"site-{number % SITES}" for number in range(SUBJECTS))
    for site in set(subjects.values()):
        own = [record.classes for record in dataset.records if record.site == site]
        assert set().union(*own) == set(range(1, classes))
    split_by_subject(dataset.records)


@pytest.mark.parametrize("kind", DRAWN_BY)
def test_pixels_and_masks_are_those_that_were_drawn(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = DRAWN_BY[kind]
    draw = getattr(module, name)
    drawn: list[tuple[Array, Array]] = []

    def draw_and_keep(*arguments: Any) -> tuple[Array, Array]:
        image, mask = draw(*arguments)
        drawn.extend(zip(image, mask, strict=True) if image.ndim == 3 else [(image, mask)])
        return image, mask

    monkeypatch.setattr(module, name, draw_and_keep)
    write_native(kind, tmp_path / kind, subjects=2, sites=2, size=48)
    dataset = open_dataset(tmp_path / kind)
    assert len(dataset.records) == len(drawn) > 0
    for record, (image, mask) in zip(dataset.records, drawn, strict=True):
        np.testing.assert_array_equal(dataset.source.pixels(record), image)
        np.testing.assert_array_equal(dataset.source.mask(record), mask)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes_and_another_others(kind: str, tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((3, 3, 5)):
        root = tmp_path / str(number)
        write_native(kind, root, subjects=2, sites=2, seed=seed, size=32)
        contents.append(
            {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        )
    assert contents[0] == contents[1] != contents[2]


def test_sites_differ_in_brightness(dataset: Dataset) -> None:
    sites: dict[str, list[float]] = {}
    for record in dataset.records:
        brightness = np.clip(dataset.source.pixels(record), 0, None).mean()  # air in CT is far below 0
        sites.setdefault(record.site, []).append(float(brightness))
    means = [np.mean(values) for values in sites.values()]
    assert len(means) == SITES and np.ptp(means) > 0.05 * np.mean(means)


def read_image(path: Path) -> Any:
    """As SimpleITK has it."""
    return sitk.ReadImage(str(path))


def neighbours_alike(image: Array) -> float:
    """Correlation of neighbouring pixels once the coarse picture is taken away: how wide a grain of speckle is."""
    fine = image - gaussian_filter(image, 6)
    return float(np.corrcoef(fine[1:].ravel(), fine[:-1].ravel())[0, 1])


def picture(kind: str, **scanner: float) -> tuple[Array, Array]:
    """One slice or frame of one subject, always the same, by a scanner that differs from SCANNER."""
    found = SCANNER | scanner
    rng = np.random.default_rng(6)
    if kind == "psfh":
        pelvis = phantom_psfh.draw_pelvis(rng, found["anatomy"])
        return phantom_psfh.psfh_frame(rng, pelvis, found, 0.0, 256)
    if kind == "nerve":
        neck = phantom_nerve.draw_neck(rng, found["anatomy"])
        return phantom_nerve.nerve_frame(rng, neck, found, 0.5, True, 256)
    patient = phantom_acdc.draw_patient(rng, "NOR", found["anatomy"])
    image, mask = phantom_acdc.acdc_volume(rng, patient, found, False, 128, 5)
    return image[5], mask[5]


@pytest.mark.parametrize("kind", DRAWN_BY)
def test_gain_resolution_and_anatomy_of_a_scanner_show(kind: str) -> None:
    dim, bright = (picture(kind, gain=gain)[0].mean() for gain in (0.8, 1.25))
    assert bright > 1.1 * dim
    alike = [neighbours_alike(picture(kind, blur=blur)[0].astype(float)) for blur in (0.45, 1.0)]
    assert alike[1] > alike[0] + 0.03
    small, large = ((picture(kind, anatomy=anatomy)[1] > 0).sum() for anatomy in (0.88, 1.14))
    assert large > 1.3 * small


def test_psfh_has_the_types_of_the_published_set(tmp_path: Path) -> None:
    write_native("psfh", tmp_path / "p", subjects=1, sites=1)
    image = read_image(tmp_path / "p" / "image_mha" / "00001.mha")
    values, mask = (
        sitk.GetArrayFromImage(read_image(tmp_path / "p" / folder / "00001.mha"))
        for folder in ("image_mha", "label_mha")
    )
    assert image.GetPixelIDTypeAsString() == "8-bit unsigned integer" and values.shape == (3, 256, 256)
    assert (values == values[0]).all() and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1, 2}
    rows = list(csv.DictReader((tmp_path / "p" / "sites.csv").read_text().splitlines()))
    assert rows[0] == {"image": "image_mha/00001.mha", "site": "site-0"} and len(rows) == phantom_psfh.FRAMES


@pytest.mark.parametrize("seed", [0, 1])
def test_frames_of_a_subject_are_grouped_and_those_of_others_kept_apart(tmp_path: Path, seed: int) -> None:
    count = 24
    write_native("psfh", tmp_path / "p", subjects=count, seed=seed, size=48)
    groups = [record.subject for record in open_dataset(tmp_path / "p").records]
    clips = [groups[i : i + phantom_psfh.FRAMES] for i in range(0, len(groups), phantom_psfh.FRAMES)]
    assert len(clips) == count == len(set(groups))
    assert all(len(set(clip)) == 1 for clip in clips)


def test_the_head_comes_down_and_the_speckle_partly_moves() -> None:
    pelvis = phantom_psfh.draw_pelvis(np.random.default_rng(0), 1.0)
    rng = np.random.default_rng(1)
    (first, early), (last, late), (again, _) = (
        phantom_psfh.psfh_frame(rng, pelvis, SCANNER, level, 128) for level in (0.0, 1.0, 1.0)
    )
    assert not np.array_equal(early, late) and (early == 1).sum() == (late == 1).sum() > 0
    middle = [np.argwhere(mask == phantom_psfh.HEAD).mean(0) for mask in (early, late)]
    assert middle[1][1] > middle[0][1] + 1 and middle[1][0] < middle[0][0] - 1
    tissue = (late == 0) & (last > 0) & (again > 0)
    alike = np.corrcoef(last[tissue], again[tissue])[0, 1]
    assert 0.5 < alike < 0.99
    assert not np.array_equal(first, last)


def test_speckle_keeps_rayleigh_statistics_when_scatterers_move() -> None:
    rng, later = np.random.default_rng(0), np.random.default_rng(1)
    envelope = 10 ** (speckle(rng, np.full((160, 160), -20.0), (1.2, 1.5), later, 0.3) / 20)
    assert envelope.mean() / envelope.std() == pytest.approx(RAYLEIGH, rel=0.06)


def test_a_homogeneous_region_shows_rayleigh_statistics_in_the_picture() -> None:
    shown = show(np.random.default_rng(0), np.full((200, 200), -25.0), SCANNER)
    # Back through the log compression.
    envelope = 10 ** ((shown / 255 * DYNAMIC_RANGE_DB) / 20)
    assert (shown < 255).mean() > 0.98
    assert envelope.mean() / envelope.std() == pytest.approx(RAYLEIGH, rel=0.08)


def test_echoes_fade_with_depth() -> None:
    near, far = [], []
    for subject in range(8):
        rng = np.random.default_rng(subject)
        neck = phantom_nerve.draw_neck(rng, 1.0)
        image, _ = phantom_nerve.nerve_frame(rng, neck, SCANNER, 0.5, False, 96)
        near.append(image[: len(image) // 5].mean())
        far.append(image[-len(image) // 5 :].mean())
        pelvis = phantom_psfh.draw_pelvis(rng, 1.0)
        frame, mask = phantom_psfh.psfh_frame(rng, pelvis, SCANNER, 0.0, 96)
        tissue = np.where((mask == 0) & (frame > 0), frame, np.nan)
        near.append(np.nanmean(tissue[:35]))
        far.append(np.nanmean(tissue[-35:]))
    assert np.mean(near[::2]) > 1.15 * np.mean(far[::2]) and np.mean(near[1::2]) > 1.15 * np.mean(far[1::2])


def test_nerve_has_the_sizes_and_tables_of_the_published_set(tmp_path: Path) -> None:
    write_native("nerve", tmp_path / "n", subjects=1, sites=1)
    frame = tifffile.imread(tmp_path / "n" / "train" / "1_1.tif")
    assert frame.shape == (420, 580) and frame.dtype == np.uint8
    masks = [tifffile.imread(path) for path in (tmp_path / "n" / "train").glob("*_mask.tif")]
    assert set(np.unique(np.stack(masks))) == {0, 255}
    assert (tmp_path / "n" / "train_masks.csv").read_text().startswith("subject,img,pixels\n1,1,")


def test_most_nerve_masks_are_empty(tmp_path: Path) -> None:
    write_native("nerve", tmp_path / "n", subjects=20, size=32)
    dataset = open_dataset(tmp_path / "n")
    assert 0.5 < dataset.empty_masks / len(dataset.records) < 0.7


def test_a_frame_without_the_nerve_lacks_it_in_the_picture() -> None:
    neck = phantom_nerve.draw_neck(np.random.default_rng(2), 1.0)
    (with_it, mask), (without, empty) = (
        phantom_nerve.nerve_frame(np.random.default_rng(3), neck, SCANNER, 0.5, visible, 160)
        for visible in (True, False)
    )
    assert mask.max() == 1 and empty.max() == 0
    skin = int(160 * neck.fat / 2)
    np.testing.assert_array_equal(with_it[:skin], without[:skin])
    inside = mask == 1
    # The trunks' bright sheath lies where there is dark muscle otherwise.
    assert np.median(with_it[inside]) > np.median(without[inside]) + 15


def volumes(group: str, systole: bool = False) -> tuple[Array, Array]:
    """Image and mask of a patient at 3 mm a pixel."""
    patient = phantom_acdc.draw_patient(np.random.default_rng(7), group, 1.0)
    return phantom_acdc.acdc_volume(np.random.default_rng(0), patient, SCANNER, systole, 128, 5)


def count(mask: Array, label: int) -> int:
    """Voxels of a class."""
    return int((mask == label).sum())


def test_anatomy_follows_the_diagnosis() -> None:
    normal = volumes("NOR")[1]
    assert count(volumes("DCM")[1], phantom_acdc.LEFT) > 1.5 * count(normal, phantom_acdc.LEFT)
    assert count(volumes("HCM")[1], phantom_acdc.MYOCARDIUM) > 1.4 * count(normal, phantom_acdc.MYOCARDIUM)
    assert count(volumes("RV")[1], phantom_acdc.RIGHT) > 1.4 * count(normal, phantom_acdc.RIGHT)
    for group, low, high in (("NOR", 0.5, 0.75), ("DCM", 0.05, 0.35), ("MINF", 0.2, 0.45)):
        diastole, systole = (count(volumes(group, phase)[1], phantom_acdc.LEFT) for phase in (False, True))
        assert low < 1 - systole / diastole < high, group


def test_the_left_ventricle_is_whole_and_lies_beside_the_right_one() -> None:
    image, mask = volumes("NOR")
    assert 7 <= len(mask) <= 10
    for lower, upper in zip(mask[:-1], mask[1:], strict=True):
        both = ((lower == phantom_acdc.LEFT) & (upper == phantom_acdc.LEFT)).sum()
        assert both > 0.6 * (lower == phantom_acdc.LEFT).sum() > 0
    left = mask == phantom_acdc.LEFT
    around = np.zeros_like(left)
    for axis in (1, 2):
        for step in (-1, 1):
            around |= np.roll(left, step, axis)
    # Muscle all around: the cavity touches nothing else.
    assert set(np.unique(mask[around & ~left])) == {phantom_acdc.MYOCARDIUM}
    columns = [np.argwhere(mask == label)[:, 2].mean() for label in (phantom_acdc.RIGHT, phantom_acdc.LEFT)]
    assert columns[0] < columns[1]
    assert image[left].mean() > 1.8 * image[mask == phantom_acdc.MYOCARDIUM].mean()


def test_only_the_heart_moves() -> None:
    (first, early), (last, late) = volumes("NOR"), volumes("NOR", True)
    far = np.ones(first.shape, dtype=bool)
    rows, columns = (np.argwhere((early + late) > 0)[:, axis] for axis in (1, 2))
    far[:, rows.min() - 12 : rows.max() + 12, columns.min() - 12 : columns.max() + 12] = False
    noise = 0.028 * phantom_acdc.UNITS * np.sqrt(2)
    assert np.abs(first[far].astype(float) - last[far]).mean() < noise
    changed = (early == phantom_acdc.LEFT) & (late == phantom_acdc.MYOCARDIUM)
    assert np.abs(first[changed].astype(float) - last[changed]).mean() > 4 * noise


def test_acdc_headers_and_groups(tmp_path: Path) -> None:
    write_native("acdc", tmp_path / "a", subjects=10, sites=2, size=32)
    header = read_image(tmp_path / "a" / "patient001" / "patient001_frame01.nii.gz")
    assert (
        header.GetSpacing() == pytest.approx((12.0, 12.0, 10.0))
        and header.GetPixelIDTypeAsString() == "16-bit signed integer"
    )
    assert header.GetDirection() == pytest.approx((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    dataset = open_dataset(tmp_path / "a")
    groups = {(record.subject, record.site, record.group) for record in dataset.records}
    for site in ("site-0", "site-1"):
        assert sorted(group for _, own, group in groups if own == site) == sorted(phantom_acdc.GROUPS)
    info = (tmp_path / "a" / "patient001" / "Info.cfg").read_text()
    frames = {path.name for path in (tmp_path / "a" / "patient001").glob("*_gt.nii.gz")}
    systole = int(info.split("ES: ")[1].split()[0])
    assert frames == {f"patient001_frame{frame:02d}_gt.nii.gz" for frame in (1, systole)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "brain"}, "kind: expected one of psfh"),
        ({"subjects": 0}, "subjects: expected at least 1"),
        ({"sites": 0}, "sites: expected at least 1"),
        ({"subjects": 2, "sites": 3}, "use more, or fewer sites"),
        ({"size": 8}, "size: expected at least 32"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arguments = {"kind": "psfh"} | changes
    with pytest.raises(ValueError, match=message):
        write_native(arguments.pop("kind"), tmp_path / "p", **arguments)
    assert not (tmp_path / "p").exists()


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(DataError, match="expected a new or empty folder"):
        write_native("psfh", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_scanners_are_of_the_site_and_not_of_the_subject() -> None:
    assert draw_scanner(0, 1) == draw_scanner(0, 1) != draw_scanner(0, 2)
