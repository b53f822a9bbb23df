"""The ops in pure torch, on any device: what the kernels are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppcmi_fast.ops.checks import check_index
from ppcmi_fast.ops.codebook import codebook
from ppcmi_fast.ops.layout import memory_format
from ppcmi_fast.ops.params import KltParams, odd_part

EPSILON = 1e-12


def _walsh_hadamard(v: Tensor) -> Tensor:
    """Orthonormal transform along the last axis, a power of two."""
    size, shape = v.shape[-1], v.shape
    span = 1
    while span < size:
        pairs = v.reshape(*shape[:-1], size // (2 * span), 2, span)
        v = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], dim=-2)
        v = v.reshape(shape)
        span *= 2
    result: Tensor = v * size**-0.5
    return result


def _mix(v: Tensor, params: KltParams, inverse: bool) -> Tensor:
    """M v or M^T v on vectors [..., D]."""
    if params.matrix is not None:
        matrix = params.matrix.to(v.dtype)
        return v @ (matrix if inverse else matrix.T)
    assert params.signs is not None and params.factors is not None and params.perm is not None
    signs, factors = params.signs.to(v.dtype), params.factors.to(v.dtype)
    odd = odd_part(params.dim)
    blocks = (*v.shape[:-1], odd, params.dim // odd)
    if inverse:
        v = v[..., torch.argsort(params.perm)]
        for index in reversed(range(len(signs))):
            if odd > 1:
                v = (factors[index].T @ v.reshape(blocks)).reshape(v.shape)
            v = _walsh_hadamard(v.reshape(blocks)).reshape(v.shape) * signs[index]
        return v
    for index in range(len(signs)):
        v = _walsh_hadamard((v * signs[index]).reshape(blocks))
        v = (factors[index] @ v if odd > 1 else v).reshape(*blocks[:-2], params.dim)
    return v[..., params.perm]


def klt(x: Tensor, params: KltParams, *, normalize: bool = True, inverse: bool = False) -> Tensor:
    """Reference of `ops.klt`; computes in float32 (float64 for float64) and returns x's dtype and memory format."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    layout = memory_format(x)
    v = x.to(wide)
    if not inverse:
        v = F.pixel_unshuffle(v, params.fold) if params.fold > 1 else v
    v = v.movedim(1, -1)
    offset = None if params.offset is None else params.offset.to(wide)
    if inverse:
        v = _mix(v if offset is None else v - offset, params, inverse=True)
    else:
        if normalize:
            v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + EPSILON)
        v = _mix(v, params, inverse=False)
        v = v if offset is None else v + offset
    out = v.movedim(-1, 1)
    if inverse and params.fold > 1:
        out = F.pixel_shuffle(out, params.fold)
    return out.to(x.dtype).contiguous(memory_format=layout)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [N, D, H, W] -> [N, D * bits / 8, H, W]; byte j holds channels j p .. j p + p - 1 from bit 0 up."""
    per_byte = 8 // bits
    groups = codes.unflatten(1, (codes.shape[1] // per_byte, per_byte)).to(torch.int32)
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.int32) * bits
    packed: Tensor = (groups << shifts.view(1, 1, -1, 1, 1)).sum(2).to(torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack`."""
    per_byte = 8 // bits
    shifts = torch.arange(per_byte, device=packed.device, dtype=torch.int32) * bits
    groups: Tensor = (packed.unsqueeze(2).to(torch.int32) >> shifts.view(1, 1, -1, 1, 1)) & (2**bits - 1)
    return groups.flatten(1, 2).to(torch.uint8)


def klt_quantize(x: Tensor, params: KltParams, *, bits: int = 8, normalize: bool = True) -> Tensor:
    """Reference of `ops.klt_quantize`."""
    wide = x if x.dtype == torch.float64 else x.float()
    mixed = klt(wide, params, normalize=normalize)
    _, thresholds = codebook(bits)
    codes = torch.bucketize(mixed.contiguous(), thresholds.to(mixed), right=True).to(torch.uint8)
    return pack(codes, bits).contiguous(memory_format=memory_format(x))


def klt_dequantize(
    codes: Tensor, params: KltParams, *, bits: int = 8, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Reference of `ops.klt_dequantize`."""
    levels, _ = codebook(bits)
    values = levels.to(codes.device)[unpack(codes, bits).long()]
    out = klt(values, params, normalize=False, inverse=True).to(dtype)
    return out.contiguous(memory_format=memory_format(codes))


def switch_dequantize(
    codes: Tensor,
    matrices: Tensor,
    index: Tensor | None = None,
    offsets: Tensor | None = None,
    *,
    bits: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Reference of `ops.switch_dequantize`."""
    levels, _ = codebook(bits)
    values = levels.to(codes.device)[unpack(codes, bits).long()]
    if index is None:
        out = torch.einsum("ij,njhw->nihw", matrices, values)
        shift = None if offsets is None else offsets.view(1, -1, 1, 1)
    else:
        if not torch.compiler.is_compiling():
            check_index(index, len(matrices))  # indexing would take a negative one from the end
        out = torch.einsum("nij,njhw->nihw", matrices[index], values)
        shift = None if offsets is None else offsets[index][:, :, None, None]
    out = out if shift is None else out + shift
    return out.to(dtype).contiguous(memory_format=memory_format(codes))
