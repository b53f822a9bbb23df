"""Axial MRI of the heart with the left atrium marked, in the layout of Task02 of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ppcmi_fast.data.phantom_cardiac import BLOOD, FAT, LIVER, LUNG, MUSCLE
from ppcmi_fast.data.phantom_files import site_name, write_image, write_sites
from ppcmi_fast.data.phantom_shapes import draw_scanner, receive
from ppcmi_fast.data.phantom_volume_shapes import (
    Grid,
    Place,
    Tube,
    Voxels,
    body_depth,
    ellipsoid,
    fill_tube,
    rib_shadow,
)

NATIVE_SIZE = 320
FIELD_OF_VIEW = 400.0  # mm: 1.25 mm a pixel at the native size
SLICES, SLICE_DISTANCE = 40, 2.7  # half of the published slices, twice as far apart
UNITS = 900.0  # signal 1 in the stored integers
STUMP = 9.0  # mm of each pulmonary vein that annotators count to the atrium


@dataclass(frozen=True)
class Torso:
    """One subject; lengths in mm.

    Attributes:
        body: half the height and width of the chest.
        fat: thickness below the skin.
        atrium: middle of the left atrium.
        radii: of the left atrium.
        turn: of atrium and ventricles in the axial plane.
        veins: pulmonary veins, from the atrium outwards.
        size: factor on the rest of the heart.
        shading: of the coil.
    """

    body: tuple[float, float]
    fat: float
    atrium: Place
    radii: Place
    turn: float
    veins: list[Tube]
    size: float
    shading: tuple[float, float]


def _draw_veins(rng: np.random.Generator, atrium: Place, radii: Place) -> list[Tube]:
    """Two a side, the upper ones forwards, the lower ones backwards; one subject in five has a third right one."""
    veins = []
    places = [(0.45, -0.35, 0.8), (-0.35, 0.55, 0.8), (0.45, -0.2, -0.85), (-0.35, 0.55, -0.8)]
    if rng.random() < 0.2:
        places.append((0.05, 0.25, -0.95))
    for share in places:
        z, y, x = (middle + part * radius for middle, part, radius in zip(atrium, share, radii, strict=True))
        out = np.array([0.45 * np.sign(share[0]), 0.7 * share[1], 1.1 * np.sign(share[2])])
        out = out + rng.normal(0, 0.12, 3)
        out *= rng.uniform(38, 52) / np.linalg.norm(out)
        radius = rng.uniform(5.5, 8.0)
        veins.append(Tube((z, y, x), (z + out[0], y + out[1], x + out[2]), radius, 0.55 * radius))
    return veins


def draw_torso(rng: np.random.Generator, anatomy: float) -> Torso:
    """Draw a subject; `anatomy` is the site's factor on sizes."""
    atrium = (rng.uniform(2, 12), rng.uniform(10, 20), rng.uniform(2, 12))
    # Half of the patients of such sets have a large atrium: they fibrillate.
    wide = anatomy * rng.uniform(0.9, 1.25)
    radii = (rng.uniform(21, 26) * wide, rng.uniform(15, 19) * wide, rng.uniform(27, 33) * wide)
    return Torso(
        body=(rng.uniform(104, 118) * (0.5 + 0.5 * anatomy), rng.uniform(158, 176) * (0.5 + 0.5 * anatomy)),
        fat=rng.uniform(8, 20),
        atrium=atrium,
        radii=radii,
        turn=rng.uniform(0.1, 0.35),
        veins=_draw_veins(rng, atrium, radii),
        size=anatomy * rng.uniform(0.92, 1.08),
        shading=(rng.uniform(-0.4, 0.4), rng.uniform(0.3, 0.8)),
    )


def _tubes(grid: Grid, tubes: list[Tube]) -> Voxels:
    share: Voxels = np.zeros(grid.shape, dtype=np.float32)
    for tube in tubes:
        fill_tube(share, grid, tube)
    return share


def _left_atrium(torso: Torso, grid: Grid) -> NDArray[np.bool_]:
    """Body, appendage, and the stumps of the veins."""
    z, y, x = torso.atrium
    rz, ry, rx = torso.radii
    body = ellipsoid(grid, torso.atrium, torso.radii, -torso.turn) < 1
    # The roof is flatter than an ellipsoid's, because the pulmonary artery lies on it.
    body &= ~(ellipsoid(grid, (z + rz + 13, y - 6, x), (20, 24, 40)) < 1)
    appendage = [
        Tube((z + 0.2 * rz, y - 0.6 * ry, x + 0.75 * rx), (z + 0.5 * rz, y - ry - 8, x + rx + 3), 9, 6.5),
        Tube((z + 0.5 * rz, y - ry - 8, x + rx + 3), (z + 0.35 * rz, y - ry - 20, x + rx - 2), 6.5, 3.5),
    ]
    stumps = []
    for vein in torso.veins:
        length = float(np.linalg.norm(np.array(vein.end) - np.array(vein.start)))
        share = min(1.0, 2.2 * STUMP / length)
        stumps.append(Tube(vein.start, vein.at(share), vein.start_radius, vein.radius_at(share)))
    atrium: NDArray[np.bool_] = body | (_tubes(grid, appendage) > 0.5) | (_tubes(grid, stumps) > 0.5)
    return atrium


def _thorax(rng: np.random.Generator, torso: Torso, grid: Grid) -> Voxels:
    """Skin and chest wall, lungs, mediastinum, liver, spine, oesophagus."""
    z, y, x = grid.axes
    depth = body_depth(grid, torso.body)
    whole = grid.shape
    texture = gaussian_filter(rng.normal(size=whole).astype(np.float32), (0.8, 1.2, 1.2))
    texture /= float(texture.std())
    image: Voxels = np.full(whole, 0.02, dtype=np.float32)
    image[np.broadcast_to(depth > 0, whole)] = FAT
    image[np.broadcast_to(depth > torso.fat, whole)] = MUSCLE
    planes = gaussian_filter(rng.normal(size=whole).astype(np.float32), (1.5, 1.5, 5))
    image[np.broadcast_to(depth > torso.fat, whole) & (planes > 1.2 * float(planes.std()))] = 0.75
    image[rib_shadow(grid, depth, torso.fat + 9)] = 0.5
    cavity = np.broadcast_to(depth > torso.fat + 16, whole)
    image[cavity] = LUNG
    image[cavity & (texture > 2.4)] = 0.4
    middle = np.broadcast_to(np.abs(x - 4) < 30 + 10 * np.cos(y / 34) + 0 * z, whole) & cavity
    image[middle] = 0.34
    image[middle & (texture > 0.9)] = 0.7
    liver = ellipsoid(grid, (-84.0, 4.0, -64.0), (62, 74, 74)) < 1
    image[liver & cavity] = LIVER
    back = torso.body[0] - torso.fat - 30
    spine = ellipsoid(grid, (0.0, back, 0.0), (1e4, 17, 20))
    image[spine < 1.1] = 0.15
    image[spine < 1] = 0.45
    image[(spine < 1) & np.broadcast_to(np.abs((z + 400) % 30 - 15) < 3, whole)] = 0.3
    image[ellipsoid(grid, (0.0, back + 24, 0.0), (1e4, 9, 10)) < 1] = BLOOD
    image[ellipsoid(grid, (0.0, torso.atrium[1] + torso.radii[1] + 8, 4.0), (1e4, 5, 7)) < 1] = 0.4
    return image


def _heart(image: Voxels, torso: Torso, grid: Grid) -> None:
    """Ventricles below and before the atria, the great vessels above; muscle first, blood into it."""
    z, y, x = torso.atrium
    size, turn = torso.size, 0.55 + torso.turn
    left: Place = (z - 30 * size, y - 34 * size, x + 30 * size)
    right: Place = (z - 30 * size, y - 52 * size, x - 8 * size)
    sac = ellipsoid(grid, (z - 20, y - 34, x + 8), (62 * size, 50 * size, 62 * size), turn)
    image[sac < 1] = 0.5 * FAT
    image[(sac < 1) & (sac > 0.9)] = 0.85 * FAT
    image[ellipsoid(grid, left, (44 * size, 30 * size, 45 * size), turn) < 1] = MUSCLE
    image[ellipsoid(grid, right, (40 * size, 22 * size, 42 * size), 0.4) < 1] = MUSCLE
    image[ellipsoid(grid, right, (36 * size, 18.5 * size, 38 * size), 0.4) < 1] = 0.95 * BLOOD
    septum = ellipsoid(grid, left, (40 * size, 26 * size, 40 * size), turn)
    image[septum < 1] = MUSCLE
    image[septum < 0.76] = BLOOD
    outer = (torso.radii[0] + 2.5, torso.radii[1] + 2.5, torso.radii[2] + 2.5)
    right_atrium: Place = (z - 6, y - 22, x - 44 * size)
    for centre, radii in ((torso.atrium, outer), (right_atrium, (29 * size, 23 * size, 22 * size))):
        image[ellipsoid(grid, centre, radii, -torso.turn) < 1] = MUSCLE
    image[ellipsoid(grid, right_atrium, (27 * size, 21 * size, 20 * size)) < 1] = 0.93 * BLOOD
    vessels = [
        Tube((z - 8, y - 32, x - 4), (z + 80, y - 34, x - 12), 15, 14),  # ascending aorta
        Tube((z + 16, y - 50, x + 12), (z + 42, y - 22, x + 16), 13, 12),  # pulmonary trunk
        Tube((z + 42, y - 22, x + 16), (z + 40, y - 8, x - 40), 11, 8),
        Tube((z + 42, y - 22, x + 16), (z + 38, y - 4, x + 50), 11, 8),
        Tube((z - 100, y + 40, x + 16), (z + 80, y + 38, x + 20), 11.5, 12),  # descending aorta
        Tube((z + 80, y - 20, x - 40), (z + 10, y - 18, x - 42), 9, 9),  # superior vena cava
        Tube((z - 100, y - 12, x - 40), (z - 28, y - 16, x - 42), 12, 11),  # inferior vena cava
    ]
    share = _tubes(grid, [Tube(t.start, t.end, t.start_radius + 2, t.end_radius + 2) for t in vessels])
    image[(share > 0.5) & (image < 0.9 * BLOOD)] = MUSCLE
    image[_tubes(grid, vessels + torso.veins) > 0.5] = 0.97 * BLOOD


def heart_volume(
    rng: np.random.Generator, torso: Torso, scanner: dict[str, float], size: int, slices: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A scan from feet to head.

    Args:
        rng: texture and noise.
        torso: the subject.
        scanner: "gain", "noise" and "blur" of the site.
        size: edge in pixels.
        slices: number, SLICE_DISTANCE mm apart.

    Returns:
        Signal float32 and left atrium uint8, [slices, size, size].
    """
    pixel = FIELD_OF_VIEW / size
    grid = Grid((slices, size, size), (SLICE_DISTANCE, pixel, pixel))
    image = _thorax(rng, torso, grid)
    _heart(image, torso, grid)
    mask = _left_atrium(torso, grid)
    image[mask] = 0.98 * BLOOD
    texture = gaussian_filter(rng.normal(size=grid.shape).astype(np.float32), (0.6, 1.0, 1.0))
    image += 0.02 * texture / float(texture.std()) * (image > 0.1)
    # Breathing through the minutes of such a scan smears along the body.
    image = gaussian_filter(image, (0.5, 0.5 * scanner["blur"], 0))
    sharper = {**scanner, "blur": 0.6 * scanner["blur"]}
    received = [receive(rng, slice_.astype(np.float64), torso.shading, sharper) for slice_ in image]
    return (UNITS * np.stack(received)).astype(np.float32), mask.astype(np.uint8)


def write_heart(
    out: Path, *, subjects: int, sites: int, seed: int, size: int = NATIVE_SIZE, slices: int = SLICES
) -> None:
    """Write `imagesTr/la_NNN.nii.gz`, `labelsTr/` of the same names, dataset.json and sites.csv.

    Args:
        out: new or empty folder.
        subjects: in all; subject i, which files call i + 1, is of site i % sites.
        sites: number of sites.
        seed: fixes every byte.
        size: edge in pixels, which are 400 mm.
        slices: of each subject, 2.7 mm apart.

    Raises:
        ConfigError: SimpleITK is not installed.
    """
    names = [f"la_{subject + 1:03d}" for subject in range(subjects)]
    pixel = FIELD_OF_VIEW / size
    for subject, name in enumerate(names):
        scanner = draw_scanner(seed, subject % sites)
        rng = np.random.default_rng([seed, subject])
        image, mask = heart_volume(rng, draw_torso(rng, scanner["anatomy"]), scanner, size, slices)
        for values, folder in ((image, "imagesTr"), (mask, "labelsTr")):
            # NIfTI's own axes run to the right and to the front, as the published files do.
            write_image(
                np.ascontiguousarray(values[:, ::-1, ::-1]),
                out / folder / f"{name}.nii.gz",
                (pixel, pixel, SLICE_DISTANCE),
                (-1, 0, 0, 0, -1, 0, 0, 0, 1),
                ((size - 1) / 2 * pixel, (size - 1) / 2 * pixel, 0.0),
            )
    description = {
        "name": "Heart",
        "description": "phantom of the left atrium",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium"},
        "numTraining": subjects,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names
        ],
        "test": [],
    }
    (out / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    write_sites(out, "subject", ((name, site_name(i, sites)) for i, name in enumerate(names)))
