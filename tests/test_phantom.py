"""Phantoms: layout, determinism, classes, physics that can be checked, and augmentation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppcmi_fast.data.arrays import load_arrays
from ppcmi_fast.data.augment import augment
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.data.readers import open_dataset
from ppcmi_fast.data.splits import split_by_subject
from ppcmi_fast.errors import DataError


@pytest.mark.parametrize(("kind", "classes"), [("cardiac", 2), ("ultrasound", 3)])
def test_the_folder_reads_back(tmp_path: Path, kind: str, classes: int) -> None:
    root = write_phantom(kind, tmp_path / "p", sites=2, subjects=3, slices=2, size=64)
    dataset = open_dataset(root)
    assert dataset.classes == classes and len(dataset.records) == 12 and dataset.spacing_known
    split_by_subject(dataset.records)
    arrays = load_arrays(dataset, 64)
    areas = torch.stack([(arrays.masks == label).float().mean((1, 2)) for label in range(1, classes)])
    assert areas.min() > 0 and areas.max() < 0.15


@pytest.mark.parametrize("kind", ["cardiac", "ultrasound"])
def test_the_same_seed_gives_the_same_files_and_another_others(tmp_path: Path, kind: str) -> None:
    settings = {"sites": 1, "subjects": 1, "slices": 2, "size": 48}
    roots = [
        write_phantom(kind, tmp_path / str(i), seed=seed, **settings) for i, seed in enumerate((3, 3, 4))
    ]
    files = [[p.read_bytes() for p in sorted((root / "images").iterdir())] for root in roots]
    assert files[0] == files[1] and files[0] != files[2]


def test_cavity_is_brighter_than_muscle_and_vessel_darker_than_nerve(tmp_path: Path) -> None:
    heart = load_arrays(open_dataset(write_phantom("cardiac", tmp_path / "c", sites=2, subjects=2)), 128)
    inside = heart.images[:, 0][heart.masks == 1].mean()
    ring = torch.nn.functional.max_pool2d(heart.masks.float().unsqueeze(1), 7, 1, 3).squeeze(1) - heart.masks
    assert inside > 1.5 * heart.images[:, 0][ring == 1].mean()
    limb = load_arrays(open_dataset(write_phantom("ultrasound", tmp_path / "u", sites=2, subjects=2)), 128)
    assert limb.images[:, 0][limb.masks == 2].mean() < 0.4 * limb.images[:, 0][limb.masks == 1].mean()


def test_sites_differ(tmp_path: Path) -> None:
    dataset = open_dataset(write_phantom("cardiac", tmp_path / "c", sites=3, subjects=3, slices=2))
    from PIL import Image

    means = [
        np.mean([np.asarray(Image.open(r.image)).mean() for r in dataset.records if r.site == site])
        for site in sorted({r.site for r in dataset.records})
    ]
    assert np.ptp(means) > 2


def test_speckle_is_rayleigh_like(tmp_path: Path) -> None:
    from ppcmi_fast.data.phantom_ultrasound import _speckle

    envelope = 10 ** (_speckle(np.random.default_rng(0), np.zeros((128, 128)), 1.0) / 20)
    # Fully developed speckle has a ratio of mean to standard deviation of 1.91.
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, rel=0.06)


def test_writing_is_fast(tmp_path: Path) -> None:
    start = time.perf_counter()
    write_phantom("ultrasound", tmp_path / "u", sites=4, subjects=4, slices=5)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "brain"}, "kind: expected one of"),
        ({"sites": 0}, "sites: expected at least 1"),
        ({"size": 8}, "size:"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arguments = {"kind": "cardiac"} | changes
    with pytest.raises(ValueError, match=message):
        write_phantom(arguments.pop("kind"), tmp_path / "p", **arguments)
    assert not (tmp_path / "p").exists()


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(DataError, match="expected a new or empty folder"):
        write_phantom("cardiac", tmp_path)


def test_augmentation_moves_image_and_mask_together() -> None:
    masks = torch.zeros(64, 48, 48, dtype=torch.int64)
    masks[:, 14:30, 18:34] = 1
    images = masks.unsqueeze(1).float() * 0.8 + 0.1
    moved, labels = augment(images, masks, torch.Generator().manual_seed(0))
    assert (
        moved.shape == images.shape
        and labels.dtype == torch.int64
        and set(labels.unique().tolist()) == {0, 1}
    )
    inside, outside = moved[:, 0][labels == 1], moved[:, 0][labels == 0]
    assert inside.mean() - outside.mean() > 0.5
    assert (labels != masks).flatten(1).any(1).all()
    again, _ = augment(images, masks, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
