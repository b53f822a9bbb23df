"""Frames that look alike: where a data set names no subjects, they must not be split into training and test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SIDE = 16
ALIKE = 0.95  # correlation of thumbnails from which on two frames count as of one sweep
CHUNK = 512


def thumbnail(pixels: np.ndarray[Any, Any], side: int = SIDE) -> np.ndarray[Any, Any]:
    """Block means of [H, W], side x side, flattened, centred and of unit length: a product of two is a correlation."""
    rows = np.array_split(np.arange(pixels.shape[0]), side)
    columns = np.array_split(np.arange(pixels.shape[1]), side)
    sums = np.add.reduceat(np.add.reduceat(pixels, [r[0] for r in rows], 0), [c[0] for c in columns], 1)
    small = sums / np.outer([len(r) for r in rows], [len(c) for c in columns])
    small = small - small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-9), dtype=np.float32).ravel()


def group_similar(
    images: Mapping[str, np.ndarray[Any, Any] | None], alike: float = ALIKE, side: int = SIDE
) -> dict[str, int]:
    """Number the groups of frames that are connected by similarity, in the order of their first frame.

    Args:
        images: by name, float [H, W] of at least side x side, or None for one that cannot be read, a group of its own.
        alike: correlation of thumbnails from which on two frames are connected.
        side: edge of the thumbnails.

    Returns:
        The group of each name.
    """
    names = sorted(images)
    known = [name for name in names if images[name] is not None]
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    if known:
        thumbnails = np.stack(
            [thumbnail(pixels, side) for name in known if (pixels := images[name]) is not None]
        )
        for first in range(0, len(known), CHUNK):
            close = thumbnails[first : first + CHUNK] @ thumbnails.T >= alike
            for i, j in np.argwhere(close):
                if first + i < j:
                    parent[root(known[j])] = root(known[first + i])
    numbers: dict[str, int] = {}
    return {name: numbers.setdefault(root(name), len(numbers)) for name in names}
