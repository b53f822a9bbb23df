"""Quantizers for N(0, 1): what normalized, mixed latents look like, so one table per bit width serves all."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

BITS = (2, 4, 8)
CELLS_PER_UNIT = 50  # csrc/kernels/ops.h: kCellsPerUnit


def check_bits(bits: int) -> None:
    """Raise ValueError unless bits is 2, 4 or 8."""
    if bits not in BITS:
        raise ValueError(f"bits: expected 2, 4 or 8, got {bits}")


def _density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0


def _below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def centroids(thresholds: list[float]) -> list[float]:
    """The mean of N(0, 1) in each cell between ascending thresholds."""
    edges = [-math.inf, *thresholds, math.inf]
    cells = zip(edges, edges[1:], strict=False)
    return [(_density(a) - _density(b)) / (_below(b) - _below(a)) for a, b in cells]


def lloyd_max(count: int) -> list[float]:
    """Levels of the mean-square-optimal quantizer of N(0, 1) (Max 1960; Lloyd 1982), ascending."""
    levels = [4.0 * (i + 0.5) / count - 2.0 for i in range(count)]
    for _ in range(5000):
        new = centroids([(a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)])
        moved = max(abs(a - b) for a, b in zip(new, levels, strict=True))
        levels = new
        if moved < 1e-13:
            break
    return levels


def uniform_distortion(step: float, count: int) -> float:
    """Mean squared error on N(0, 1) of `count` levels `step` apart around zero."""
    total = 0.0
    for index in range(count):
        level = (index - (count - 1) / 2) * step
        low = -math.inf if index == 0 else level - step / 2
        high = math.inf if index == count - 1 else level + step / 2
        mass = _below(high) - _below(low)
        first = _density(low) - _density(high)
        second = mass + (low * _density(low) if math.isfinite(low) else 0.0)
        second -= high * _density(high) if math.isfinite(high) else 0.0
        total += second - 2 * level * first + level * level * mass
    return total


@cache
def uniform_step(count: int) -> float:
    """The step that minimizes `uniform_distortion`, by golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    low, high = 1.0 / count, 16.0 / count
    while high - low > 1e-9:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if uniform_distortion(a, count) < uniform_distortion(b, count):
            high = b
        else:
            low = a
    return (low + high) / 2


@cache
def _tables(bits: int) -> tuple[Tensor, Tensor]:
    count = 2**bits
    if bits == 8:
        levels = (np.arange(count) - (count - 1) / 2) * uniform_step(count)
        thresholds = (levels[1:] + levels[:-1]) / 2
    else:
        optimal = np.array(lloyd_max(count))
        thresholds = np.round((optimal[1:] + optimal[:-1]) / 2 * CELLS_PER_UNIT) / CELLS_PER_UNIT
        levels = np.array(centroids(thresholds.tolist()))
    return torch.from_numpy(levels.astype(np.float32)), torch.from_numpy(thresholds.astype(np.float32))


@cache
def rms_error(bits: int) -> float:
    """Root mean squared error of the codebook on N(0, 1).

    Raises:
        ValueError: bits other than 2, 4 or 8.
    """
    check_bits(bits)
    if bits == 8:
        return math.sqrt(uniform_distortion(uniform_step(2**bits), 2**bits))
    levels, thresholds = (table.tolist() for table in _tables(bits))
    edges = [-math.inf, *thresholds, math.inf]
    # Each level is its cell's mean, so what is left of the variance is the cells' own.
    cells = zip(levels, edges, edges[1:], strict=False)
    return math.sqrt(1 - sum((_below(b) - _below(a)) * level**2 for level, a, b in cells))


def codebook(bits: int) -> tuple[Tensor, Tensor]:
    """Levels float32 [2^bits] and thresholds float32 [2^bits - 1]; a code is the number of thresholds <= the value.

    2 and 4 bits: Lloyd-Max with its thresholds rounded to multiples of 1 / CELLS_PER_UNIT (0.03 % more error at most):
    the cell of that width tells a value's code, with no search. 8 bits: the optimal uniform quantizer, for 3 dB less of
    a signal-to-noise ratio that no network notices.

    Raises:
        ValueError: bits other than 2, 4 or 8.
    """
    check_bits(bits)
    return _tables(bits)
