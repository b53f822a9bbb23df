"""Augmentation: image and mask move together, draws repeat, and each modality changes grey values in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from native_layouts import WRITERS
from torch import Tensor

from ppcmi_fast.data.arrays import Arrays, load_arrays
from ppcmi_fast.data.augment import MODALITIES, augment, augmented_batch
from ppcmi_fast.data.readers import open_dataset


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squares(count: int = 64) -> tuple[Tensor, Tensor]:
    masks = torch.zeros(count, 48, 48, dtype=torch.int64)
    masks[:, 14:30, 18:34] = 1
    return masks.unsqueeze(1).float() * 0.6 + 0.2, masks


@pytest.mark.parametrize("modality", MODALITIES)
def test_image_and_mask_move_together_and_draws_repeat(modality: str) -> None:
    images, masks = squares()
    moved, labels = augment(images, masks, seeded(), modality)
    assert type(moved) is Tensor and moved.shape == images.shape and moved.dtype == torch.float32
    assert labels.dtype == torch.int64 and set(labels.unique().tolist()) == {0, 1}
    assert moved[:, 0][labels == 1].mean() - moved[:, 0][labels == 0].mean() > 0.4
    assert (labels != masks).flatten(1).any(1).all()
    again, same_labels = augment(images, masks, seeded(), modality)
    assert torch.equal(moved, again) and torch.equal(labels, same_labels)
    other, _ = augment(images, masks, seeded(1), modality)
    assert not torch.equal(moved, other)


def test_masks_move_alike_whatever_the_modality() -> None:
    images, masks = squares(8)
    maps = [augment(images, masks, seeded(), modality)[1] for modality in MODALITIES]
    assert all(torch.equal(maps[0], other) for other in maps[1:])


def test_only_fields_change_one_side_against_the_other() -> None:
    images, masks = torch.full((200, 1, 32, 32), 0.5), torch.zeros(200, 32, 32, dtype=torch.int64)

    def tilt(modality: str) -> float:
        found = augment(images, masks, seeded(), modality)[0]
        sides = found[:, 0, :, :16].mean((1, 2)) - found[:, 0, :, 16:].mean((1, 2))
        return float(sides.abs().quantile(0.9))

    assert min(tilt("mri"), tilt("ultrasound")) > 3 * max(tilt("ct"), tilt("general"))


def test_rician_noise_lifts_the_dark() -> None:
    images, masks = torch.zeros(200, 1, 32, 32), torch.zeros(200, 32, 32, dtype=torch.int64)
    assert augment(images, masks, seeded(), "mri")[0].mean() > 0.005
    assert abs(float(augment(images, masks, seeded(), "ct")[0].median())) < 0.005


def test_an_unknown_modality_is_named() -> None:
    with pytest.raises(ValueError, match="modality: expected one of general, ultrasound, mri, ct, got 'pet'"):
        augment(*squares(1), seeded(), "pet")


@pytest.mark.parametrize(
    ("layout", "modality"),
    [("psfhs", "ultrasound"), ("nerve", "ultrasound"), ("fumpe", "ct"), ("acdc", "mri"), ("dicom", "ct")],
)
def test_layouts_know_their_modality(layout: str, modality: str, tmp_path: Path) -> None:
    dataset = open_dataset(WRITERS[layout](tmp_path / "d"))
    assert dataset.modality == modality == load_arrays(dataset, 16).modality


@pytest.mark.parametrize(
    ("stated", "modality"),
    [
        ('{"0": "MRI"}', "mri"),
        ('{"0": "FLAIR", "1": "T1w"}', "mri"),
        ('{"0": "CT"}', "ct"),
        ("{}", "general"),
    ],
)
def test_decathlon_sets_state_theirs(stated: str, modality: str, tmp_path: Path) -> None:
    root = WRITERS["msd"](tmp_path / "d")
    (root / "dataset.json").write_text(f'{{"modality": {stated}, "labels": {{"1": "left atrium"}}}}')
    assert open_dataset(root).modality == modality


def test_a_batch_is_what_augmentation_makes_of_the_images_drawn() -> None:
    images, masks = squares(3)
    images = images * torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1, 1)
    data = Arrays(images, masks, [], None, "mri")
    found, labels = augmented_batch(data, 8, seeded(4))
    generator = seeded(4)
    drawn = torch.randint(3, (8,), generator=generator)
    assert set(drawn.tolist()) == {0, 1, 2}
    expected = augment(images[drawn], masks[drawn], generator, "mri")
    assert torch.equal(found, expected[0])
    assert torch.equal(labels, expected[1])
