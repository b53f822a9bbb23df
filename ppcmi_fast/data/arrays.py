"""Images and masks as tensors of one size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppcmi_fast.data.folder import open_grey
from ppcmi_fast.data.readers import reader_of
from ppcmi_fast.data.readers.base import Reader
from ppcmi_fast.data.records import Record
from ppcmi_fast.errors import DataError


@dataclass
class Arrays:
    """A set of images in memory.

    Attributes:
        images: float32 [N, 1, size, size], each rescaled by its 1st..99th percentile to 0..1.
        masks: int64 [N, size, size].
        records: one an image.
        spacing: float32 [N, 2] (y, x) in millimetres a pixel after resizing, or None.
    """

    images: Tensor
    masks: Tensor
    records: list[Record]
    spacing: Tensor | None

    @property
    def subjects(self) -> list[str]:
        """One name an image."""
        return [record.subject for record in self.records]

    @staticmethod
    def concatenate(parts: list[Arrays]) -> Arrays:
        """Join sets; spacing is kept only where all have it."""
        spacings = [part.spacing for part in parts if part.spacing is not None]
        return Arrays(
            torch.cat([part.images for part in parts]),
            torch.cat([part.masks for part in parts]),
            [record for part in parts for record in part.records],
            torch.cat(spacings) if len(spacings) == len(parts) else None,
        )


def rescale(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    """Clip to the 1st..99th percentile and map to 0..1; float32 [H, W]."""
    low, high = np.percentile(pixels, (1, 99))
    return torch.from_numpy(np.clip((pixels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32))


def clip_to_window(pixels: np.ndarray[Any, Any], window: tuple[float, float]) -> Tensor:
    """Map low..high to 0..1, and what lies beyond to its ends; float32 [H, W]."""
    low, high = window
    return torch.from_numpy(np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32))


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


def resize(values: np.ndarray[Any, Any], size: int, method: Image.Resampling) -> np.ndarray[Any, Any]:
    """[H, W] of float32 or int32 to [size, size]."""
    return np.asarray(Image.fromarray(values).resize((size, size), method))


def _load_pair(
    record: Record, reader: Reader | None, size: int, window: tuple[float, float] | None
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Image [1, size, size], mask [size, size], and the picture's own (height, width)."""
    if reader is None:
        image, shape = load_image(record.image, size)
        return image, load_mask(record.mask, size), shape
    pixels, mask = reader.pixels(record), reader.mask(record)
    resized = resize(pixels, size, Image.Resampling.BILINEAR)
    image = rescale(resized) if window is None else clip_to_window(resized, window)
    classes = resize(mask.astype(np.int32), size, Image.Resampling.NEAREST)
    return image.unsqueeze(0), torch.from_numpy(classes.astype(np.int64)), (pixels.shape[0], pixels.shape[1])


def load_arrays(
    records: list[Record], size: int, layout: str = "folder", window: tuple[float, float] | None = None
) -> Arrays:
    """Read records; pictures that are not square are stretched, and their spacing with them.

    Args:
        records: of one data set.
        size: edge in pixels.
        layout: the data set's (`Dataset.layout`).
        window: (low, high) in the file's units to map to 0..1; None takes each image's 1st..99th percentile.

    Raises:
        DataError: no records, or a file that cannot be read.
    """
    if not records:
        raise DataError("records: expected at least one image, got none; give every site more subjects")
    reader = None if layout == "folder" else reader_of(layout)
    pairs = [_load_pair(record, reader, size, window) for record in records]
    spacing = None
    if all(record.spacing is not None for record in records):
        rows = [
            [r.spacing[0] * height / size, r.spacing[1] * width / size]
            for r, (_, _, (height, width)) in zip(records, pairs, strict=True)
            if r.spacing is not None
        ]
        spacing = torch.tensor(rows, dtype=torch.float32)
    return Arrays(
        torch.stack([image for image, _, _ in pairs]),
        torch.stack([mask for _, mask, _ in pairs]),
        list(records),
        spacing,
    )
