"""Registration of the torch ops: schemas, the CPU kernels behind them, and fake implementations.

The kernels get pointers and strides and link no torch, so one build serves every torch version.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ppcmi_fast.ops.checks import check_index
from ppcmi_fast.ops.codebook import codebook
from ppcmi_fast.ops.reference import memory_format

_MATERIAL = "Tensor mix, Tensor? factors, Tensor? perm, Tensor? offset, int fold"
_TYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

LIBRARY = torch.library.Library("ppcmi_fast", "DEF")
LIBRARY.define(f"klt(Tensor x, {_MATERIAL}, bool normalize, bool inverse) -> Tensor")
LIBRARY.define(f"klt_quantize(Tensor x, {_MATERIAL}, int bits, bool normalize) -> Tensor")
LIBRARY.define(f"klt_dequantize(Tensor codes, {_MATERIAL}, int bits, ScalarType dtype) -> Tensor")
LIBRARY.define(
    "switch_dequantize(Tensor codes, Tensor matrices, Tensor? index, Tensor? offsets, int bits, ScalarType dtype)"
    " -> Tensor"
)


@cache
def extension() -> Any:
    """The compiled CPU kernels.

    Raises:
        RuntimeError: the package was installed without them.
    """
    try:
        from ppcmi_fast import _cpu
    except ImportError as error:
        raise RuntimeError(
            f'ppcmi_fast: the CPU kernels are missing ({error}); reinstall with `pip install .`, or use backend="torch"'
        ) from error
    return _cpu


def _image(x: Tensor, channels: int) -> Any:
    """A kernel's view of [N, C, H, W]: pointer, shape, strides in elements, type."""
    n, _, h, w = x.shape
    strides = (x.stride(0), x.stride(1), x.stride(2), x.stride(3))
    return (x.data_ptr(), (n, channels, h, w), strides, _TYPE_CODES.get(x.dtype, 0))


def _material(
    dim: int, mix: Tensor, factors: Tensor | None, perm: Tensor | None, offset: Tensor | None
) -> Any:
    """Pointers of the key material; the kernel's call must end while the caller holds the tensors.

    The sizes are checked here too: an op called as torch.ops.ppcmi_fast.* has not been through `checks`.
    """
    if mix.shape[1] != dim or (perm is None) != (factors is None):
        raise ValueError(f"mix: expected material for {dim} channels, got {list(mix.shape)}")
    if perm is None or factors is None:
        return (mix.shape[1], 0, 1, mix.data_ptr(), 0, 0, 0 if offset is None else offset.data_ptr())
    shape = (mix.shape[1], mix.shape[0], factors.shape[1])
    return (
        *shape,
        mix.data_ptr(),
        factors.data_ptr(),
        perm.data_ptr(),
        0 if offset is None else offset.data_ptr(),
    )


def _empty(like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    shape = (like.shape[0], channels, height, width)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format(like))


def _klt_output(x: Tensor, fold: int, inverse: bool) -> Tensor:
    _, c, h, w = x.shape
    area = fold * fold
    if inverse:
        return _empty(x, c // area, h * fold, w * fold, x.dtype)
    return _empty(x, c * area, h // fold, w // fold, x.dtype)


@torch.library.impl(LIBRARY, "klt", "CPU")
def _klt(
    x: Tensor,
    mix: Tensor,
    factors: Tensor | None,
    perm: Tensor | None,
    offset: Tensor | None,
    fold: int,
    normalize: bool,
    inverse: bool,
) -> Tensor:
    out = _klt_output(x, fold, inverse)
    mix, factors, perm, offset = _packed(mix, factors, perm, offset)
    extension().klt(
        _image(x, x.shape[1]),
        _image(out, out.shape[1]),
        _material(x.shape[1] if inverse else x.shape[1] * fold * fold, mix, factors, perm, offset),
        fold,
        normalize,
        inverse,
        torch.get_num_threads(),
    )
    return out


@torch.library.impl(LIBRARY, "klt_quantize", "CPU")
def _klt_quantize(
    x: Tensor,
    mix: Tensor,
    factors: Tensor | None,
    perm: Tensor | None,
    offset: Tensor | None,
    fold: int,
    bits: int,
    normalize: bool,
) -> Tensor:
    out = _quantize_output(x, fold, bits)
    mix, factors, perm, offset = _packed(mix, factors, perm, offset)
    _, thresholds = codebook(bits)
    extension().klt_quantize(
        _image(x, x.shape[1]),
        _image(out, out.shape[1]),
        _material(x.shape[1] * fold * fold, mix, factors, perm, offset),
        fold,
        normalize,
        bits,
        thresholds.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@torch.library.impl(LIBRARY, "klt_dequantize", "CPU")
def _klt_dequantize(
    codes: Tensor,
    mix: Tensor,
    factors: Tensor | None,
    perm: Tensor | None,
    offset: Tensor | None,
    fold: int,
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    out = _dequantize_output(codes, fold, bits, dtype)
    mix, factors, perm, offset = _packed(mix, factors, perm, offset)
    levels, _ = codebook(bits)
    extension().klt_dequantize(
        _image(codes, codes.shape[1]),
        _image(out, out.shape[1]),
        _material(codes.shape[1] * 8 // bits, mix, factors, perm, offset),
        fold,
        bits,
        levels.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@torch.library.impl(LIBRARY, "switch_dequantize", "CPU")
def _switch_dequantize(
    codes: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    offsets: Tensor | None,
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    out = _switch_output(codes, matrices, dtype)
    check_index(index, matrices.shape[0])
    levels, _ = codebook(bits)
    matrices, index, offsets, _ = _packed(matrices, index, offsets, None)
    extension().switch_dequantize(
        _image(codes, codes.shape[1]),
        _image(out, out.shape[1]),
        matrices.data_ptr(),
        0 if index is None else index.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        bits,
        levels.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _packed(mix: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Contiguous versions, which most already are; the kernels read material densely."""
    a, b, c = (None if t is None else t.contiguous() for t in rest)
    return mix.contiguous(), a, b, c


def _quantize_output(x: Tensor, fold: int, bits: int) -> Tensor:
    _, c, h, w = x.shape
    return _empty(x, c * fold * fold * bits // 8, h // fold, w // fold, torch.uint8)


def _dequantize_output(codes: Tensor, fold: int, bits: int, dtype: torch.dtype) -> Tensor:
    _, c, h, w = codes.shape
    return _empty(codes, c * 8 // bits // (fold * fold), h * fold, w * fold, dtype)


def _switch_output(codes: Tensor, matrices: Tensor, dtype: torch.dtype) -> Tensor:
    return _empty(codes, matrices.shape[-2], codes.shape[2], codes.shape[3], dtype)


@torch.library.register_fake("ppcmi_fast::klt", lib=LIBRARY)
def _klt_fake(
    x: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, normalize: bool, inverse: bool
) -> Tensor:
    return _klt_output(x, fold, inverse)


@torch.library.register_fake("ppcmi_fast::klt_quantize", lib=LIBRARY)
def _klt_quantize_fake(
    x: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, bits: int, normalize: bool
) -> Tensor:
    return _quantize_output(x, fold, bits)


@torch.library.register_fake("ppcmi_fast::klt_dequantize", lib=LIBRARY)
def _klt_dequantize_fake(
    codes: Tensor, mix: Tensor, factors: Any, perm: Any, offset: Any, fold: int, bits: int, dtype: torch.dtype
) -> Tensor:
    return _dequantize_output(codes, fold, bits, dtype)


@torch.library.register_fake("ppcmi_fast::switch_dequantize", lib=LIBRARY)
def _switch_dequantize_fake(
    codes: Tensor, matrices: Tensor, index: Any, offsets: Any, bits: int, dtype: torch.dtype
) -> Tensor:
    return _switch_output(codes, matrices, dtype)
