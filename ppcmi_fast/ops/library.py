"""Registration of the torch ops: schemas, the kernels behind them, and fake implementations.

The kernels get pointers and strides and link no torch, so one build serves every torch version.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppcmi_fast.ops.checks import check_index
from ppcmi_fast.ops.kernels import KERNELS, empty
from ppcmi_fast.ops.params import MAX_ODD_FACTOR

_MATERIAL = "Tensor mix, Tensor? factors, Tensor? perm, Tensor? offset, int fold"

DEVICES = ("cpu", "cuda")

LIBRARY = torch.library.Library("ppcmi_fast", "DEF")
LIBRARY.define(f"klt(Tensor x, {_MATERIAL}, bool normalize, bool inverse) -> Tensor")
LIBRARY.define(f"klt_quantize(Tensor x, {_MATERIAL}, int bits, bool normalize) -> Tensor")
LIBRARY.define(f"klt_dequantize(Tensor codes, {_MATERIAL}, int bits, ScalarType dtype) -> Tensor")
LIBRARY.define(
    "switch_dequantize(Tensor codes, Tensor matrices, Tensor? index, Tensor? offsets, int bits, ScalarType dtype)"
    " -> Tensor"
)


def check_material(dim: int, mix: Tensor, factors: Tensor | None, perm: Tensor | None) -> None:
    """The sizes again: an op called as torch.ops.ppcmi_fast.* has not been through `checks`.

    Raises:
        ValueError: material of another size.
    """
    if mix.shape[1] != dim or (perm is None) != (factors is None):
        raise ValueError(f"mix: expected material for {dim} channels, got {list(mix.shape)}")
    if factors is not None and factors.shape[1] > MAX_ODD_FACTOR:
        raise ValueError(
            f"factors: expected at most [R, {MAX_ODD_FACTOR}, {MAX_ODD_FACTOR}], got {list(factors.shape)}"
        )


class _Material:
    """A handle and the tensors that it points to."""

    def __init__(self, dim: int, mix: Tensor, factors: Any, perm: Any, offset: Any) -> None:
        check_material(dim, mix, factors, perm)
        self.mix = mix.contiguous()
        self.rest = [None if t is None else t.contiguous() for t in (factors, perm, offset)]
        self.handle = KERNELS[mix.device.type].material(self.mix, *self.rest)


@torch.library.impl("ppcmi_fast::klt", DEVICES, lib=LIBRARY)
def _klt(
    x: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, normalize: bool, inverse: bool
) -> Tensor:
    dim = x.shape[1] if inverse else x.shape[1] * fold * fold
    material = _Material(dim, mix, factors, perm, offset)
    return KERNELS[x.device.type].klt(x, material.handle, fold, normalize, inverse)


@torch.library.impl("ppcmi_fast::klt_quantize", DEVICES, lib=LIBRARY)
def _klt_quantize(
    x: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, bits: int, normalize: bool
) -> Tensor:
    material = _Material(x.shape[1] * fold * fold, mix, factors, perm, offset)
    return KERNELS[x.device.type].klt_quantize(x, material.handle, fold, bits, normalize)


@torch.library.impl("ppcmi_fast::klt_dequantize", DEVICES, lib=LIBRARY)
def _klt_dequantize(
    codes: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, bits: int, dtype: torch.dtype
) -> Tensor:
    material = _Material(codes.shape[1] * 8 // bits, mix, factors, perm, offset)
    return KERNELS[codes.device.type].klt_dequantize(codes, material.handle, fold, bits, dtype)


@torch.library.impl("ppcmi_fast::switch_dequantize", DEVICES, lib=LIBRARY)
def _switch_dequantize(
    codes: Tensor, matrices: Tensor, index: Any, offsets: Any, bits: int, dtype: torch.dtype
) -> Tensor:
    if codes.is_cpu:
        check_index(index, matrices.shape[0])
    return KERNELS[codes.device.type].switch_dequantize(codes, matrices, index, offsets, bits, dtype)


@torch.library.register_fake("ppcmi_fast::klt", lib=LIBRARY)
def _klt_fake(
    x: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, normalize: bool, inverse: bool
) -> Tensor:
    _, c, h, w = x.shape
    area = fold * fold
    if inverse:
        return empty(x, c // area, h * fold, w * fold, x.dtype)
    return empty(x, c * area, h // fold, w // fold, x.dtype)


@torch.library.register_fake("ppcmi_fast::klt_quantize", lib=LIBRARY)
def _klt_quantize_fake(
    x: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, bits: int, normalize: bool
) -> Tensor:
    _, c, h, w = x.shape
    return empty(x, c * fold * fold * bits // 8, h // fold, w // fold, torch.uint8)


@torch.library.register_fake("ppcmi_fast::klt_dequantize", lib=LIBRARY)
def _klt_dequantize_fake(
    codes: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, bits: int, dtype: torch.dtype
) -> Tensor:
    _, c, h, w = codes.shape
    return empty(codes, c * 8 // bits // (fold * fold), h * fold, w * fold, dtype)


@torch.library.register_fake("ppcmi_fast::switch_dequantize", lib=LIBRARY)
def _switch_dequantize_fake(
    codes: Tensor, matrices: Tensor, index: Any, offsets: Any, bits: int, dtype: torch.dtype
) -> Tensor:
    return empty(codes, matrices.shape[-2], codes.shape[2], codes.shape[3], dtype)
