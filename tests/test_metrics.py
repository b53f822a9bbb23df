"""Dice, HD95 and ASD against shapes worked out by hand; the policy for empty masks."""

from __future__ import annotations

import math

import pytest
import torch

from ppcmi_fast.metrics import dice_scores, segmentation_scores, summarise


def square(top: int, left: int, height: int, width: int, size: int = 32) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.int64)
    mask[0, top : top + height, left : left + width] = 1
    return mask


def test_the_same_mask_is_perfect() -> None:
    mask = square(4, 4, 8, 8)
    (score,) = segmentation_scores(mask, mask, 2)
    assert (score.dice, score.hd95, score.asd) == ([1.0], [0.0], [0.0])


def test_shifted_square_in_pixels_and_in_anisotropic_millimetres() -> None:
    truth, pred = square(8, 8, 8, 8), square(12, 8, 8, 8)
    (pixels,) = segmentation_scores(pred, truth, 2)
    assert pixels.dice[0] == pytest.approx(2 * 32 / 128)
    assert pixels.hd95[0] == pytest.approx(4.0)
    (mm,) = segmentation_scores(pred, truth, 2, torch.tensor([[1.5, 0.5]]))
    # The far edge is 4 rows of 1.5 mm away from the other square.
    assert mm.hd95[0] == pytest.approx(6.0)
    assert mm.dice == pixels.dice


def test_two_points_have_the_distance_between_them() -> None:
    truth, pred = square(5, 5, 1, 1), square(8, 9, 1, 1)
    (pixels,) = segmentation_scores(pred, truth, 2)
    assert pixels.hd95[0] == pytest.approx(5.0) and pixels.asd[0] == pytest.approx(5.0)
    (mm,) = segmentation_scores(pred, truth, 2, torch.tensor([[2.0, 0.5]]))
    assert mm.hd95[0] == pytest.approx(math.hypot(6, 2)) and mm.asd[0] == pytest.approx(math.hypot(6, 2))


def test_policy_for_empty_masks() -> None:
    empty, some = torch.zeros(1, 32, 32, dtype=torch.int64), square(4, 4, 8, 8)
    (both,) = segmentation_scores(empty, empty, 2)
    assert (both.dice, both.hd95, both.asd) == ([1.0], [0.0], [0.0])
    spacing = torch.tensor([[2.0, 1.0]])
    for pred, truth in ((empty, some), (some, empty)):
        (one,) = segmentation_scores(pred, truth, 2, spacing)
        assert one.dice == [0.0]
        assert one.hd95[0] == one.asd[0] == pytest.approx(math.hypot(64, 32))


def test_classes_are_scored_apart() -> None:
    truth = square(4, 4, 8, 8) + 2 * square(20, 20, 4, 4)
    pred = square(4, 4, 8, 8)
    (score,) = segmentation_scores(pred, truth, 3)
    assert score.dice == [1.0, 0.0]
    assert torch.equal(dice_scores(pred, truth, 3), torch.tensor([[1.0, 0.0]]))


def test_summary_weighs_sites_alike() -> None:
    good, bad = square(4, 4, 8, 8), torch.zeros(1, 32, 32, dtype=torch.int64)
    scores = segmentation_scores(torch.cat([good, good, good, bad]), good.repeat(4, 1, 1), 2)
    summary = summarise(scores, ["a", "a", "a", "b"])
    assert summary["dice"]["mean"] == pytest.approx(0.5)
    assert summary["dice"]["site"] == {"a": 1.0, "b": 0.0}
    assert summary["dice"]["class"] == {"1": pytest.approx(0.5)}


@pytest.mark.parametrize("value", [2, 255, -1])
@pytest.mark.parametrize("name", ["pred", "truth"])
def test_a_label_that_is_no_class_is_named(name: str, value: int) -> None:
    maps = {"pred": square(4, 4, 8, 8), "truth": square(4, 4, 8, 8)}
    maps[name][0, 0, 0] = value
    message = rf"{name}: expected values 0\.\.1, got {min(value, 0)}\.\.{max(value, 1)}; store class indices"
    for call in (segmentation_scores, dice_scores):
        with pytest.raises(ValueError, match=message):
            call(maps["pred"], maps["truth"], 2)


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4).long(), "pred: expected int64"),
        (torch.zeros(1, 4, 5).long(), torch.zeros(1, 4, 4).long(), "expected the shape of truth"),
    ],
)
def test_bad_input_is_named(pred: torch.Tensor, truth: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_scores(pred, truth, 2)
    with pytest.raises(ValueError, match="one per image"):
        summarise([], [])
