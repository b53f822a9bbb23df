"""Tables that come beside images: manifest.csv of the folder layout, sites.csv of any other."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppcmi_fast.data.readers.base import SHOWN
from ppcmi_fast.data.records import Record
from ppcmi_fast.errors import DataError


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a table as column -> field, without surrounding blanks.

    Args:
        path: comma-separated UTF-8 text with column names in line 1.
        needed: columns that must be there.

    Raises:
        DataError: not such a table, a column missing, or a line with too many fields.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in needed if name not in reader.fieldnames]
            if missing:
                raise DataError(
                    f"{path}: expected columns {', '.join(needed)}, missing {', '.join(missing)}; add them to line 1"
                )
            rows = [_stripped(row, f"{path} line {reader.line_num}") for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got {error.reason}; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: expected comma-separated text, got {error}; save it as CSV") from None
    return rows


def _stripped(row: dict[str | Any, Any], where: str) -> dict[str, str]:
    """The fields without surrounding blanks, which would make two subjects of one, one in training, one in test."""
    if None in row:
        raise DataError(
            f"{where}: expected a field per column, got {', '.join(map(repr, row[None]))} more; quote commas"
        )
    return {name: (value or "").strip() for name, value in row.items()}


def check_site_name(site: str, where: str) -> None:
    """Raise DataError for a name that no file could have."""
    if not site or "/" in site or "\\" in site or site.startswith(".") or not site.isprintable():
        raise DataError(
            f"{where}: expected a site name without slashes, control characters or a dot in front, got {site!r};"
            " rename it"
        )


def with_sites(records: Sequence[Record], root: Path) -> list[Record]:
    """Records at the sites that `sites.csv` in the data set's folder names; without the file, as they are.

    Its columns are `subject` and `site`, or, where the data names no subjects, `image` (a path below the folder) and
    `site`.

    Raises:
        DataError: a damaged table, a record that it leaves out, or a subject at two sites.
    """
    path = root / "sites.csv"
    if not path.is_file():
        return list(records)
    rows = read_table(path, ["site"])
    key = "image" if rows and "image" in rows[0] else "subject"
    site_of: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        if not row.get(key):
            raise DataError(
                f"{path} line {number}: expected columns subject or image, and site, got none; add them"
            )
        check_site_name(row["site"], f"{path} line {number}")
        if site_of.setdefault(row[key], row["site"]) != row["site"]:
            raise DataError(
                f"{path} line {number}: expected {row[key]!r} at one site, got {site_of[row[key]]!r} and"
                f" {row['site']!r}; keep one"
            )
    names = [r.subject if key == "subject" else r.image.relative_to(root).as_posix() for r in records]
    missing = sorted(set(names) - site_of.keys())
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{path}: expected a site for every {key}, none for {', '.join(missing[:SHOWN])}{more}; add lines"
        )
    placed = [replace(record, site=site_of[name]) for record, name in zip(records, names, strict=True)]
    _check_one_site(placed, path)
    return placed


def _check_one_site(records: Sequence[Record], path: Path) -> None:
    site_of: dict[str, str] = {}
    for record in records:
        if site_of.setdefault(record.subject, record.site) != record.site:
            raise DataError(
                f"{path}: expected a subject at one site, got {record.subject!r} at {site_of[record.subject]!r} and"
                f" {record.site!r}; give all of its images one site"
            )
