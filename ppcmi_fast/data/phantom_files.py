"""What the writers of phantoms in published layouts share: sites.csv, images by SimpleITK, subjects to sites."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.data.readers.base import require


def site_name(subject: int, sites: int) -> str:
    """Subjects are dealt to the sites in turn."""
    return f"site-{subject % sites}"


def write_sites(out: Path, column: str, rows: Iterable[tuple[str, str]]) -> None:
    """Write sites.csv: which site each subject, or each image, is of.

    Args:
        out: root of the data set.
        column: "subject", as the reader names it, or "image", its path from the root, where there are no subjects.
        rows: name and site.
    """
    with (out / "sites.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((column, "site"))
        writer.writerows(rows)


def write_image(
    values: np.ndarray[Any, Any],
    path: Path,
    spacing: tuple[float, ...] | None = None,
    direction: tuple[float, ...] | None = None,
    origin: tuple[float, ...] | None = None,
) -> None:
    """Write an array as a medical image.

    Args:
        values: [slices, H, W], or [H, W].
        path: the ending says the format; folders are made; `.gz` is compressed.
        spacing: mm a sample along x, y, z.
        direction: cosines row by row, x, y, z.
        origin: mm of the first sample.

    Raises:
        ConfigError: SimpleITK is not installed.
    """
    sitk = require("SimpleITK")
    image = sitk.GetImageFromArray(values)
    if spacing is not None:
        image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction)
    if origin is not None:
        image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=path.name.endswith(".gz"))
