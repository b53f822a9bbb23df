"""Tiny data sets in the layouts in which they are published, written with the libraries that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import scipy.io
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

from ppcmi_fast.data.readers.dicom_seg import one_series, write_segmentation
from ppcmi_fast.data.readers.nerve import encode_runs

Array = np.ndarray[Any, Any]


def disc(shape: tuple[int, ...], radius: float, label: int = 1) -> Array:
    """A class map with a disc, or ball, of `label` in the middle."""
    grid = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    inside: Array = sum(axis**2 for axis in grid) <= radius**2
    return np.where(inside, label, 0).astype(np.uint8)


def write_itk(values: Array, path: Path, spacing: tuple[float, ...] | None = None, **geometry: Any) -> None:
    """`values` in SimpleITK's order, z y x; spacing x y z."""
    image = sitk.GetImageFromArray(values)
    if spacing is not None:
        image.SetSpacing(spacing)  # type: ignore[no-untyped-call]
    for name, value in geometry.items():
        getattr(image, f"Set{name}")(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=path.name.endswith(".gz"))


def psfhs(root: Path, count: int = 8) -> Path:
    """Frames of four sweeps: each picture and its noisy twin."""
    rng = np.random.default_rng(0)
    for number in range(count):
        scene = np.random.default_rng(number // 2).normal(size=(16, 16)).repeat(4, 0).repeat(4, 1)
        frame = np.clip(scene * 40 + 120 + rng.normal(0, 4, (64, 64)), 0, 255).astype(np.uint8)
        write_itk(np.stack([frame] * 3), root / "image_mha" / f"{number:05d}.mha")
        mask = np.maximum(disc((64, 64), 20, 2), np.roll(disc((64, 64), 5, 1), 27, 1))
        write_itk(mask, root / "label_mha" / f"{number:05d}.mha")
    return root


def jnu_ifm(root: Path, videos: int = 4, frames: int = 2) -> Path:
    """Colour frames of equal channels; masks with 7 and 8."""
    for part in ("image", "mask"):
        (root / part).mkdir(parents=True)
    for video in range(videos):
        for frame in range(frames):
            grey = np.random.default_rng(video * 10 + frame).integers(0, 255, (40, 50), dtype=np.uint8)
            name = f"2019_{video:04d}_{frame}"
            Image.fromarray(np.stack([grey] * 3, 2)).save(root / "image" / f"{name}.png")
            mask = np.where(disc((40, 50), 12) > 0, 8, 0) - np.roll(disc((40, 50), 4, 1), 20, 1)
            Image.fromarray(np.where(mask < 0, 7, mask).astype(np.uint8)).save(
                root / "mask" / f"{name}_mask.png"
            )
    return root


def nerve(root: Path, subjects: int = 4, frames: int = 3) -> Path:
    """Every third frame shows the nerve."""
    (root / "train").mkdir(parents=True)
    rows = ["subject,img,pixels"]
    for subject in range(1, subjects + 1):
        for frame in range(1, frames + 1):
            rng = np.random.default_rng(subject * 100 + frame)
            tifffile.imwrite(
                root / "train" / f"{subject}_{frame}.tif", rng.integers(0, 255, (42, 58), dtype=np.uint8)
            )
            mask = disc((42, 58), 9) if frame == 1 else np.zeros((42, 58), np.uint8)
            tifffile.imwrite(root / "train" / f"{subject}_{frame}_mask.tif", mask * np.uint8(255))
            rows.append(f"{subject},{frame},{encode_runs(mask.astype(np.int64))}")
    (root / "train_masks.csv").write_text("\n".join(rows) + "\n")
    return root


def write_slice(
    path: Path, units: Array, number: int, spacing: float = 0.7, series: str = "1.2.3", **changes: Any
) -> None:
    """A CT slice with intercept -1024, 2.5 mm above the one before."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{series}.{number}")
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.InstanceNumber, found.PixelSpacing = number, [spacing, spacing]
    found.Rows, found.Columns = units.shape
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 16
    found.HighBit, found.PixelRepresentation = 15, 0
    found.RescaleSlope, found.RescaleIntercept = 1, -1024
    found.Modality, found.PatientID, found.PatientName = "CT", series, ""
    found.PatientBirthDate, found.PatientSex, found.AccessionNumber = "", "", ""
    found.StudyInstanceUID, found.SeriesInstanceUID, found.FrameOfReferenceUID = (
        f"{series}.0",
        series,
        f"{series}.1",
    )
    found.StudyID, found.StudyDate, found.StudyTime, found.ReferringPhysicianName = "1", "", "", ""
    found.SeriesNumber, found.InstitutionName, found.PositionReferenceIndicator = 1, "Hospital A/B", ""
    found.ImagePositionPatient, found.SliceThickness = [-10.0, -20.0, 2.5 * number], 2.5
    found.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for name, value in changes.items():
        setattr(found, name, value)
    found.PixelData = (units + 1024).astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)


def fumpe(root: Path, patients: int = 4, slices: int = 3) -> Path:
    """File names run against the instance numbers: only the numbers order the slices."""
    for patient in range(1, patients + 1):
        name = f"PAT{patient:03d}"
        for index in range(slices):
            units = np.full((32, 32), -800.0) + 100 * index + patient
            write_slice(root / "CT_scans" / name / f"D{slices - index:04d}.dcm", units, index + 1)
        truth = np.stack([disc((32, 32), 3 + index) for index in range(slices)], 2)
        truth[..., 0] = 0
        (root / "GroundTruth").mkdir(exist_ok=True)
        scipy.io.savemat(root / "GroundTruth" / f"{name}.mat", {"Mask": truth})
    return root


def msd(root: Path, count: int = 4) -> Path:
    """Task02-like: one structure, 1.25 x 1.25 x 2.7 mm, axes turned against the patient's."""
    for number in range(count):
        values = np.random.default_rng(number).normal(300, 40, (6, 30, 32)).astype(np.float32)
        turned = {"Direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
        write_itk(values, root / "imagesTr" / f"la_{number:03d}.nii.gz", (1.25, 1.25, 2.7), **turned)
        write_itk(
            disc((6, 30, 32), 8), root / "labelsTr" / f"la_{number:03d}.nii.gz", (1.25, 1.25, 2.7), **turned
        )
    (root / "imagesTr" / "._la_000.nii.gz").write_bytes(b"not an image")
    description = {"name": "Heart", "labels": {"0": "background", "1": "left atrium"}}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def acdc(root: Path, patients: int = 4) -> Path:
    """Two frames a patient, diagnoses in turn."""
    for patient in range(1, patients + 1):
        folder = root / f"patient{patient:03d}"
        for frame in (1, 9):
            values = (
                np.random.default_rng(patient * 10 + frame).normal(100, 20, (4, 36, 30)).astype(np.float32)
            )
            labels = np.maximum(disc((4, 36, 30), 12, 2), disc((4, 36, 30), 6, 3))
            labels = np.where(labels == 0, np.roll(disc((4, 36, 30), 5, 1), 12, 2), labels)
            stem = f"patient{patient:03d}_frame{frame:02d}"
            write_itk(values, folder / f"{stem}.nii.gz", (1.5, 1.5, 10.0))
            write_itk(labels.astype(np.uint8), folder / f"{stem}_gt.nii.gz", (1.5, 1.5, 10.0))
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 9\nGroup: {('DCM', 'NOR')[patient % 2]}\nHeight: 180\n")
    return root


def dicom(root: Path, patients: int = 4, slices: int = 4) -> Path:
    """CT series with SEG of two labels; file names run against the places of the slices."""
    for patient in range(1, patients + 1):
        folder, series = root / f"p{patient}", f"1.2.826.{patient}"
        labels = np.maximum(disc((slices, 32, 40), 9), np.roll(disc((slices, 32, 40), 3, 2), 14, 2))
        labels[0] = 0
        for index in range(slices):
            units = np.random.default_rng(patient * 10 + index).normal(40, 20, (32, 40)).round()
            write_slice(folder / "ct" / f"I{slices - index}", units, index + 1, series=series)
        write_segmentation(
            one_series(folder / "ct"), labels.astype(np.uint8), ["liver", "spleen"], folder / "seg.dcm"
        )
    return root


WRITERS: dict[str, Callable[..., Path]] = {
    "psfhs": psfhs,
    "jnu-ifm": jnu_ifm,
    "nerve": nerve,
    "fumpe": fumpe,
    "msd": msd,
    "acdc": acdc,
    "dicom": dicom,
}
