"""Transperineal ultrasound in labour by a convex probe: pubic symphysis and fetal head, in the layout of FH-PS-AOP.

Echogenicity is laid out along the beams of the sector, where the speckle forms, and only then converted to a picture:
so speckle widens with depth, and what reflects casts its shadow along its beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ppcmi_fast.data.phantom_files import site_name, write_image, write_sites
from ppcmi_fast.data.phantom_shapes import (
    Pixels,
    draw_scanner,
    elliptic_radius,
    smooth_noise,
    soft_step,
    speckle,
)
from ppcmi_fast.data.similarity import ALIKE, thumbnail

NATIVE_SIZE = 256
FRAMES = 4  # of each subject
PROBE_RADIUS = 45.0  # mm
DYNAMIC_RANGE_DB = 60.0
SYMPHYSIS, HEAD = 1, 2
HEAD_ADVANCE = 5.0  # mm that the head comes down during a clip
ATTEMPTS = 20  # at a subject who looks like another one
MOVED = 0.3  # share of the scatterers that are others in the next frame


@dataclass(frozen=True)
class Pelvis:
    """One subject's anatomy in millimetres, (y, x) from the probe's centre of curvature; angles in radians.

    Attributes:
        depth: of the picture, as the examiner sets it.
        half_angle: half the opening of the sector.
        margin: black around the sector above, below and at the sides, as parts of its height and width: the published
            frames were cut out of screens of several machines.
        bladder: its smaller radius, 0 when empty.
        moulding: how far the skull departs from an ellipse, as parts of its radius.
        slope: decibels a millimetre that the examiner's time-gain compensation leaves over.
        dropouts: beams that poor contact darkens: angle, width, decibels.
        scatterers: seed of the tissue, so that the frames of a clip resemble each other.
    """

    depth: float
    half_angle: float
    margin: tuple[float, float, float]
    symphysis: tuple[float, float]
    symphysis_radii: tuple[float, float]
    symphysis_angle: float
    head: tuple[float, float]
    head_radii: tuple[float, float]
    head_angle: float
    bladder: float
    moulding: tuple[float, float]
    slope: float
    dropouts: tuple[tuple[float, float, float], ...]
    scatterers: int


def draw_pelvis(rng: np.random.Generator, anatomy: float) -> Pelvis:
    """Draw a subject; the head lies below and beside the symphysis without touching it.

    Args:
        rng: of the subject.
        anatomy: factor on all sizes, of the site.
    """
    side = PROBE_RADIUS + rng.uniform(23, 33)
    half_angle = rng.uniform(0.6, 0.82)
    symphysis = (side, -rng.uniform(0.55, 0.72) * side * np.tan(half_angle))
    radii = (anatomy * rng.uniform(7.0, 9.5), anatomy * rng.uniform(16, 21))
    angle = rng.uniform(0.2, 0.8)
    head_radii = (anatomy * rng.uniform(34, 42), anatomy * rng.uniform(42, 52))
    head_angle = rng.uniform(-0.6, 0.6)
    towards = rng.uniform(0.6, 1.05)
    turn = np.linspace(0, 2 * np.pi, 64)
    u, v = radii[1] * np.cos(turn), radii[0] * np.sin(turn)
    edge_y = symphysis[0] + u * np.sin(angle) + v * np.cos(angle)
    edge_x = symphysis[1] + u * np.cos(angle) - v * np.sin(angle)
    distance = 40.0
    while True:
        head = (symphysis[0] + distance * np.sin(towards), symphysis[1] + distance * np.cos(towards))
        # Room for the descent, too: the head then comes nearer to the symphysis.
        if elliptic_radius(edge_y, edge_x, head, head_radii, head_angle).min() > 1.2:
            break
        distance += 1.0
    return Pelvis(
        depth=rng.uniform(105, 140),
        half_angle=half_angle,
        margin=(rng.uniform(0.01, 0.14), rng.uniform(0.01, 0.14), rng.uniform(0.01, 0.12)),
        symphysis=symphysis,
        symphysis_radii=radii,
        symphysis_angle=angle,
        head=head,
        head_radii=head_radii,
        head_angle=head_angle,
        bladder=rng.choice([0.0, rng.uniform(5, 9)]),
        moulding=(rng.normal(0, 0.02), rng.normal(0, 0.015)),
        slope=rng.uniform(-0.09, 0.09),
        dropouts=tuple(
            (
                half_angle * rng.choice([-1, 1]) * np.sqrt(rng.uniform(0.05, 1.1)),
                rng.uniform(0.06, 0.16),
                rng.uniform(8, 18),
            )
            for _ in range(rng.integers(1, 4))
        ),
        scatterers=int(rng.integers(1 << 31)),
    )


def _soft_tissue(rng: np.random.Generator, depth: Pixels, angle: Pixels) -> Pixels:
    """Perineum and pelvic floor in decibels: bright skin, then layers that follow the probe, then muscle and fat."""
    size = depth.shape[1]
    coarse = smooth_noise(rng, depth.shape, (size / 4, size / 8))
    streaks = smooth_noise(rng, depth.shape, (size / 110, size / 11))
    level = -25.0 + 6.0 * coarse + 3.5 * streaks
    bend = 3.0 * np.sin(3.1 * angle + rng.uniform(0, 6)) + 1.2 * np.sin(9 * angle + rng.uniform(0, 6))
    for at in (10.0, 17.0, 23.0):
        level += rng.uniform(5, 9) * np.exp(-(((depth - at - bend) / 1.3) ** 2))
    return level + 14.0 * soft_step(depth - 5.0, 2.0)


def _head_centre(pelvis: Pelvis, level: float) -> tuple[float, float]:
    return pelvis.head[0] - HEAD_ADVANCE * level, pelvis.head[1] + 0.7 * HEAD_ADVANCE * level


def _head_radius(pelvis: Pelvis, centre: tuple[float, float], y: Pixels, x: Pixels) -> Pixels:
    """Below 1 inside the skull."""
    theta = np.arctan2(y - centre[0], x - centre[1]) - pelvis.head_angle
    mould = 1 + pelvis.moulding[0] * np.cos(2 * theta + 1) + pelvis.moulding[1] * np.cos(3 * theta)
    radius: Pixels = elliptic_radius(y, x, centre, pelvis.head_radii, pelvis.head_angle) / mould
    return radius


def _symphysis_radius(pelvis: Pelvis, y: Pixels, x: Pixels) -> Pixels:
    return elliptic_radius(y, x, pelvis.symphysis, pelvis.symphysis_radii, pelvis.symphysis_angle)


def _head_echo(pelvis: Pelvis, centre: tuple[float, float], radius: Pixels, y: Pixels, x: Pixels) -> Pixels:
    """What the head adds in decibels: scalp and skull bright, the brain dark but for its midline."""
    away = (radius - 1) * np.mean(pelvis.head_radii)
    # A smooth bone returns sound only where the beam meets it squarely.
    to_edge = np.hypot(y - centre[0], x - centre[1]) + 1e-9
    squarely = -(y * (y - centre[0]) + x * (x - centre[1])) / (np.hypot(y, x) * to_edge)
    near, far = np.clip(squarely, 0, 1) ** 1.5, np.clip(-squarely, 0, 1) ** 3
    inside = soft_step(away, 0.8)
    midline = (y - centre[0]) * np.cos(pelvis.head_angle) - (x - centre[1]) * np.sin(pelvis.head_angle)
    skull = np.exp(-(((away + 1.2) / 1.5) ** 2))
    scalp = np.exp(-(((away - 3.0) / 2.2) ** 2))
    echo: Pixels = skull * (31.0 * near + 9.0 * far + 4.0) + 5.0 * scalp * near
    echo += inside * (6.0 * np.exp(-((midline / 1.2) ** 2)) * (radius < 0.7) - 11.0)
    return echo


def _echogenicity(
    rng: np.random.Generator, pelvis: Pelvis, centre: tuple[float, float], reach: Pixels, angle: Pixels
) -> Pixels:
    """Decibels along every beam, shadows included but not the tissue's attenuation."""
    y, x = reach * np.cos(angle), reach * np.sin(angle)
    decibels = _soft_tissue(rng, reach - PROBE_RADIUS, angle)
    if pelvis.bladder:
        place = (pelvis.symphysis[0] + 17, pelvis.symphysis[1] - 4)
        bladder = elliptic_radius(y, x, place, (pelvis.bladder, 2.2 * pelvis.bladder), 0.5)
        decibels -= 26.0 * soft_step(bladder - 1, 0.06)
    outside_joint = (_symphysis_radius(pelvis, y, x) - 1) * pelvis.symphysis_radii[0]
    cartilage = soft_step(outside_joint, 0.7)
    decibels += cartilage * (-22.0 - decibels) + 15.0 * np.exp(-((outside_joint / 0.9) ** 2))
    radius = _head_radius(pelvis, centre, y, x)
    decibels += _head_echo(pelvis, centre, radius, y, x)
    per_mm = pelvis.depth / reach.shape[0]
    decibels -= 0.45 * np.cumsum(cartilage, axis=0) * per_mm
    skull = np.cumsum((radius < 1).astype(np.float64), axis=0) * per_mm
    decibels -= 10.0 * (1 - np.exp(-skull / 18))
    return decibels


def psfh_frame(
    rng: np.random.Generator, pelvis: Pelvis, scanner: dict[str, float], level: float, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One frame of a clip.

    Args:
        rng: of the frame: electronic noise, and the scatterers that have moved.
        pelvis: the subject.
        scanner: "gain", "noise", "blur" of the site.
        level: 0 (start of the clip) to 1: the head comes down.
        size: edge in pixels.

    Returns:
        Image and mask, uint8 [size, size]; mask 1 = pubic symphysis, 2 = fetal head, 0 outside the sector.
    """
    tissue = np.random.default_rng(pelvis.scatterers)
    samples, beams = 2 * size, size
    steps = (np.arange(samples) + 0.5) / samples, (np.arange(beams) + 0.5) / beams
    reach, angle = np.meshgrid(
        PROBE_RADIUS + pelvis.depth * steps[0], pelvis.half_angle * (2 * steps[1] - 1), indexing="ij"
    )
    centre = _head_centre(pelvis, level)
    decibels = _echogenicity(tissue, pelvis, centre, reach, angle)
    depth = reach - PROBE_RADIUS
    decibels -= (
        depth * (0.1 * (0.7 + 0.3 * scanner["noise"]) + pelvis.slope) - pelvis.slope * pelvis.depth / 2
    )
    for at, width, loss in pelvis.dropouts:
        decibels -= loss * np.exp(-(((angle - at) / width) ** 2)) * np.clip(depth / 30, 0, 1)
    spread = (1.1 * scanner["blur"] * size / 128, 1.2 * scanner["blur"] * size / 128)
    echo = speckle(tissue, decibels, spread, rng, MOVED)
    floor = -52.0 + 6.0 * scanner["noise"] + 4.0 * rng.normal(size=echo.shape)
    echo = 10 * np.log10(10 ** (echo / 10) + 10 ** (floor / 10)) + 20 * np.log10(scanner["gain"])
    shown = np.clip((echo + DYNAMIC_RANGE_DB - 8) / DYNAMIC_RANGE_DB, 0, 1)
    return _convert(shown, pelvis, centre, size)


def _convert(
    shown: Pixels, pelvis: Pelvis, centre: tuple[float, float], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Beams to picture, with the mask drawn on the picture's own pixels."""
    above, below, beside = pelvis.margin
    shallow, deep = PROBE_RADIUS * np.cos(pelvis.half_angle), PROBE_RADIUS + pelvis.depth
    top, bottom = shallow - above * (deep - shallow), deep + below * (deep - shallow)
    half_width = (1 + beside) * deep * np.sin(pelvis.half_angle)
    steps = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(top + (bottom - top) * steps, half_width * (2 * steps - 1), indexing="ij")
    row = (np.hypot(y, x) - PROBE_RADIUS) / pelvis.depth * shown.shape[0] - 0.5
    column = (np.arctan2(x, y) / pelvis.half_angle + 1) / 2 * shown.shape[1] - 0.5
    picture = map_coordinates(shown, [row, column], order=1, cval=0.0)
    sector = (row >= 0) & (row < shown.shape[0]) & (column >= 0) & (column < shown.shape[1])
    mask = np.zeros(picture.shape, dtype=np.uint8)
    mask[(_head_radius(pelvis, centre, y, x) < 1) & sector] = HEAD
    mask[(_symphysis_radius(pelvis, y, x) < 1) & sector] = SYMPHYSIS
    return (picture * sector * 255).astype(np.uint8), mask


def write_psfh(out: Path, *, subjects: int, sites: int, seed: int, size: int = NATIVE_SIZE) -> None:
    """Write `image_mha/NNNNN.mha` (uint8, 3 equal channels), `label_mha/` and sites.csv; a subject is FRAMES frames.

    Args:
        out: new or empty folder.
        subjects: in all; subject i is of site i % sites.
        sites: number of sites.
        seed: fixes every byte.
        size: edge in pixels.
    """
    rows, number = [], 0
    seen: list[np.ndarray[Any, Any]] = []
    for subject in range(subjects):
        scanner = draw_scanner(seed, subject % sites)
        for image, mask in _unlike(seen, scanner, seed, subject, size):
            number += 1
            write_image(np.stack([image] * 3), out / "image_mha" / f"{number:05d}.mha")
            write_image(mask, out / "label_mha" / f"{number:05d}.mha")
            rows.append((f"image_mha/{number:05d}.mha", site_name(subject, sites)))
    write_sites(out, "image", rows)


def _unlike(
    seen: list[np.ndarray[Any, Any]], scanner: dict[str, float], seed: int, subject: int, size: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """A clip that does not look like those before: the set names no subjects, so only their looks tell them apart."""
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, subject, attempt])
        pelvis = draw_pelvis(rng, scanner["anatomy"])
        frames = [psfh_frame(rng, pelvis, scanner, i / (FRAMES - 1), size) for i in range(FRAMES)]
        looks = np.stack([thumbnail(image.astype(np.float64)) for image, _ in frames])
        if not seen or float((looks @ np.concatenate(seen).T).max()) < ALIKE - 0.01:
            break
    seen.append(looks)
    return frames
