"""Images and masks as tensors of one size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppcmi_fast.data.folder import Record, open_grey
from ppcmi_fast.errors import DataError


@dataclass
class Arrays:
    """A set of images in memory.

    Attributes:
        images: float32 [N, 1, size, size], each rescaled by its 1st..99th percentile to 0..1.
        masks: int64 [N, size, size].
        subjects: one name an image.
        spacing: float32 [N, 2] (y, x) in millimetres a pixel after resizing, or None.
    """

    images: Tensor
    masks: Tensor
    subjects: list[str]
    spacing: Tensor | None

    @staticmethod
    def concatenate(parts: list[Arrays]) -> Arrays:
        """Join sets; spacing is kept only where all have it."""
        spacings = [part.spacing for part in parts if part.spacing is not None]
        return Arrays(
            torch.cat([part.images for part in parts]),
            torch.cat([part.masks for part in parts]),
            [subject for part in parts for subject in part.subjects],
            torch.cat(spacings) if len(spacings) == len(parts) else None,
        )


def rescale(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    """Clip to the 1st..99th percentile and map to 0..1; float32 [H, W]."""
    low, high = np.percentile(pixels, (1, 99))
    return torch.from_numpy(np.clip((pixels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32))


def load_image(path: Path, size: int) -> tuple[Tensor, tuple[int, int]]:
    """One image as [1, size, size] float32 in 0..1, and its own (height, width).

    Raises:
        DataError: missing, damaged or not 8-bit grey.
    """
    image = open_grey(path).convert("L")
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return rescale(np.asarray(resized, dtype=np.float32)).unsqueeze(0), (image.height, image.width)


def load_mask(path: Path, size: int) -> Tensor:
    """One mask as [size, size] int64, nearest neighbour; palette images give their indices."""
    resized = open_grey(path).resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(resized, dtype=np.int64).copy())


def load_arrays(records: list[Record], size: int) -> Arrays:
    """Read records; pictures that are not square are stretched, and their spacing with them.

    Raises:
        DataError: no records, or a file that cannot be read.
    """
    if not records:
        raise DataError("records: expected at least one image, got none; give every site more subjects")
    pairs = [load_image(record.image, size) for record in records]
    spacing = None
    if all(record.spacing is not None for record in records):
        rows = [
            [r.spacing[0] * height / size, r.spacing[1] * width / size]
            for r, (_, (height, width)) in zip(records, pairs, strict=True)
            if r.spacing is not None
        ]
        spacing = torch.tensor(rows, dtype=torch.float32)
    return Arrays(
        torch.stack([image for image, _ in pairs]),
        torch.stack([load_mask(record.mask, size) for record in records]),
        [record.subject for record in records],
        spacing,
    )
