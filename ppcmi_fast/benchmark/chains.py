"""The operators' steps as a torch user would chain them, channels in dimension 1, as fast as eager torch does them.

`ops.reference` is written to be read; these are written to be beaten.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppcmi_fast.ops.codebook import codebook
from ppcmi_fast.ops.layout import memory_format
from ppcmi_fast.ops.params import KltParams, odd_part
from ppcmi_fast.ops.reference import EPSILON, pack, unpack


def _transform(v: Tensor, power: int) -> Tensor:
    """Walsh-Hadamard transform, not scaled, of runs of `power` channels; v [N, D, P]."""
    shape, span = v.shape, 1
    while span < power:
        pairs = v.reshape(shape[0], -1, 2, span, shape[2])
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        v = torch.stack((first + second, first - second), 2).reshape(shape)
        span *= 2
    return v


def _mix(v: Tensor, params: KltParams, inverse: bool) -> Tensor:
    if params.matrix is not None:
        return torch.matmul(params.matrix.T if inverse else params.matrix, v)
    assert params.signs is not None and params.factors is not None and params.perm is not None
    odd = odd_part(params.dim)
    power, shape = params.dim // odd, v.shape
    scale = power ** (-0.5 * len(params.signs))
    if inverse:
        v = torch.empty_like(v).index_copy_(1, params.perm, v)
    rounds = range(len(params.signs))
    for index in reversed(rounds) if inverse else rounds:
        signs = params.signs[index].view(1, -1, 1)
        v = v if inverse else v * signs
        v = _transform(v, power)
        if odd > 1:
            factor = params.factors[index].T if inverse else params.factors[index]
            v = torch.matmul(factor, v.reshape(shape[0], odd, -1)).view(shape)
        v = v * signs if inverse else v
    out: Tensor = (v if inverse else v.index_select(1, params.perm)) * scale
    return out


def klt_quantize(params: KltParams, bits: int) -> Callable[[Tensor], Tensor]:
    """Normalize, mix, permute, quantize and pack: the codes of `ops.klt_quantize`, for material without an offset."""
    thresholds = codebook(bits)[1].to(params.device)
    steps_per_unit = float(254 / (thresholds[-1] - thresholds[0]))

    def chain(x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        v = x.float().reshape(n, params.dim, h * w)
        v = v * torch.rsqrt(v.square().mean(1, keepdim=True) + EPSILON)
        v = _mix(v, params, inverse=False)
        if bits == 8:  # evenly spaced: no search is needed
            codes = (v * steps_per_unit + 128).clamp(0, 255).to(torch.uint8).view(n, params.dim, h, w)
        else:
            codes = torch.bucketize(v.contiguous(), thresholds, right=True, out_int32=True).to(torch.uint8)
            codes = pack(codes.view(n, params.dim, h, w), bits)
        return codes.contiguous(memory_format=memory_format(x))

    return chain


def klt_dequantize(params: KltParams, bits: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Unpack, levels, and the way back: the result of `ops.klt_dequantize`, for material without an offset."""
    levels = codebook(bits)[0].to(params.device)
    first, step = float(levels[0]), float((levels[-1] - levels[0]) / 255)

    def chain(codes: Tensor) -> Tensor:
        n, _, h, w = codes.shape
        v = codes.to(torch.float32) * step + first if bits == 8 else levels[unpack(codes, bits).int()]
        out = _mix(v.reshape(n, params.dim, h * w), params, inverse=True).view(n, params.dim, h, w).to(dtype)
        return out.contiguous(memory_format=memory_format(codes))

    return chain
