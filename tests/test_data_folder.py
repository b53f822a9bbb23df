"""The data folder: what is read, and each kind of damage named before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppcmi_fast.data.arrays import Arrays, load_arrays, to_unit_range
from ppcmi_fast.data.readers import ReadOptions, open_dataset
from ppcmi_fast.data.readers.pictures import grey_values, open_grey
from ppcmi_fast.data.records import Dataset, Record
from ppcmi_fast.data.splits import Split, check_disjoint, split_by_subject
from ppcmi_fast.errors import DataError

REAL = Path(__file__).parents[2] / "shared" / "data"


def write_image(path: Path, height: int = 24, width: int = 32, top: int = 255) -> None:
    ramp = np.linspace(0, top, height * width).reshape(height, width).astype(np.uint8)
    Image.fromarray(ramp).save(path)


def write_mask(path: Path, height: int = 24, width: int = 32, value: int = 1) -> None:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[4:10, 6:20] = value
    Image.fromarray(mask).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    lines = ["image,mask,subject,site"]
    for site in "ab":
        for subject in range(4):
            for index in range(2):
                name = f"{site}{subject}{index}.png"
                write_image(root / "images" / name)
                write_mask(root / "masks" / name)
                lines.append(f"images/{name},masks/{name},{site}{subject},{site}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


def edit(root: Path, old: str, new: str) -> None:
    path = root / "manifest.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_good_folder_is_read(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert (dataset.name, dataset.classes, len(dataset.records), dataset.spacing_known) == (
        "set",
        2,
        16,
        False,
    )
    arrays = load_arrays(dataset, 16)
    assert arrays.images.shape == (16, 1, 16, 16) and arrays.images.dtype == torch.float32
    assert arrays.masks.shape == (16, 16, 16) and set(arrays.masks.unique().tolist()) == {0, 1}
    assert arrays.images.min() == 0 and arrays.images.max() == 1 and arrays.spacing is None
    both = Arrays.concatenate([arrays, arrays])
    assert len(both.images) == len(both.subjects) == 32


def test_spacing_follows_the_resize(folder: Path) -> None:
    lines = (folder / "manifest.csv").read_text().splitlines()
    text = [lines[0] + ",spacing_y,spacing_x", *(line + ",1.0,0.5" for line in lines[1:])]
    (folder / "manifest.csv").write_text("\n".join(text))
    dataset = open_dataset(folder)
    assert dataset.spacing_known
    spacing = load_arrays(dataset, 16).spacing
    assert spacing is not None and spacing[0].tolist() == [1.5, 1.0]  # 24 x 32 pixels became 16 x 16


def test_an_empty_subject_is_the_image_itself(folder: Path) -> None:
    edit(folder, ",a0,a", ",,a")
    subjects = {r.subject for r in open_dataset(folder).records}
    assert {"images/a00.png", "images/a01.png"} <= subjects


def remove_manifest(root: Path) -> None:
    (root / "manifest.csv").unlink()


def truncate(root: Path) -> None:
    path = root / "images" / "a00.png"
    path.write_bytes(path.read_bytes()[:60])


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (
        remove_manifest,
        r"expected a known layout \(folder: manifest.csv with columns image, mask, subject, site;",
    ),
    (
        lambda r: edit(r, "image,mask,subject,site", "image,label,subject,site"),
        "missing mask; add them to line 1",
    ),
    (
        lambda r: (r / "manifest.csv").write_text("image,mask,subject,site\n"),
        "expected a line per image, got none",
    ),
    (lambda r: (r / "masks" / "a00.png").unlink(), r"a00.png: expected an image file, found nothing"),
    (lambda r: edit(r, "masks/a00.png", ""), "line 2: expected an image and its mask"),
    (
        lambda r: write_mask(r / "masks" / "b10.png", 20, 32),
        r"expected the shape of its image b10.png \[24, 32\], got \[20, 32\]",
    ),
    (truncate, "expected a readable image, got a damaged file"),
    (lambda r: (r / "masks" / "a11.png").write_bytes(b"not a png"), "a11.png: expected a readable image"),
    (lambda r: edit(r, "images/a01.png", "images/a00.png"), "expected each image once, got a00.png twice"),
    (
        lambda r: edit(r, "images/a01.png", "images/../images/a00.png"),
        "expected each image once, got a00.png twice",
    ),
    (
        lambda r: edit(r, "masks/a01.png", "masks/a00.png"),
        "a mask of its own for each image, got .*masks/a00.png for .*images/a00.png and .*images/a01.png; correct",
    ),
    (
        lambda r: edit(r, "masks/a01.png", "images/../masks/a00.png"),
        "a mask of its own for each image, got .*masks/a00.png for .*images/a00.png and .*images/a01.png; correct",
    ),
    (
        lambda r: edit(r, ",a0,a", ",a0,a,b"),
        "line 2: expected a field per column, got 'b' more; quote commas",
    ),
    (lambda r: edit(r, ",a0,a", ",   ,../b"), "a site name without slashes"),
    (lambda r: edit(r, "masks/a00.png", "  "), "line 2: expected an image and its mask"),
    (lambda r: edit(r, ",b0,b", ",a0,b"), "expected a subject at one site, got 'a0' at 'a' and 'b'"),
    (lambda r: write_image(r / "images" / "extra.png"), "not listed: extra.png; list or remove"),
    (lambda r: edit(r, ",b0,b", ",b0,../b"), "a site name without slashes"),
    (
        lambda r: Image.new("RGB", (32, 24)).save(r / "images" / "a00.png"),
        "expected an 8-bit grey image, got mode RGB; convert",
    ),
    (
        lambda r: Image.fromarray(np.zeros((24, 32), np.uint16)).save(r / "images" / "a00.png"),
        "expected an 8-bit grey image, got mode I;16",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder with a data set, found none"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected a data set, found an empty folder"):
        open_dataset(tmp_path / "empty")


def test_a_mask_value_beyond_the_classes_is_named(folder: Path) -> None:
    write_mask(folder / "masks" / "a00.png", value=3)
    with pytest.raises(DataError, match=r"a00.png: expected values 0\.\.1, got 0, 3; store class indices"):
        open_dataset(folder, options=ReadOptions(classes=2))


def test_one_bit_masks_are_classes_0_and_1(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        with Image.open(path) as mask:
            mask.point(lambda value: 255 * value).convert("1").save(path)
    dataset = open_dataset(folder)
    assert dataset.classes == 2
    assert open_grey(dataset.records[0].mask).mode == "1"
    labels = load_arrays(dataset, 24, dataset.records[:1]).masks
    assert labels.dtype == torch.int64 and labels.unique().tolist() == [0, 1]


def test_one_bit_images_keep_black_and_white(folder: Path) -> None:
    with Image.open(folder / "images" / "a00.png") as grey:
        grey.convert("1").save(folder / "images" / "a00.png")
    image = to_unit_range(grey_values(folder / "images" / "a00.png"), None)
    assert (float(image.min()), float(image.max())) == (0, 1)


@pytest.mark.parametrize(("value", "absent"), [(255, r"1, 2, 3, 4, 5 \.\.\. 254"), (3, "2"), (2, "1")])
def test_masks_with_gaps_need_their_classes_stated(folder: Path, value: int, absent: str) -> None:
    for path in (folder / "masks").iterdir():
        write_mask(path, value=1 if value == 3 and path.name != "b30.png" else value)
    with pytest.raises(
        DataError,
        match=rf"\.png: expected class indices .* got .*{value} in set, and no mask has {absent}; store",
    ):
        open_dataset(folder)
    assert open_dataset(folder, options=ReadOptions(classes=value + 1)).classes == value + 1
    with pytest.raises(DataError, match=rf"expected values 0\.\.{value - 1}, got 0, {value}; store class"):
        open_dataset(folder, options=ReadOptions(classes=value))


def test_classes_may_be_spread_over_the_masks(folder: Path) -> None:
    write_mask(folder / "masks" / "a00.png", value=2)
    write_mask(folder / "masks" / "b00.png", value=3)
    assert open_dataset(folder).classes == 4


def test_blanks_around_fields_do_not_make_two_subjects_of_one(folder: Path) -> None:
    edit(folder, "images/a01.png,masks/a01.png,a0,a\n", " images/a01.png,masks/a01.png , a0 ,a\t\n")
    edit(folder, "image,mask,subject,site", "image, mask, subject ,site")
    records = open_dataset(folder).records
    assert {record.subject for record in records} == {f"{site}{n}" for site in "ab" for n in range(4)}
    assert {record.site for record in records} == {"a", "b"}


def test_many_broken_files_are_listed_up_to_five(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"\.\.\. and 11 more"):
        open_dataset(folder)


def test_masks_that_are_all_empty_are_named(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        write_mask(path, value=0)
    with pytest.raises(DataError, match="at least one class above 0"):
        open_dataset(folder)


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_subjects_together_in_every_site(folder: Path, seed: int) -> None:
    split = split_by_subject(open_dataset(folder).records, seed=seed)
    for part in (split.train, split.val, split.test):
        assert {r.site for r in part} == {"a", "b"}
    assert sum(map(len, (split.train, split.val, split.test))) == 16
    again = split_by_subject(open_dataset(folder).records, seed=seed)
    assert split == again
    assert set(split.to_json()["test"]) == {"a", "b"}


def one_image_each(subjects: int) -> list[Record]:
    return [Record(Path(f"{i}.png"), Path(f"m{i}.png"), f"s{i}", "a") for i in range(subjects)]


FRACTIONS = [
    (train / 20, val / 20, (20 - train - val) / 20) for train in range(1, 19) for val in range(1, 20 - train)
]


@pytest.mark.parametrize("subjects", [3, 4, 5, 7, 10, 23])
def test_every_part_gets_a_subject_and_about_its_fraction(subjects: int) -> None:
    records = one_image_each(subjects)
    for fractions in FRACTIONS:
        split = split_by_subject(records, fractions)
        sizes = [len(split.train), len(split.val), len(split.test)]
        assert min(sizes) >= 1 and sum(sizes) == subjects, fractions
        for size, fraction in zip(sizes, fractions, strict=True):
            # Two of the parts may take their one subject from the third.
            assert abs(size - fraction * subjects) <= 2, (sizes, fractions)


@pytest.mark.parametrize("fractions", [(float("nan"), 0.5, 0.5), (0.5, float("nan"), 0.5), (0.9, 0.1, 0.0)])
def test_fractions_that_are_no_parts_are_named(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="fractions: expected three positive numbers that sum to 1"):
        split_by_subject(one_image_each(9), fractions)


def test_a_subject_in_two_parts_is_an_error(folder: Path) -> None:
    records = open_dataset(folder).records
    with pytest.raises(DataError, match="got a0 in train and test; split by subject"):
        check_disjoint(Split(records[:1], [], records[1:2]))
    check_disjoint(Split(records[:2], records[2:4], records[4:6]))


def test_too_few_subjects_and_bad_fractions_are_named(folder: Path) -> None:
    records = [r for r in open_dataset(folder).records if r.subject in ("a0", "a1")]
    with pytest.raises(DataError, match="site 'a': expected at least 3 subjects .* got 2"):
        split_by_subject(records)
    with pytest.raises(ValueError, match="fractions: expected"):
        split_by_subject(records, (0.5, 0.5, 0.5))
    with pytest.raises(DataError, match="at least one image"):
        load_arrays(open_dataset(folder), 16, [])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not on this machine")
@pytest.mark.parametrize(("name", "classes", "sites"), [("sunnybrook", 2, 4), ("usgra", 3, 3)])
def test_real_images_load(name: str, classes: int, sites: int) -> None:
    dataset: Dataset = open_dataset(REAL / name)
    assert dataset.classes == classes and len({r.site for r in dataset.records}) == sites
    records: list[Record] = dataset.records[::40]
    assert load_arrays(dataset, 64, records).images.std() > 0.1
