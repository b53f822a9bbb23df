"""The folder layout: images, masks and manifest.csv with columns image, mask, subject, site."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ppcmi_fast.data.records import Dataset, Record
from ppcmi_fast.errors import DataError

COLUMNS = ("image", "mask", "subject", "site")
SHOWN = 5


def open_grey(path: Path) -> Image.Image:
    """Decode an 8-bit grey, palette or 1-bit image whole, in its own mode: a 1-bit mask has the values 0 and 1.

    Raises:
        DataError: missing, damaged, or of another mode.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("L", "P", "1"):
                raise DataError(
                    f"{path}: expected an 8-bit grey image, got mode {image.mode}; convert it to 8-bit grey"
                )
            return image.copy()
    except FileNotFoundError:
        raise DataError(
            f"{path}: expected an image file, found nothing; correct the manifest or add the file"
        ) from None
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: expected a readable image, got a damaged file ({error}); replace it"
        ) from None


def _rows(root: Path) -> list[dict[str, str]]:
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder with manifest.csv, images and masks, found none; check the path"
        )
    path = root / "manifest.csv"
    if not path.is_file():
        what = "an empty folder" if not any(root.iterdir()) else "none"
        raise DataError(
            f"{path}: expected a manifest with columns {', '.join(COLUMNS)}, found {what}; write one"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            missing = [c for c in COLUMNS[:3] if c not in reader.fieldnames]
            if missing:
                raise DataError(
                    f"{path}: expected columns {', '.join(COLUMNS)}, missing {', '.join(missing)}; add them to line 1"
                )
            rows = [_stripped(row, f"{path} line {reader.line_num}") for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got {error.reason}; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: expected comma-separated text, got {error}; save it as CSV") from None
    if not rows:
        raise DataError(f"{path}: expected a line per image, got none; list the images")
    return rows


def _stripped(row: dict[str | Any, Any], where: str) -> dict[str, str]:
    """The fields without surrounding blanks, which would make two subjects of one, one in training, one in test."""
    if None in row:
        raise DataError(
            f"{where}: expected a field per column, got {', '.join(map(repr, row[None]))} more; quote commas"
        )
    return {name: (value or "").strip() for name, value in row.items()}


def _spacing(row: dict[str, str], where: str) -> tuple[float, float] | None:
    texts = [row.get("spacing_y") or "", row.get("spacing_x") or ""]
    if not any(texts):
        return None
    try:
        y, x = (float(text) for text in texts)
    except ValueError:
        y = x = 0.0
    if not (0 < y < 100 and 0 < x < 100):
        raise DataError(
            f"{where}: expected spacing_y and spacing_x in millimetres, got {texts}; correct or empty both"
        )
    return y, x


def _listed(values: set[int]) -> str:
    shown = ", ".join(map(str, sorted(values)[:SHOWN]))
    return shown if len(values) <= SHOWN else f"{shown} ... {max(values)}"


def _problem(record: Record, classes: int | None) -> tuple[str | None, set[int]]:
    """What is wrong with one pair (or None), and its mask values."""
    try:
        image, mask = open_grey(record.image), open_grey(record.mask)
    except DataError as error:
        return str(error), set()
    if image.size != mask.size:
        return (
            f"{record.mask}: expected the size of its image {image.size[0]}x{image.size[1]},"
            f" got {mask.size[0]}x{mask.size[1]}; export the mask at the image's size"
        ), set()
    labels = {int(value) for value in np.unique(np.asarray(mask))}
    if classes is not None and max(labels) >= classes:
        return (
            f"{record.mask}: expected values 0..{classes - 1}, got {_listed(labels)};"
            " store class indices in the mask, or correct the setting classes"
        ), labels
    return None, labels


def _count_classes(root: Path, records: list[Record], labels: list[set[int]]) -> int:
    """Largest value + 1, when the masks together have every class up to it: 0 and 255 are not 256 classes."""
    present = set().union(*labels)
    largest = max(present)
    if largest == 0:
        raise DataError(
            f"{root}: expected masks with at least one class above 0, all are empty; check the masks"
        )
    absent = set(range(1, largest)) - present
    if absent:
        first = next(i for i, found in enumerate(labels) if largest in found)
        raise DataError(
            f"{records[first].mask}: expected class indices 0, 1, 2, ... without a gap, got"
            f" {_listed(labels[first])}, and no mask has {_listed(absent)}; store class indices (255 for a single"
            f" class becomes 1), or set classes={largest + 1} if these are meant"
        )
    return largest + 1


def load_folder(root: Path, classes: int | None = None) -> Dataset:
    """Read and check a data folder; every file is decoded once, so that nothing fails later.

    Args:
        root: folder with `manifest.csv`; columns image, mask, subject, and optionally site (else one site "site"),
            spacing_y and spacing_x in millimetres. Blanks around a field are cut; an empty subject makes the image a
            subject of its own.
        classes: classes including the background; None takes the largest mask value + 1, and then every value up to
            it must occur in some mask.

    Raises:
        DataError: names up to five offending files, what was expected and the cure.
    """
    root = Path(root)
    records = []
    for number, row in enumerate(_rows(root), start=2):
        where = f"{root / 'manifest.csv'} line {number}"
        if not row.get("image") or not row.get("mask"):
            raise DataError(
                f"{where}: expected an image and its mask, got {row.get('image')!r} and {row.get('mask')!r}"
            )
        site = row.get("site") or "site"
        if "/" in site or "\\" in site or site.startswith(".") or not site.isprintable():
            raise DataError(
                f"{where}: expected a site name without slashes, control characters or a dot in front, got {site!r};"
                " rename it"
            )
        subject = row.get("subject") or row["image"]
        records.append(Record(root / row["image"], root / row["mask"], subject, site, _spacing(row, where)))
    _check_listing(root, records)
    found = [_problem(record, classes) for record in records]
    problems = [text for text, _ in found if text]
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError("\n".join(problems[:SHOWN]) + more)
    if classes is None:
        classes = _count_classes(root, records, [labels for _, labels in found])
    return Dataset(root.resolve().name, root, records, classes)


def _check_listing(root: Path, records: list[Record]) -> None:
    seen: set[Path] = set()
    image_of: dict[Path, Path] = {}
    site_of: dict[str, str] = {}
    for record in records:
        if record.image.resolve() in seen:
            raise DataError(
                f"{root / 'manifest.csv'}: expected each image once, got {record.image.name} twice"
            )
        seen.add(record.image.resolve())
        other = image_of.setdefault(record.mask.resolve(), record.image)
        if other != record.image:
            raise DataError(
                f"{root / 'manifest.csv'}: expected a mask of its own for each image, got {record.mask} for"
                f" {other} and {record.image}; correct the manifest"
            )
        if site_of.setdefault(record.subject, record.site) != record.site:
            raise DataError(
                f"{root / 'manifest.csv'}: expected a subject at one site, got {record.subject!r} at"
                f" {site_of[record.subject]!r} and {record.site!r}; give them different subjects"
            )
    for folder in {record.image.parent for record in records if record.image.parent.is_dir()}:
        unlisted = sorted(p.name for p in folder.glob("*.png") if p.resolve() not in seen)
        if unlisted and folder != root:
            raise DataError(
                f"{folder}: expected every image in the manifest with its mask, not listed:"
                f" {', '.join(unlisted[:SHOWN])}; list or remove them"
            )
