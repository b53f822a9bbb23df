"""The one check of class maps that codecs, losses and metrics share."""

from __future__ import annotations

from torch import Tensor


def check_labels(name: str, labels: Tensor, classes: int) -> None:
    """Refuse labels that are no class.

    Args:
        name: the argument to name in the message.
        labels: an integer tensor of any shape; empty passes.
        classes: classes including the background.

    Raises:
        ValueError: a label below 0 or from `classes` on.
    """
    if not labels.numel():
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: expected values 0..{classes - 1}, got {low}..{high}; store class indices or raise classes"
        )
