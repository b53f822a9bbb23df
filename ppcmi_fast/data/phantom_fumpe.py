"""CT angiography of the lungs with emboli in the pulmonary arteries, in the layout of FUMPE; Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ppcmi_fast.data.phantom_files import site_name, write_sites
from ppcmi_fast.data.phantom_shapes import draw_scanner
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
from ppcmi_fast.data.readers.base import require

NATIVE_SIZE = (
    256  # the published pictures have 512 pixels; half of them show the same and take an eighth of the time
)
FIELD_OF_VIEW = 350.0  # mm
SLICES, SLICE_DISTANCE = 40, 4.0
AIR, LUNG, FAT, MUSCLE, BLOOD, CLOT = -1000.0, -860.0, -95.0, 52.0, 45.0, 60.0
MARROW, CORTEX = 190.0, 620.0
HILUM = (4.0, 2.0, 34.0)  # of the left lung; the right one's x is negative


@dataclass(frozen=True)
class Chest:
    """One subject: contrast in HU, lengths in mm.

    Attributes:
        body: half the height and width of the chest.
        fat: thickness below the skin.
        contrast: of the pulmonary arteries.
        arteries, veins: pieces of the vessel trees.
        emboli: fillings of pieces of the arteries.
        heart: middle of the ventricles.
    """

    body: tuple[float, float]
    fat: float
    contrast: float
    arteries: list[Tube]
    veins: list[Tube]
    emboli: list[Tube]
    heart: Place


def _turned(rng: np.random.Generator, direction: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """A direction tilted by an angle towards a random side."""
    side = np.cross(direction, rng.normal(size=3))
    side /= np.linalg.norm(side)
    turned: NDArray[np.float64] = np.cos(angle) * direction + np.sin(angle) * side
    return turned


def _grow(
    rng: np.random.Generator, tree: list[Tube], start: Place, direction: NDArray[np.float64], radius: float
) -> None:
    """Branch from `start` on, Murray's law for the radii, until vessels are thinner than a voxel shows."""
    if radius < 0.7:
        return
    length = radius * rng.uniform(3.6, 5.2) + 4
    step = direction * length
    end = (start[0] + step[0], start[1] + step[1], start[2] + step[2])
    tree.append(Tube(start, end, radius, 0.88 * radius))
    share = rng.uniform(0.35, 0.65)
    for part, sign in ((share, 1), (1 - share, -1)):
        turned = _turned(rng, direction, sign * rng.uniform(0.35, 0.75))
        _grow(rng, tree, end, turned, 0.88 * radius * part ** (1 / 3))


def _lung_tree(rng: np.random.Generator, trunk: list[Tube], radius: float, veins: bool) -> list[Tube]:
    """A tree into each lung: an upper, a middle and two lower lobar vessels a side."""
    tree = list(trunk)
    for side in (-1.0, 1.0):
        root = (HILUM[0] - (14 if veins else 0), HILUM[1] + (-6 if veins else 4), side * HILUM[2])
        for z, y, x in ((0.85, -0.2, 0.5), (0.1, -0.75, 0.75), (-0.55, 0.5, 0.75), (-0.9, 0.3, 0.35)):
            direction = np.array([z, y, side * x]) + rng.normal(0, 0.12, 3)
            _grow(rng, tree, root, direction / np.linalg.norm(direction), radius * rng.uniform(0.85, 1.1))
    return tree


def _pulmonary_trunk(rng: np.random.Generator, wide: float) -> list[Tube]:
    """Trunk and both main arteries, the right one behind the ascending aorta."""
    fork = (18.0, -6.0, 8.0 + rng.uniform(-2, 2))
    right, left = (6.0, 8.0, -20.0), (14.0, 8.0, 26.0)
    return [
        Tube((-18.0, -38.0, 18.0), fork, 14 * wide, 13 * wide),
        Tube(fork, right, 11 * wide, 9.5 * wide),
        Tube(right, (HILUM[0], HILUM[1] + 4, -HILUM[2]), 9.5 * wide, 8 * wide),
        Tube(fork, left, 11 * wide, 9.5 * wide),
        Tube(left, (HILUM[0], HILUM[1] + 4, HILUM[2]), 9.5 * wide, 8 * wide),
    ]


def _draw_emboli(rng: np.random.Generator, arteries: list[Tube], count: int) -> list[Tube]:
    """Clots that leave some of the vessel open; every second one in a large artery."""
    large = [tube for tube in arteries[1:] if tube.end_radius > 4.5]
    small = [tube for tube in arteries if 2.0 < tube.end_radius <= 4.5]
    clots = []
    for number in range(count):
        pool = large if number % 2 == 0 else small
        tube = pool[int(rng.integers(len(pool)))]
        begin, stop = sorted(rng.uniform(0.0, 1.0, 2))
        stop = max(stop, begin + 0.35)
        radius = rng.uniform(0.5, 0.78) * tube.radius_at(0.5)
        # Towards one wall, so that contrast flows past.
        aside = _turned(rng, np.array(tube.end) - np.array(tube.start), np.pi / 2)
        aside *= 0.8 * (tube.radius_at(0.5) - radius) / max(float(np.linalg.norm(aside)), 1e-6)
        ends = [tuple(np.array(tube.at(min(share, 1.0))) + aside) for share in (begin, stop)]
        clots.append(Tube(ends[0], ends[1], radius, 0.9 * radius))
    return clots


def draw_chest(rng: np.random.Generator, scanner: dict[str, float], emboli: int) -> Chest:
    """Draw a subject.

    Args:
        rng: of the subject.
        scanner: "gain" is the strength of the contrast here, "anatomy" the size.
        emboli: how many clots.
    """
    size = 0.5 + 0.5 * scanner["anatomy"]
    arteries = _lung_tree(rng, _pulmonary_trunk(rng, scanner["anatomy"]), 5.2 * scanner["anatomy"], False)
    return Chest(
        body=(rng.uniform(106, 118) * size, rng.uniform(150, 165) * size),
        fat=rng.uniform(8, 20),
        contrast=float(np.clip(330 * scanner["gain"] * rng.uniform(0.92, 1.08), 260, 420)),
        arteries=arteries,
        veins=_lung_tree(rng, [], 4.4 * scanner["anatomy"], True),
        emboli=_draw_emboli(rng, arteries, emboli),
        heart=(-62.0 + rng.uniform(-6, 6), -22.0, 26.0 + rng.uniform(-4, 4)),
    )


def _fill(image: Voxels, share: Voxels | NDArray[np.bool_], units: float) -> None:
    """Let a part of each voxel be of other units."""
    image += share * (np.float32(units) - image)


def _tubes(grid: Grid, tubes: list[Tube]) -> Voxels:
    share: Voxels = np.zeros(grid.shape, dtype=np.float32)
    for tube in tubes:
        fill_tube(share, grid, tube)
    return share


def _dome(grid: Grid) -> NDArray[np.bool_]:
    """Liver and spleen under the diaphragm, where they lie in the cavity."""
    dome: NDArray[np.bool_] = ellipsoid(grid, (-112.0, 6.0, -62.0), (66, 78, 78)) < 1
    dome |= ellipsoid(grid, (-120.0, 6.0, 62.0), (66, 76, 74)) < 1
    return dome


def _cavity(chest: Chest, grid: Grid, depth: Voxels) -> NDArray[np.bool_]:
    """Within the ribs."""
    return np.broadcast_to(depth > chest.fat + 17, grid.shape)


def _thorax(rng: np.random.Generator, chest: Chest, grid: Grid) -> Voxels:
    """Skin, fat, muscle, ribs, lungs, mediastinum, spine, without contrast."""
    z, y, x = grid.axes
    depth = body_depth(grid, chest.body)
    image: Voxels = np.full(grid.shape, AIR, dtype=np.float32)
    _fill(image, np.clip(depth / grid.spacing[2], 0, 1), FAT)
    _fill(image, np.broadcast_to((depth > 0) & (depth < 2), grid.shape), 20.0)
    inside = depth > chest.fat
    _fill(image, np.broadcast_to(inside, grid.shape), MUSCLE)
    planes = gaussian_filter(rng.normal(size=grid.shape).astype(np.float32), (1, 1.2, 3.2))
    _fill(image, inside & (planes > 1.1 * float(planes.std())), 0.6 * FAT)
    ribs = rib_shadow(grid, depth, chest.fat + 10)
    _fill(image, ribs, MARROW)
    _fill(image, ribs & (np.abs(np.abs(depth - chest.fat - 10) - 4) < 1.2), CORTEX)
    cavity = _cavity(chest, grid, depth)
    middle = np.abs(x - 6) < 26 + 9 * np.cos(y / 32) + np.clip(-z, 0, 60) * 0.25
    dome = _dome(grid)
    lungs = cavity & ~middle & ~dome
    # The part that the patient lies on holds more blood.
    texture = gaussian_filter(rng.normal(size=grid.shape).astype(np.float32), (1, 2, 2)) * 90
    image = np.where(lungs, LUNG + 0.35 * y + texture, image).astype(np.float32)
    image = np.where(dome & cavity, 62.0 + 0.1 * texture, image).astype(np.float32)
    _fill(image, cavity & middle & ~dome, 10.0)
    _spine(image, grid, chest)
    return image


def _spine(image: Voxels, grid: Grid, chest: Chest) -> None:
    z, _, _ = grid.axes
    back = chest.body[0] - chest.fat - 30
    disc = np.broadcast_to(np.abs((z + 400) % 30 - 15) < 3, grid.shape)
    body = ellipsoid(grid, (0.0, back, 0.0), (1e4, 17, 20))
    _fill(image, body < 1, CORTEX * 0.7)
    _fill(image, (body < 0.88) & ~disc, MARROW)
    _fill(image, (body < 1) & disc, 80.0)
    arch = ellipsoid(grid, (0.0, back + 24, 0.0), (1e4, 12, 16))
    _fill(image, arch < 1, CORTEX * 0.6)
    _fill(image, arch < 0.62, 25.0)


def _heart_and_vessels(image: Voxels, chest: Chest, grid: Grid) -> None:
    """Chambers, aorta, vena cava, airways; the right side is the brightest, as contrast comes from there."""
    z, y, x = chest.heart
    _fill(image, ellipsoid(grid, chest.heart, (52, 46, 52), 0.5) < 1, -60.0)
    _fill(image, ellipsoid(grid, chest.heart, (48, 41, 47), 0.5) < 1, 95.0)
    _fill(image, ellipsoid(grid, (z, y + 10, x + 12), (36, 18, 24), 0.6) < 1, 0.6 * chest.contrast)
    _fill(image, ellipsoid(grid, (z, y - 16, x - 14), (34, 15, 27), 0.5) < 1, chest.contrast)
    _fill(image, ellipsoid(grid, (z + 12, y + 4, x - 40), (28, 22, 20)) < 1, 1.05 * chest.contrast)
    _fill(image, ellipsoid(grid, (-22.0, 20.0, 4.0), (20, 16, 30)) < 1, 0.65 * chest.contrast)
    aorta = [
        Tube((-30.0, -18.0, 2.0), (34.0, -16.0, -12.0), 15, 15),
        Tube((34.0, -16.0, -12.0), (52.0, 10.0, 8.0), 14, 13),
        Tube((52.0, 10.0, 8.0), (34.0, 40.0, 22.0), 13, 12),
        Tube((34.0, 40.0, 22.0), (-110.0, 46.0, 18.0), 12, 11),
    ]
    _fill(image, _tubes(grid, aorta), 0.62 * chest.contrast)
    _fill(
        image, _tubes(grid, [Tube((90.0, -22.0, -30.0), (-24.0, -12.0, -30.0), 9, 9)]), 1.25 * chest.contrast
    )
    airways = [
        Tube((90.0, 22.0, 0.0), (30.0, 24.0, 0.0), 9, 9),
        Tube((30.0, 24.0, 0.0), (2.0, 18.0, -32.0), 7, 5.5),
        Tube((30.0, 24.0, 0.0), (-2.0, 18.0, 36.0), 6.5, 5),
    ]
    walls = [Tube(t.start, t.end, t.start_radius + 1.5, t.end_radius + 1.5) for t in airways]
    _fill(image, _tubes(grid, walls), 20.0)
    _fill(image, _tubes(grid, airways), AIR)


def _noise(rng: np.random.Generator, grid: Grid, depth: Voxels, scanner: dict[str, float]) -> Voxels:
    """Band-limited as reconstruction makes it, and stronger where more body lies in the way."""
    white = rng.normal(size=grid.shape).astype(np.float32)
    band = gaussian_filter(white, (0.3, 0.6, 0.6)) - gaussian_filter(white, (0.3, 1.8, 1.8))
    band *= 17 * scanner["noise"] / float(band.std())
    result: Voxels = band * (0.35 + np.clip(depth, 0, 110) / 90)
    return result


def fumpe_volume(
    rng: np.random.Generator, chest: Chest, scanner: dict[str, float], size: int, slices: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A scan from feet to head.

    Args:
        rng: texture and noise.
        chest: the subject.
        scanner: "noise" and "blur" of the site.
        size: edge in pixels.
        slices: number, SLICE_DISTANCE mm apart.

    Returns:
        Hounsfield units int16 and emboli uint8, [slices, size, size].
    """
    pixel = FIELD_OF_VIEW / size
    grid = Grid((slices, size, size), (SLICE_DISTANCE, pixel, pixel))
    image = _thorax(rng, chest, grid)
    _heart_and_vessels(image, chest, grid)
    depth = body_depth(grid, chest.body)
    # The trees grow without knowing where the lungs end.
    room = _cavity(chest, grid, depth) & ~_dome(grid)
    _fill(image, _tubes(grid, chest.veins) * room, 0.6 * chest.contrast)
    arteries = _tubes(grid, chest.arteries) * room
    _fill(image, arteries, chest.contrast)
    clots = np.minimum(_tubes(grid, chest.emboli), arteries)
    _fill(image, clots, CLOT)
    kernel = 0.75 * scanner["blur"] * size / 256
    image = gaussian_filter(image, (0.25, kernel, kernel))
    image += _noise(rng, grid, depth, scanner)
    return np.clip(image, -1024, 3071).astype(np.int16), (clots > 0.5).astype(np.uint8)


def _dicom_slice(units: NDArray[np.int16], patient: str, number: int, place: float, seed: int) -> Any:
    """A CT slice; identifiers follow from seed, patient and number alone."""
    pydicom = require("pydicom")
    dataset, uid = require("pydicom.dataset"), require("pydicom.uid")

    def identifier(*of: object) -> Any:
        return uid.generate_uid(entropy_srcs=[f"ppcmi phantom {seed} {patient}", *map(str, of)])

    meta = dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = identifier("slice", number)
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid.PYDICOM_IMPLEMENTATION_UID
    found = pydicom.Dataset()
    found.file_meta = meta
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.StudyInstanceUID, found.SeriesInstanceUID = identifier("study"), identifier("series")
    found.FrameOfReferenceUID, found.PositionReferenceIndicator = identifier("frame"), ""
    found.Modality, found.Manufacturer, found.PatientID, found.PatientName = "CT", "phantom", patient, patient
    found.PatientBirthDate, found.PatientSex, found.AccessionNumber = "", "", ""
    found.StudyDate, found.StudyTime, found.ReferringPhysicianName = "20180101", "120000", ""
    found.StudyID, found.SeriesNumber, found.InstanceNumber = "1", 1, number
    pixel, half = FIELD_OF_VIEW / units.shape[1], (units.shape[1] - 1) / 2
    found.ImagePositionPatient = [round(-half * pixel, 4), round(-half * pixel, 4), place]
    found.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    found.PixelSpacing, found.SliceThickness = [round(pixel, 6)] * 2, SLICE_DISTANCE
    found.Rows, found.Columns = units.shape
    found.ImageType, found.PatientPosition = ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS"
    found.AcquisitionNumber, found.KVP, found.ContrastBolusAgent = 1, None, "iodine"
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 16
    found.HighBit, found.PixelRepresentation = 15, 0
    found.RescaleSlope, found.RescaleIntercept, found.RescaleType = 1, -1024, "HU"
    found.WindowCenter, found.WindowWidth = 100, 700
    found.PixelData = (units.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    return found


def write_fumpe(
    out: Path, *, subjects: int, sites: int, seed: int, size: int = NATIVE_SIZE, slices: int = SLICES
) -> None:
    """Write `CT_scans/PATnnn/D0001.dcm`, `GroundTruth/PATnnn.mat` (GT [H, W, slices]) and sites.csv.

    Slices are numbered from head to feet. One patient in twelve has no embolus.

    Args:
        out: new or empty folder.
        subjects: in all; subject i, which files call i + 1, is of site i % sites.
        sites: number of sites.
        seed: fixes every byte.
        size: edge in pixels, which are 350 mm.
        slices: of each patient, 4 mm apart.

    Raises:
        ConfigError: pydicom or SciPy is not installed.
    """
    scipy_io = require("scipy.io")
    (out / "GroundTruth").mkdir()
    names = [f"PAT{subject + 1:03d}" for subject in range(subjects)]
    for subject, name in enumerate(names):
        scanner = draw_scanner(seed, subject % sites)
        rng = np.random.default_rng([seed, subject])
        chest = draw_chest(rng, scanner, 0 if subject % 12 == 11 else int(rng.integers(3, 8)))
        units, mask = fumpe_volume(rng, chest, scanner, size, slices)
        folder = out / "CT_scans" / name
        folder.mkdir(parents=True)
        for number in range(1, slices + 1):
            index = slices - number
            found = _dicom_slice(units[index], name, number, SLICE_DISTANCE * index, seed)
            found.save_as(folder / f"D{number:04d}.dcm", enforce_file_format=True)
        path = out / "GroundTruth" / f"{name}.mat"
        scipy_io.savemat(path, {"GT": mask[::-1].transpose(1, 2, 0)}, do_compression=True)
        _set_header(path)
    write_sites(out, "subject", ((name, site_name(i, sites)) for i, name in enumerate(names)))


def _set_header(path: Path) -> None:
    """Write the text that MATLAB files begin with without the time of their making."""
    content = path.read_bytes()
    path.write_bytes(b"MATLAB 5.0 MAT-file, phantom".ljust(116) + content[116:])
