"""Images and masks as tensors of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppcmi_fast.data.cache import SliceCache, decode_resized
from ppcmi_fast.data.records import Dataset, Record
from ppcmi_fast.errors import DataError


@dataclass
class Arrays:
    """A set of images in memory.

    Attributes:
        images: float32 [N, 1, size, size], each rescaled by its 1st..99th percentile to 0..1.
        masks: int64 [N, size, size].
        records: one an image.
        spacing: float32 [N, 2] (y, x) in millimetres a pixel after resizing, or None.
        modality: decides how they are augmented.
    """

    images: Tensor
    masks: Tensor
    records: list[Record]
    spacing: Tensor | None
    modality: str = "general"

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
            parts[0].modality,
        )


def rescale(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    """Clip to the 1st..99th percentile and map to 0..1; float32 [H, W]."""
    low, high = np.percentile(pixels, (1, 99))
    return torch.from_numpy(np.clip((pixels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32))


def clip_to_window(pixels: np.ndarray[Any, Any], window: tuple[float, float]) -> Tensor:
    """Map low..high to 0..1, and what lies beyond to its ends; float32 [H, W]."""
    low, high = window
    return torch.from_numpy(np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32))


def to_unit_range(pixels: np.ndarray[Any, Any], window: tuple[float, float] | None) -> Tensor:
    """Grey values as a network takes them, float32 [1, H, W] in 0..1: by the window, or without one by percentiles."""
    return (rescale(pixels) if window is None else clip_to_window(pixels, window)).unsqueeze(0)


def load_arrays(
    dataset: Dataset, size: int, records: Sequence[Record] | None = None, cache: SliceCache | None = None
) -> Arrays:
    """Read images; pictures that are not square are stretched, and their spacing with them.

    Args:
        dataset: says how they are decoded and by which window they are scaled.
        size: edge in pixels.
        records: those of the data set to read; None reads all.
        cache: where decoded and resized slices are kept between runs; None decodes all.

    Raises:
        DataError: no records, or a file that cannot be read.
    """
    records = dataset.records if records is None else records
    if not records:
        raise DataError("records: expected at least one image, got none; give every site more subjects")
    read = decode_resized if cache is None else cache.get
    slices = [read(dataset.source, record, size) for record in records]
    spacing = None
    if all(record.spacing is not None for record in records):
        rows = [
            [r.spacing[0] * height / size, r.spacing[1] * width / size]
            for r, (height, width) in ((r, found.shape) for r, found in zip(records, slices, strict=True))
            if r.spacing is not None
        ]
        spacing = torch.tensor(rows, dtype=torch.float32)
    return Arrays(
        torch.stack([to_unit_range(found.pixels, dataset.window) for found in slices]),
        torch.stack([torch.from_numpy(found.mask) for found in slices]),
        list(records),
        spacing,
        dataset.modality,
    )
