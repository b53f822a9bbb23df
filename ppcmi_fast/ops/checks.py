"""What every op checks before a kernel sees a pointer; each message says expected, got, and the cure."""

from __future__ import annotations

import torch
from torch import Tensor

from ppcmi_fast.ops.codebook import check_bits
from ppcmi_fast.ops.params import KltParams

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = ("auto", "cpu", "cuda", "torch")


def _describe(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device.type}"


def check_backend(backend: str, device: torch.device) -> None:
    """Raise unless the backend exists and serves tensors of this device."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    if backend == "torch":
        return
    wanted = device.type if backend == "auto" else backend
    if device.type not in ("cpu", "cuda") or device.type != wanted:
        place = "the cpu or a CUDA device" if backend == "auto" else f"a {backend} device"
        raise ValueError(
            f'backend: expected a tensor on {place} for backend={backend!r}, got {device}; use backend="torch"'
        )


def check_tensor(name: str, value: object) -> None:
    """Raise unless value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def check_floats(x: Tensor, channels: int, fold: int, name: str = "x") -> None:
    """Raise unless x is [N, channels, H, W] of a supported float type and fold divides H and W."""
    shape = x.shape
    if len(shape) != 4 or x.dtype not in FLOATS or shape[1] != channels:
        raise ValueError(
            f"{name}: expected [N, C, H, W] float32, float16 or bfloat16 with C = {channels}"
            f" (C*fold^2 = {channels * fold * fold}), got {_describe(x)}"
        )
    if fold > 1 and (shape[2] % fold or shape[3] % fold):
        raise ValueError(
            f"{name}: expected H and W that fold={fold} divides, got {_describe(x)}; pad or crop it"
        )


def check_codes(codes: Tensor, dim: int | None, bits: int) -> None:
    """Raise unless codes is uint8 [N, dim * bits / 8, H, W]."""
    check_bits(bits)
    shape = codes.shape
    bad = len(shape) != 4 or codes.dtype != torch.uint8
    if bad or (dim is not None and shape[1] * (8 // bits) != dim):
        wanted = "D*bits/8" if dim is None else f"{dim * bits // 8}"
        raise ValueError(f"codes: expected [N, {wanted}, H, W] uint8 for bits={bits}, got {_describe(codes)}")


def check_packable(dim: int, bits: int) -> None:
    """Raise unless dim channels fill whole bytes."""
    check_bits(bits)
    if dim % (8 // bits):
        raise ValueError(
            f"params: expected a dim that {8 // bits} divides for bits={bits}, got {dim}; use more bits"
        )


def check_no_gradient(**tensors: Tensor | None) -> None:
    """Raise when a gradient would be lost without a word: codes are integers, and codes have none to pass on."""
    if not torch.is_grad_enabled():
        return
    for name, value in tensors.items():
        if value is not None and value.requires_grad:
            raise ValueError(
                f"{name}: expected a tensor that needs no gradient, as no gradient passes through codes, got"
                " requires_grad=True; use detach() or torch.no_grad(), or train through klt"
            )


def check_params(params: KltParams, x: Tensor, name: str = "x") -> None:
    """Raise unless params is material on x's device."""
    check_tensor(name, x)
    if not isinstance(params, KltParams):
        raise TypeError(f"params: expected KltParams from key.klt_params, got {type(params).__name__}")
    if params.device != x.device:
        raise ValueError(
            f"params: expected material on {x.device}, got {params.device}; use params.to(x.device)"
        )


def check_output(dtype: torch.dtype) -> None:
    """Raise unless dtype is a supported float type."""
    if dtype not in FLOATS:
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")


def check_switch(
    codes: Tensor, matrices: Tensor, index: Tensor | None, offsets: Tensor | None, bits: int
) -> None:
    """Raise unless matrices, index and offsets fit codes and each other."""
    for name, value in (("codes", codes), ("matrices", matrices), ("index", index), ("offsets", offsets)):
        if value is not None or name in ("codes", "matrices"):
            check_tensor(name, value)
    check_codes(codes, None, bits)
    dim = codes.shape[1] * (8 // bits)
    rank = 2 if index is None else 3
    shape = "[Dout, D]" if index is None else "[K, Dout, D]"
    if matrices.ndim != rank or matrices.dtype != torch.float32 or matrices.shape[-1] != dim:
        raise ValueError(f"matrices: expected {shape} float32 with D = {dim}, got {_describe(matrices)}")
    wanted = matrices.shape[:-1]
    if offsets is not None and (offsets.shape != wanted or offsets.dtype != torch.float32):
        raise ValueError(f"offsets: expected {list(wanted)} float32, got {_describe(offsets)}")
    if index is not None and (index.dtype != torch.int64 or tuple(index.shape) != (codes.shape[0],)):
        raise ValueError(f"index: expected [{codes.shape[0]}] int64, got {_describe(index)}")
    for name, value in (("matrices", matrices), ("index", index), ("offsets", offsets)):
        if value is not None and value.device != codes.device:
            raise ValueError(f"{name}: expected a tensor on {codes.device}, got {value.device}")


def check_index(index: Tensor | None, count: int) -> None:
    """Raise unless every index is in 0..count - 1; looks at the values, so not while tracing."""
    if index is None or not index.numel():
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= count:
        raise ValueError(f"index: expected values 0..{count - 1}, got {low}..{high}")
