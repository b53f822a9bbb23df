"""Phantoms: synthetic images in published layouts and in the folder layout; everything runs without a download."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class NativeKind:
    """A phantom in the layout of a published set.

    Attributes:
        subjects: how many are written unless told.
        demo_subjects, demo_size: of the demo, which has minutes.
        demo_settings: of reading and training, that the data asks for.
    """

    subjects: int
    demo_subjects: int
    demo_size: int
    demo_settings: tuple[str, ...] = ()


NATIVE_KINDS = {
    "psfh": NativeKind(subjects=40, demo_subjects=30, demo_size=128),
    "nerve": NativeKind(subjects=47, demo_subjects=15, demo_size=128),
    "fumpe": NativeKind(
        subjects=35, demo_subjects=12, demo_size=128, demo_settings=("reading.window=[-100,900]",)
    ),
    "heart": NativeKind(subjects=20, demo_subjects=12, demo_size=128),
    "acdc": NativeKind(subjects=100, demo_subjects=12, demo_size=128),
}


def _writer(kind: str) -> Callable[..., None]:
    """The function that writes a kind; imported when called, since each needs libraries of its own."""
    module = importlib.import_module(f"ppcmi_fast.data.phantom_{kind}")
    write: Callable[..., None] = getattr(module, f"write_{kind}")
    return write


def write_native(
    kind: str,
    out: Path,
    *,
    subjects: int | None = None,
    sites: int = 4,
    seed: int = 0,
    size: int | None = None,
) -> int:
    """Write a phantom in a published set's layout, and sites.csv; sites differ in gain, noise, resolution and anatomy.

    Args:
        kind: one of NATIVE_KINDS.
        out: new or empty folder.
        subjects: in all, dealt to the sites in turn; None takes the kind's own number.
        sites: number of sites.
        seed: fixes every byte.
        size: longer edge of the images in pixels; None is that of the published set, or half of it where that is 512.

    Returns:
        The number of subjects.

    Raises:
        DataError: `out` holds files already.
        ValueError: an argument outside its range.
        ConfigError: a library that the layout is written with is not installed.
    """
    if kind not in NATIVE_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(NATIVE_KINDS)}, got {kind!r}")
    subjects = NATIVE_KINDS[kind].subjects if subjects is None else subjects
    _check(out, size=MIN_SIZE if size is None else size, sites=sites, subjects=subjects)
    if subjects < sites:
        raise ValueError(
            f"subjects: expected one or more for each of {sites} sites, got {subjects}; use more, or fewer sites"
        )
    out.mkdir(parents=True, exist_ok=True)
    own_size = {} if size is None else {"size": size}
    _writer(kind)(out, subjects=subjects, sites=sites, seed=seed, **own_size)
    return subjects


def _check(out: Path, *, size: int, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if size < MIN_SIZE:
        raise ValueError(f"size: expected at least {MIN_SIZE} pixels, got {size}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, got one with files; choose another")


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
    _check(out, size=size, sites=sites, subjects=subjects, slices=slices)
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
