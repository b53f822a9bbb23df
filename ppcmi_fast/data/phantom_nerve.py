"""Ultrasound of the side of the neck by a linear probe, in the layout of the Kaggle nerve set.

Skin, fat, the sternocleidomastoid, and below it the two scalene muscles with the brachial plexus in the groove between
them: dark round trunks with bright sheaths. An artery with enhancement behind it, a transverse process with its shadow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ppcmi_fast.data.phantom_files import site_name, write_sites
from ppcmi_fast.data.phantom_shapes import Pixels, draw_scanner, elliptic_radius, smooth_noise, soft_step
from ppcmi_fast.data.phantom_ultrasound import fibres, show
from ppcmi_fast.data.readers.base import require
from ppcmi_fast.data.readers.nerve import encode_runs

NATIVE_SIZE = 580  # columns; 420 rows
HEIGHT = 420 / 580  # in widths
FRAMES = 10  # of each subject
VISIBLE = 0.41  # share of the frames that show the nerve, as in the published set

GAP, CLOSED_GAP = 0.85, 0.72  # between the scalene muscles, with and without the plexus, in their widths
FINENESS = 0.7  # 10 MHz and more: finer speckle than in a picture of a whole limb


@dataclass(frozen=True)
class Neck:
    """One subject's anatomy; lengths in widths of the picture, (y, x) from the upper left, angles in radians.

    Attributes:
        side: 1 or -1: which way the picture is mirrored.
        groove: where the plexus lies.
        lean: how the groove leans.
        trunks: of the plexus: way along the groove, way across it, radius.
        artery: y, x, radius.
        process: y, x, half its width.
    """

    side: float
    skin: float
    fat: float
    strap: float
    groove: tuple[float, float]
    lean: float
    muscle: tuple[float, float]
    trunks: tuple[tuple[float, float, float], ...]
    artery: tuple[float, float, float]
    process: tuple[float, float, float]


def draw_neck(rng: np.random.Generator, anatomy: float) -> Neck:
    """Draw a subject.

    Args:
        rng: of the subject.
        anatomy: factor on all sizes, of the site.
    """
    fat = anatomy * rng.uniform(0.06, 0.11)
    strap = anatomy * rng.uniform(0.1, 0.14)
    groove = (fat + strap + anatomy * rng.uniform(0.12, 0.17), rng.uniform(0.42, 0.58))
    count = int(rng.integers(2, 5))
    pitch = anatomy * rng.uniform(0.06, 0.072)
    trunks = tuple(
        (
            pitch * (number - (count - 1) / 2),
            rng.normal(0, 0.2) * pitch,
            anatomy * rng.uniform(0.023, 0.033),
        )
        for number in range(count)
    )
    lean = rng.uniform(0.25, 0.75)
    muscle = (anatomy * rng.uniform(0.12, 0.16), anatomy * rng.uniform(0.16, 0.21))
    artery = anatomy * rng.uniform(0.045, 0.07)
    # Beside the muscle, however wide that is: the artery may lie outside of the picture.
    reach = GAP * muscle[1] * np.cos(lean) + np.hypot(muscle[1] * np.sin(lean), muscle[0] * np.cos(lean))
    return Neck(
        side=rng.choice([-1.0, 1.0]),
        skin=rng.uniform(0.015, 0.025),
        fat=fat,
        strap=strap,
        groove=groove,
        lean=lean,
        muscle=muscle,
        trunks=trunks,
        artery=(groove[0] + rng.uniform(0, 0.1), groove[1] - reach - artery - 0.01, artery),
        process=(HEIGHT - rng.uniform(0.1, 0.17), rng.uniform(0.6, 0.85), rng.uniform(0.05, 0.1)),
    )


def _muscle(level: Pixels, radius: Pixels, scale: float, interior: Pixels) -> None:
    """Draw a muscle into `level`: streaks inside, a bright thin fascia around."""
    away = (radius - 1) * scale
    inside = soft_step(away, 0.006)
    level += inside * (interior - level)
    level += 11.0 * np.exp(-((away / 0.006) ** 2))


def _plexus(neck: Neck, shift: float, y: Pixels, x: Pixels, level: Pixels) -> NDArray[np.bool_]:
    """Draw the trunks into `level`; the outline that an annotator draws around them."""
    along = (np.cos(neck.lean), np.sin(neck.lean))
    ends = [abs(way) + radius for way, _, radius in neck.trunks]
    widths = [abs(across) + radius for _, across, radius in neck.trunks]
    centre = (neck.groove[0], neck.groove[1] + shift)
    outline = elliptic_radius(y, x, centre, (1.15 * max(ends), 1.4 * max(widths)), -neck.lean)
    level += soft_step(outline - 1, 0.12) * (-9.0 - level)
    for way, across, radius in neck.trunks:
        place = (
            centre[0] + way * along[0] - across * along[1],
            centre[1] + way * along[1] + across * along[0],
        )
        away = np.hypot(y - place[0], x - place[1]) - radius
        level += soft_step(away, 0.003) * (-29.0 - level) + 7.0 * np.exp(-(((away - 0.003) / 0.004) ** 2))
    return outline < 1


def _soft_tissue(rng: np.random.Generator, neck: Neck, level: float, y: Pixels, x: Pixels) -> Pixels:
    """Skin, fat with septa, and the connective tissue that everything else lies in, in decibels."""
    size = y.shape[1]
    coarse = smooth_noise(rng, y.shape, (size / 60, size / 22))
    streaks = smooth_noise(rng, y.shape, (size / 220, size / 20))
    fat = neck.fat + 0.012 * np.sin(6 * x + 9 * level)
    decibels = np.where(y < fat, -20.0 + 6.0 * np.clip(streaks, 0, 3), -15.0 + 4.0 * (coarse + streaks))
    return np.where(y < neck.skin, -4.0, decibels)


def _scalenes(
    rng: np.random.Generator, neck: Neck, shift: float, parted: bool, y: Pixels, x: Pixels, level: Pixels
) -> None:
    """Draw the two muscles beside the groove; without the plexus between them they touch."""
    for side, angle in ((-1, 0.35), (1, -0.25)):
        across = (GAP if parted else CLOSED_GAP) * neck.muscle[1] * np.cos(neck.lean) * side
        place = (neck.groove[0] + 0.045 - 0.35 * across * np.sin(neck.lean), neck.groove[1] + shift + across)
        radius = elliptic_radius(y, x, place, neck.muscle, np.pi / 2 - neck.lean if side < 0 else -0.3)
        _muscle(level, radius, min(neck.muscle), fibres(rng, y, x, angle) + 1.5)


def _artery(neck: Neck, shift: float, pulse: float, y: Pixels, x: Pixels, level: Pixels) -> None:
    """Draw the artery: blood returns nothing and takes nothing away, so what lies behind it is brighter."""
    centre_y, centre_x, size = neck.artery
    away = np.hypot(y - centre_y, x - centre_x - shift) - size * pulse
    level += soft_step(away, 0.004) * (-46.0 - level) + 9.0 * np.exp(-((away / 0.006) ** 2))
    behind = (np.abs(x - centre_x - shift) < 0.85 * size) & (y > centre_y + size)
    level += gaussian_filter(np.where(behind, 7.0, 0.0), y.shape[1] / 64)


def _process(neck: Neck, shift: float, y: Pixels, x: Pixels, level: Pixels) -> None:
    """Draw the transverse process: a bright cap and nothing below."""
    centre_y, centre_x, half = neck.process
    across = x - centre_x + shift
    below = y - centre_y - 3.0 * across**2
    on_bone = soft_step(np.abs(across) - half, 0.01)
    level += 24.0 * on_bone * np.exp(-((below / 0.009) ** 2))
    level -= 22.0 * on_bone * soft_step(0.012 - below, 0.006)


def nerve_frame(
    rng: np.random.Generator, neck: Neck, scanner: dict[str, float], level: float, visible: bool, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One frame of a sweep along the neck.

    Args:
        rng: of the frame.
        neck: the subject.
        scanner: "gain", "noise", "blur" of the site.
        level: 0 to 1: the way of the probe.
        visible: whether the plexus is in this plane.
        size: columns in pixels.

    Returns:
        Image and mask, uint8 [round(size * 420 / 580), size]; mask 1 = plexus.
    """
    columns = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid((np.arange(round(size * HEIGHT)) + 0.5) / size, columns, indexing="ij")
    if neck.side < 0:
        x = 1 - x
    y = y + 0.012 * np.sin(5 * x + 3 * level) * np.clip(y / 0.1, 0, 1)
    shift = 0.07 * (level - 0.5)
    decibels = _soft_tissue(rng, neck, level, y, x)
    strap = elliptic_radius(y, x, (neck.fat + neck.strap / 2, 0.35 + shift), (neck.strap / 2, 0.62), 0.06)
    _muscle(decibels, strap, neck.strap / 2, fibres(rng, y, x, 0.06))
    _scalenes(rng, neck, shift, visible, y, x, decibels)
    mask = np.zeros(y.shape, dtype=np.uint8)
    if visible:
        mask[_plexus(neck, shift, y, x, decibels)] = 1
    _artery(neck, shift, rng.uniform(0.95, 1.05), y, x, decibels)
    _process(neck, shift, y, x, decibels)
    decibels += 20.0 * np.log10(scanner["gain"]) - 17.0 * y / HEIGHT * (0.6 + 0.4 * scanner["noise"])
    # A hand that does not press evenly: one side of the picture is darker.
    decibels += rng.normal(0, 3.0) * (x - 0.5)
    return show(rng, decibels, {**scanner, "blur": FINENESS * scanner["blur"]}), mask


def write_nerve(out: Path, *, subjects: int, sites: int, seed: int, size: int = NATIVE_SIZE) -> None:
    """Write `train/<subject>_<n>.tif`, `_mask.tif` {0, 255}, train_masks.csv and sites.csv; a subject is FRAMES frames.

    Args:
        out: new or empty folder.
        subjects: in all; subject i, which files call i + 1, is of site i % sites.
        sites: number of sites.
        seed: fixes every byte.
        size: columns in pixels; rows are 420 / 580 of them.

    Raises:
        ConfigError: tifffile is not installed.
    """
    tifffile = require("tifffile")
    (out / "train").mkdir(parents=True, exist_ok=True)
    rows = ["subject,img,pixels"]
    for subject in range(subjects):
        scanner = draw_scanner(seed, subject % sites)
        rng = np.random.default_rng([seed, subject])
        neck = draw_neck(rng, scanner["anatomy"])
        count = max(1, round(VISIBLE * FRAMES + rng.uniform(-1, 1)))
        first = int(rng.integers(0, FRAMES - count + 1))
        for frame in range(FRAMES):
            visible = first <= frame < first + count
            image, mask = nerve_frame(rng, neck, scanner, frame / (FRAMES - 1), visible, size)
            stem = out / "train" / f"{subject + 1}_{frame + 1}"
            tifffile.imwrite(stem.with_suffix(".tif"), image)
            tifffile.imwrite(
                stem.with_name(f"{stem.name}_mask.tif"), mask * np.uint8(255), compression="zlib"
            )
            rows.append(f"{subject + 1},{frame + 1},{encode_runs(mask.astype(np.int64))}")
    (out / "train_masks.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_sites(
        out, "subject", [(str(subject + 1), site_name(subject, sites)) for subject in range(subjects)]
    )
