"""The folder layout: images, masks and manifest.csv with columns image, mask, subject, site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ppcmi_fast.data.readers.base import SHOWN, Case, same_shape
from ppcmi_fast.data.readers.pictures import grey_values, open_grey
from ppcmi_fast.data.readers.tables import check_site_name, read_table
from ppcmi_fast.data.records import Mask, Pixels, Record
from ppcmi_fast.errors import DataError

COLUMNS = ("image", "mask", "subject", "site")


class FolderReader:
    """`manifest.csv` with columns image, mask, subject, and optionally site, spacing_y and spacing_x in millimetres.

    Without a site all images are of one site "site". Blanks around a field are cut; an empty subject makes the image a
    subject of its own.
    """

    name = "folder"
    title = "manifest.csv with columns image, mask, subject, site"
    class_names: tuple[str, ...] = ()
    modality = "general"
    groups_by_similarity = False

    def detect(self, root: Path) -> bool:
        """Whether the manifest is there."""
        return (root / "manifest.csv").is_file()

    def cases(self, root: Path) -> Iterator[Case]:
        """A line a case."""
        path = root / "manifest.csv"
        if not path.is_file():
            what = "an empty folder" if not any(root.iterdir()) else "none"
            raise DataError(
                f"{path}: expected a manifest with columns {', '.join(COLUMNS)}, found {what}; write one"
            )
        rows = read_table(path, COLUMNS[:3])
        if not rows:
            raise DataError(f"{path}: expected a line per image, got none; list the images")
        records = [_record(root, row, f"{path} line {number}") for number, row in enumerate(rows, start=2)]
        _check_listing(root, records)
        for record in records:
            yield Case(record.image, lambda record=record: [(record, self._checked(record))])  # type: ignore[misc]

    def _checked(self, record: Record) -> Mask:
        pixels, mask = self.pixels(record), self.mask(record)
        same_shape(record.image, record.mask, pixels.shape, mask.shape)
        return mask

    def pixels(self, record: Record) -> Pixels:
        """The picture, 0 to 255; black and white are 0 and 255."""
        return grey_values(record.image)

    def mask(self, record: Record) -> Mask:
        """Its classes; palette images give their indices."""
        mask: Mask = np.asarray(open_grey(record.mask), dtype=np.int64)
        return mask


def _record(root: Path, row: dict[str, str], where: str) -> Record:
    if not row.get("image") or not row.get("mask"):
        raise DataError(
            f"{where}: expected an image and its mask, got {row.get('image')!r} and {row.get('mask')!r}"
        )
    site = row.get("site") or "site"
    check_site_name(site, where)
    subject = row.get("subject") or row["image"]
    return Record(root / row["image"], root / row["mask"], subject, site, _spacing(row, where))


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
