"""Short-axis cine MRI at end of diastole and of systole, in the layout of ACDC; the anatomy follows the diagnosis.

Lengths are millimetres from the middle of the slice, y towards the patient's back, x towards the patient's left.
Thorax, coil and slice positions are the same in both phases; only the heart moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppcmi_fast.data.phantom_cardiac import BLOOD, FAT, LIVER, LUNG, MUSCLE
from ppcmi_fast.data.phantom_files import site_name, write_image, write_sites
from ppcmi_fast.data.phantom_shapes import Pixels, draw_scanner, elliptic_radius, receive, smooth_noise

NATIVE_SIZE = 256  # columns; 216 rows
HEIGHT = 216 / 256  # in columns
FIELD_OF_VIEW = 384.0  # mm along the columns: 1.5 mm a pixel at the native size
SLICE_DISTANCE = 10.0
RIGHT, MYOCARDIUM, LEFT = 1, 2, 3
GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
UNITS = 320.0  # signal 1 in the stored integers


class Norm(NamedTuple):
    """What a diagnosis makes of a heart: ranges of radius, wall (mm), ejection fraction, right ventricle's size."""

    cavity: tuple[float, float]
    wall: tuple[float, float]
    ejection: tuple[float, float]
    right: tuple[float, float]


NORMS = {
    "NOR": Norm((25, 28), (8, 10), (0.58, 0.66), (0.92, 1.04)),
    "DCM": Norm((35, 40), (7, 8.5), (0.15, 0.28), (0.75, 0.9)),
    "HCM": Norm((22, 25), (14, 18), (0.65, 0.75), (0.75, 0.85)),
    "MINF": Norm((30, 33), (8, 9.5), (0.28, 0.38), (0.8, 0.95)),
    "RV": Norm((24, 27), (8, 9.5), (0.5, 0.6), (1.3, 1.45)),
}


@dataclass(frozen=True)
class Patient:
    """One subject.

    Attributes:
        centre: of the left ventricle at the base.
        drift: how far the long axis moves from base to apex.
        cavity, wall: radius and thickness at the base at end of diastole.
        length: of the long axis.
        squeeze: radius along the septum's normal as part of that along the septum: below 1 the septum is flattened.
        septum: direction from the left ventricle to the right one.
        bulge: what the septum is thicker, as part of the wall.
        scar: angle of the segment that a scar has thinned; None without.
        wobble: departures of the outline from a circle.
        right: size of the right ventricle against the left one.
        body: half the height and width of the chest.
        fat: thickness below the skin.
        shading: of the coil.
    """

    group: str
    centre: tuple[float, float]
    drift: tuple[float, float]
    cavity: float
    wall: float
    length: float
    ejection: float
    squeeze: float
    septum: float
    bulge: float
    scar: float | None
    wobble: NDArray[np.float64]
    right: float
    body: tuple[float, float]
    fat: float
    shading: tuple[float, float]


def draw_patient(rng: np.random.Generator, group: str, anatomy: float) -> Patient:
    """Draw a subject with a diagnosis.

    Args:
        rng: of the subject.
        group: one of GROUPS.
        anatomy: factor on all sizes, of the site.
    """
    norm = NORMS[group]
    return Patient(
        group=group,
        centre=(rng.uniform(-26, -10), rng.uniform(14, 30)),
        drift=(rng.uniform(2, 8), rng.uniform(6, 14)),
        cavity=anatomy * rng.uniform(*norm.cavity),
        wall=anatomy * rng.uniform(*norm.wall),
        length=anatomy * rng.uniform(86, 96) * (1.1 if group == "DCM" else 1.0),
        ejection=rng.uniform(*norm.ejection),
        squeeze=rng.uniform(0.76, 0.84) if group == "RV" else rng.uniform(0.92, 1.0),
        septum=np.pi + rng.uniform(0.15, 0.6),
        bulge=rng.uniform(0.3, 0.6) if group == "HCM" else rng.uniform(0.0, 0.1),
        scar=rng.uniform(-0.8, 2.4) if group == "MINF" else None,
        wobble=rng.normal(0, [0.025, 0.015, 0.008]),
        right=rng.uniform(*norm.right),
        body=(rng.uniform(110, 124) * (0.5 + 0.5 * anatomy), rng.uniform(160, 178) * (0.5 + 0.5 * anatomy)),
        fat=rng.uniform(7, 18),
        shading=(rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.8)),
    )


class Heart(NamedTuple):
    """Where a slice shows what: the three classes, the right ventricle's wall, papillary muscles, the fat around."""

    right: NDArray[np.bool_]
    myocardium: NDArray[np.bool_]
    left: NDArray[np.bool_]
    right_wall: NDArray[np.bool_]
    papillary: NDArray[np.bool_]
    fat: NDArray[np.bool_]


def _profile(level: float) -> float:
    """Radius of the left ventricle from base (0) to apex (1) as part of that at the base."""
    return float(np.sqrt(max(1 - (0.93 * level) ** 2.4, 0.05)))


def _shrink(patient: Patient) -> float:
    """Radius of the cavity at end of systole as part of that at end of diastole; the rest of the volume is length."""
    return float((1 - patient.ejection) ** 0.36)


def _left_outlines(patient: Patient, level: float, systole: bool, theta: Pixels) -> tuple[Pixels, Pixels]:
    """Inner and outer radius of the left ventricle's muscle in every direction, in mm."""
    shape, shrink = _profile(level), _shrink(patient)
    towards_septum = np.clip(np.cos(theta - patient.septum), 0, 1)
    wall = patient.wall * (0.7 + 0.3 * shape) * (1 + patient.bulge * towards_septum)
    squeezed = np.full(theta.shape, shrink)
    if patient.scar is not None:
        away = np.angle(np.exp(1j * (theta - patient.scar)))
        dead = np.exp(-((away / 0.6) ** 2)) * min(1.0, 0.5 + level)
        wall = wall * (1 - 0.45 * dead)
        squeezed = shrink + (0.98 - shrink) * dead
    inner = np.full(theta.shape, patient.cavity * shape)
    outer: Pixels = inner + wall
    if systole:
        # Muscle hardly changes its volume: what moves inwards grows thick.
        area = outer**2 - inner**2
        inner = inner * squeezed
        outer = np.sqrt(inner**2 + 1.05 * area)
    return inner, outer


def _right_ellipse(
    patient: Patient, level: float, systole: bool, centre: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Centre and radii of the right ventricle, which the left one cuts a crescent out of."""
    shrink = 0.5 + 0.5 * _shrink(patient) if systole else 1.0
    extent = patient.cavity * _profile(level) * shrink + patient.wall
    size = patient.right * (1.05 - 0.85 * level**2) * (0.84 if systole else 1.0)
    away = extent * (0.86 * patient.squeeze + 0.3 * (patient.right - 0.8))
    place = (centre[0] + away * np.sin(patient.septum), centre[1] + away * np.cos(patient.septum))
    return place, (1.2 * extent * size, 0.92 * extent * size)


def _papillary(patient: Patient, centre: tuple[float, float], reach: float, y: Pixels, x: Pixels) -> Pixels:
    """Below 1 in either papillary muscle."""
    radii = (0.2 * reach + 1.5, 0.26 * reach + 1.5)
    spots = []
    for turn in (2.2, 3.9):
        at = patient.septum + turn
        place = (centre[0] + reach * np.sin(at), centre[1] + reach * np.cos(at))
        spots.append(elliptic_radius(y, x, place, radii, at))
    return np.minimum(*spots)


def _draw_heart(patient: Patient, level: float, systole: bool, y: Pixels, x: Pixels) -> Heart:
    centre = (patient.centre[0] + level * patient.drift[0], patient.centre[1] + level * patient.drift[1])
    theta = np.arctan2(y - centre[0], x - centre[1])
    bumps = sum(w * np.cos((k + 2) * theta + 2.1 * k) for k, w in enumerate(patient.wobble))
    rho = elliptic_radius(y, x, centre, (1.0, patient.squeeze), patient.septum) / (1 + bumps)
    inner, outer = _left_outlines(patient, level, systole, theta)
    left = rho < inner
    muscle = (rho < outer) & ~left

    place, radii = _right_ellipse(patient, level, systole, centre)
    radius = elliptic_radius(y, x, place, radii, patient.septum)
    right = (radius < 1) & (rho >= outer + 0.5)
    right_wall = (radius < 1 + 3.2 / radii[1]) & ~right & ~left & ~muscle
    papillary = _papillary(patient, centre, 0.62 * float(inner.mean()), y, x) < 1
    fat = (rho < outer + 5) | (radius < 1 + 8 / radii[1])
    return Heart(right, muscle, left, right_wall, papillary & left & (0.2 < level < 0.8), fat)


def _thorax(rng: np.random.Generator, patient: Patient, level: float, y: Pixels, x: Pixels) -> Pixels:
    """What surrounds the heart: skin fat, chest wall with ribs, lungs, mediastinum, spine, aorta, liver, stomach."""
    grain = y.shape[1] / 128
    image = np.full(y.shape, 0.02)
    theta = np.arctan2(y, x)
    # A chest is rounder than a box and squarer than an ellipse.
    body = (np.abs(y / patient.body[0]) ** 2.6 + np.abs(x / patient.body[1]) ** 2.6) ** (1 / 2.6)
    body = body / (1 - 0.02 * np.sin(theta) + 0.012 * np.sin(3 * theta))
    depth = (1 - body) * np.mean(patient.body)
    image[depth > 0] = FAT
    image[depth > 2.5] = FAT * 0.92
    inside = depth > patient.fat
    image[inside] = MUSCLE
    ribs = (np.sin(13 * theta + 5 * level) > 0.35) & (np.abs(depth - patient.fat - 9) < 4)
    image[ribs] = 0.5
    lungs = depth > patient.fat + 17
    image[lungs] = LUNG + 0.02 * smooth_noise(rng, y.shape, 2 * grain)[lungs]
    image[lungs & (smooth_noise(rng, y.shape, 1.2 * grain) > 2.2)] = 0.35
    middle = elliptic_radius(y, x, (18, 4), (82, 34), 0.35)
    image[(middle < 1) & inside] = 0.34
    image[(middle < 1) & (smooth_noise(rng, y.shape, 3 * grain) > 0.7) & inside] = 0.75
    pad = elliptic_radius(y, x, (-patient.body[0] + patient.fat + 18, 4), (13, 58), 0.0)
    image[(pad + 0.25 * smooth_noise(rng, y.shape, 4 * grain) < 1) & inside] = 0.72
    liver = elliptic_radius(
        y, x, (0.5 * patient.body[0], -0.42 * patient.body[1]), (28 + 26 * level, 60 + 32 * level), -0.25
    )
    image[(liver < 1) & lungs] = LIVER
    image[(liver < 1) & lungs & (smooth_noise(rng, y.shape, 1.6 * grain) > 2.0)] = 0.62
    stomach = elliptic_radius(y, x, (0.62 * patient.body[0], 62), (14 + 26 * level, 24 + 26 * level), 0.3)
    image[(stomach < 1) & lungs] = 0.24
    spine = elliptic_radius(y, x, (patient.body[0] - patient.fat - 28, -4), (19, 23), 0.0)
    image[spine < 1.12] = 0.12
    image[spine < 1] = 0.44 + 0.04 * smooth_noise(rng, y.shape, grain)[spine < 1]
    canal = elliptic_radius(y, x, (patient.body[0] - patient.fat - 7, -4), (7, 9), 0.0)
    image[canal < 1] = BLOOD
    aorta = elliptic_radius(y, x, (patient.body[0] - patient.fat - 42, 24), (12.5, 12.5), 0.0)
    image[aorta < 1.15] = MUSCLE
    image[aorta < 1] = BLOOD
    return image


def _scene(
    seeds: tuple[int, ...], patient: Patient, place: float, systole: bool, y: Pixels, x: Pixels
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Signal and mask `place` mm below the valve plane at end of diastole."""
    rng = np.random.default_rng(seeds)
    thorax = _thorax(rng, patient, place / patient.length, y, x)
    # The valve plane comes down as the heart contracts, and the apex stays.
    descent = 22.0 * patient.ejection if systole else 0.0
    level = (place - descent) / (patient.length - descent)
    heart = _draw_heart(patient, max(level, 0.0), systole, y, x)
    patches = smooth_noise(rng, y.shape, 4 * y.shape[1] / 128)
    image = np.where(heart.fat & (thorax < 0.3), np.where(patches > -0.4, FAT * 0.8, MUSCLE), thorax)
    image[heart.right_wall] = MUSCLE
    image[heart.right] = BLOOD * 0.96
    mask = np.zeros(y.shape, dtype=np.uint8)
    if level < 0:
        # Above the valves: atrium and outflow, with thin walls and without a label.
        image[heart.myocardium | heart.left] = BLOOD * 0.9
        return image, mask
    image[heart.myocardium] = MUSCLE * 0.85
    image[heart.left] = BLOOD
    # Papillary muscles count as cavity, as the annotators of cine data draw it.
    image[heart.papillary] = MUSCLE * 1.2
    mask[heart.right], mask[heart.myocardium], mask[heart.left] = RIGHT, MYOCARDIUM, LEFT
    return image, mask


def acdc_volume(
    rng: np.random.Generator,
    patient: Patient,
    scanner: dict[str, float],
    systole: bool,
    size: int,
    tissue: int,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One phase.

    Args:
        rng: noise of the acquisition.
        patient: the subject.
        scanner: "gain", "noise", "blur" of the site.
        systole: at its end, or at the end of diastole.
        size: columns in pixels.
        tissue: seed of what is the same in both phases.

    Returns:
        Image (int16) and mask (uint8: 1 right ventricle, 2 myocardium, 3 left ventricle), [slices, rows, size], from
        apex to base, SLICE_DISTANCE mm from one to the next.
    """
    rows, pixel = round(size * HEIGHT), FIELD_OF_VIEW / size
    y, x = np.meshgrid(
        (np.arange(rows) - (rows - 1) / 2) * pixel, (np.arange(size) - (size - 1) / 2) * pixel, indexing="ij"
    )
    images, masks = [], []
    count = int(patient.length // SLICE_DISTANCE)
    for number in reversed(range(count)):
        place = SLICE_DISTANCE * (number + 0.4)
        image, mask = _scene((tissue, number), patient, place, systole, y, x)
        grain = smooth_noise(rng, y.shape, 1.2 * size / 128)
        image += 0.025 * grain * (image > 0.1)
        received = receive(rng, image, patient.shading, {**scanner, "blur": 0.6 * scanner["blur"]})
        images.append(np.clip(UNITS * received, 0, 32767).astype(np.int16))
        masks.append(mask)
    return np.stack(images), np.stack(masks)


def write_acdc(out: Path, *, subjects: int, sites: int, seed: int, size: int = NATIVE_SIZE) -> None:
    """Write `patientNNN/patientNNN_frameXX.nii.gz`, `_gt`, Info.cfg and sites.csv; every site has each group in turn.

    Args:
        out: new or empty folder.
        subjects: in all; subject i, which files call i + 1, is of site i % sites.
        sites: number of sites.
        seed: fixes every byte.
        size: columns in pixels, which are 384 mm; rows are 216 / 256 of them.

    Raises:
        ConfigError: SimpleITK is not installed.
    """
    names = [f"patient{subject + 1:03d}" for subject in range(subjects)]
    for subject, name in enumerate(names):
        scanner = draw_scanner(seed, subject % sites)
        rng = np.random.default_rng([seed, subject])
        patient = draw_patient(rng, GROUPS[(subject // sites) % len(GROUPS)], scanner["anatomy"])
        frames = int(rng.integers(20, 31))
        systole = round(0.38 * frames + rng.uniform(-1, 1))
        tissue = int(rng.integers(1 << 31))
        for frame in (1, systole):
            image, mask = acdc_volume(rng, patient, scanner, frame != 1, size, tissue)
            pixel = FIELD_OF_VIEW / size
            for values, ending in ((image, ""), (mask, "_gt")):
                write_image(
                    # Stored from back to front and from left to right, as NIfTI's axes have it.
                    values[:, ::-1, ::-1],
                    out / name / f"{name}_frame{frame:02d}{ending}.nii.gz",
                    (pixel, pixel, SLICE_DISTANCE),
                    (-1, 0, 0, 0, -1, 0, 0, 0, 1),
                )
        height, weight = rng.normal(171, 9), rng.normal(76, 13)
        (out / name / "Info.cfg").write_text(
            f"ED: 1\nES: {systole}\nGroup: {patient.group}\nHeight: {height:.1f}\nNbFrame: {frames}\n"
            f"Weight: {max(weight, 45):.1f}\n",
            encoding="utf-8",
        )
    write_sites(out, "subject", [(name, site_name(subject, sites)) for subject, name in enumerate(names)])
