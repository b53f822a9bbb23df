"""Phantoms: synthetic images of two modalities in the folder layout, so that everything runs without a download."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ppcmi_fast.data.phantom_cardiac import cardiac_slice, draw_heart
from ppcmi_fast.data.phantom_shapes import draw_scanner
from ppcmi_fast.data.phantom_ultrasound import draw_limb, ultrasound_frame
from ppcmi_fast.errors import DataError

# Classes of each kind, the background included.
PHANTOM_CLASSES = {"cardiac": 2, "ultrasound": 3}
MODALITIES = tuple(PHANTOM_CLASSES)
MIN_SIZE = 32


def write_phantom(
    kind: str,
    out: Path,
    *,
    sites: int = 4,
    subjects: int = 8,
    slices: int = 5,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """Write images, masks and manifest.csv; sites differ in gain, noise, resolution and anatomy.

    Args:
        kind: "cardiac" (class 1 = left-ventricle cavity) or "ultrasound" (1 = nerve, 2 = vessel).
        out: new or empty folder.
        sites: number of sites.
        subjects: subjects per site.
        slices: images per subject.
        size: edge in pixels.
        seed: fixes everything.

    Returns:
        `out`.

    Raises:
        DataError: `out` holds files already.
        ValueError: an argument outside its range.
    """
    if kind not in MODALITIES:
        raise ValueError(f"kind: expected one of {MODALITIES}, got {kind!r}")
    for name, value in (("sites", sites), ("subjects", subjects), ("slices", slices)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if size < MIN_SIZE:
        raise ValueError(f"size: expected at least {MIN_SIZE} pixels, got {size}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, got one with files; choose another")
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    millimetres = f"{(320.0 if kind == 'cardiac' else 40.0) / size:.4f}"
    rows = []
    for site in range(sites):
        scanner = draw_scanner(seed, site)
        for subject in range(subjects):
            draw = _subject(kind, np.random.default_rng([seed, site, subject]), scanner, size)
            for index in range(slices):
                pixels, mask = draw((index + 0.5) / slices)
                name = f"{kind}-{site}-{subject:03d}-{index:02d}.png"
                Image.fromarray(pixels).save(out / "images" / name)
                Image.fromarray(mask).save(out / "masks" / name)
                where = (f"images/{name}", f"masks/{name}", f"{kind}-{site}-{subject:03d}", f"site-{site}")
                rows.append((*where, millimetres, millimetres))
    with (out / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "mask", "subject", "site", "spacing_y", "spacing_x"))
        writer.writerows(rows)
    return out


def _subject(
    kind: str, rng: np.random.Generator, scanner: dict[str, float], size: int
) -> Callable[[float], tuple[np.ndarray, np.ndarray]]:
    if kind == "cardiac":
        heart = draw_heart(rng, scanner["anatomy"])
        return lambda level: cardiac_slice(rng, heart, scanner, level, size)
    limb = draw_limb(rng, scanner["anatomy"])
    return lambda level: ultrasound_frame(rng, limb, scanner, level, size)
