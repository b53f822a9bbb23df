"""The keyed latent transform as torch ops: normalize + mix + permute + quantize in one pass, and the way back.

Every op takes [N, C, H, W] in either memory format and keeps it. `backend`: "auto" runs the kernels of the tensor's
device, "cpu" and "cuda" say which, "torch" the pure-torch reference on any device; nothing falls back silently.

A call on a plain tensor that nobody traces, differentiates or intercepts goes straight to the kernels; every other goes
through torch's dispatcher, which takes longer than a small call does (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppcmi_fast.ops import checks, library, ordinary, reference
from ppcmi_fast.ops.codebook import codebook
from ppcmi_fast.ops.kernels import KERNELS, Kernels
from ppcmi_fast.ops.params import KltParams

__all__ = ["KltParams", "codebook", "klt", "klt_dequantize", "klt_quantize", "reference", "switch_dequantize"]

assert library.LIBRARY is not None

_Material = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, int]


def _material(params: KltParams) -> _Material:
    mix = params.matrix if params.matrix is not None else params.signs
    assert mix is not None
    return mix, params.factors, params.perm, params.offset, params.fold


def _direct(x: Tensor, backend: str) -> Kernels | None:
    """The kernels to call straight away, where nobody would notice that the dispatcher is passed by."""
    needs_gradient = x.requires_grad and torch.is_grad_enabled()
    if backend == "torch" or needs_gradient or not ordinary.unobserved(x):
        return None
    if x.is_neg():  # memory of other values than those that x stands for, as of `z.conj().imag`
        return None
    device = x.device.type
    return KERNELS.get(device) if backend in ("auto", device) else None


class _DifferentiableKlt(torch.autograd.Function):
    """Used only when x needs a gradient: an autograd formula on the op itself would cost every call microseconds."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mix: Tensor,
        factors: Any,
        perm: Any,
        offset: Any,
        fold: int,
        normalize: bool,
        inverse: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, mix, factors, perm)
        ctx.settings = (fold, normalize, inverse)
        out: Tensor = torch.ops.ppcmi_fast.klt(x, mix, factors, perm, offset, fold, normalize, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mix, factors, perm = ctx.saved_tensors
        fold, normalize, inverse = ctx.settings
        # Through _run, so that a gradient of this gradient is right as well.
        grad = _run(
            grads[0].to(x.dtype), (mix, factors, perm, None, fold), normalize=False, inverse=not inverse
        )
        if normalize:
            grad = _through_normalization(x, grad, fold)
        return grad, None, None, None, None, None, None, None


def _through_normalization(x: Tensor, grad: Tensor, fold: int) -> Tensor:
    """The gradient before v / rms(v), from the gradient after it; both in x's own layout."""
    v, g = x.float(), grad.float()
    if fold > 1:
        v, g = (torch.nn.functional.pixel_unshuffle(t, fold) for t in (v, g))
    scale = torch.rsqrt(v.square().mean(1, keepdim=True) + reference.EPSILON)
    unit = v * scale
    out = (g - unit * (g * unit).mean(1, keepdim=True)) * scale
    return (torch.nn.functional.pixel_shuffle(out, fold) if fold > 1 else out).to(x.dtype)


def _run(x: Tensor, material: _Material, normalize: bool, inverse: bool) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        out: Tensor = _DifferentiableKlt.apply(x, *material, normalize, inverse)  # type: ignore[no-untyped-call]
    else:
        out = torch.ops.ppcmi_fast.klt(x, *material, normalize, inverse)
    return out


def klt(
    x: Tensor, params: KltParams, *, normalize: bool = True, inverse: bool = False, backend: str = "auto"
) -> Tensor:
    """Keyed latent transform (PPCMI-SF section III): fold, normalize to unit RMS, mix, permute, offset.

    Args:
        x: [N, C, H, W] float32, float16 or bfloat16, C * fold^2 = params.dim; with `inverse`, [N, D, H, W].
        params: material from `key.klt_params`, on x's device.
        normalize: divide each position's D-vector by its RMS first; a zero vector stays zero.
        inverse: the way back, without the normalization, which is not undone.
        backend: "auto", "cpu", "cuda" or "torch".

    Returns:
        [N, D, H/fold, W/fold], or with `inverse` [N, C, H*fold, W*fold], of x's dtype and memory format;
        differentiable with respect to x.

    Raises:
        ValueError: shape, dtype, device or settings; the message names expected and got.
        RuntimeError: the backend is not there.
    """
    out = ordinary.klt(x, params, normalize, inverse) if backend == "auto" else None
    if out is not None:
        return out
    checks.check_params(params, x)
    if inverse and normalize:
        raise ValueError(
            "normalize: expected False with inverse=True, got True; a normalization has no inverse"
        )
    fold = params.fold
    if inverse:
        checks.check_floats(x, params.dim, 1)
    else:
        checks.check_floats(x, params.channels, fold)
    kernels = _direct(x, backend)
    if kernels is not None:
        return kernels.klt(x, params.handle, fold, normalize, inverse)
    checks.check_backend(backend, x.device)
    if backend == "torch":
        return reference.klt(x, params, normalize=normalize, inverse=inverse)
    return _run(x, _material(params), normalize, inverse)


def klt_quantize(
    x: Tensor, params: KltParams, *, bits: int = 8, normalize: bool = True, backend: str = "auto"
) -> Tensor:
    """Transform and quantize in one pass, with the Gaussian-optimal codebook of `bits`.

    Args:
        x: [N, C, H, W] float32, float16 or bfloat16, C * fold^2 = params.dim.
        params: material from `key.klt_params`.
        bits: 2, 4 or 8.
        normalize: divide each position's D-vector by its RMS first.
        backend: as in `klt`.

    Returns:
        uint8 [N, D * bits / 8, H/fold, W/fold]; byte j holds channels j*p .. j*p + p - 1 (p = 8/bits) from bit 0 up.

    Raises:
        ValueError, RuntimeError: as `klt`; also bits, a D that does not fill bytes, or an x that needs a gradient.
    """
    out = ordinary.klt_quantize(x, params, bits, normalize) if backend == "auto" else None
    if out is not None:
        return out
    checks.check_params(params, x)
    checks.check_floats(x, params.channels, params.fold)
    checks.check_packable(params.dim, bits)
    if x.requires_grad:
        checks.check_no_gradient(x=x)
    kernels = _direct(x, backend)
    if kernels is not None:
        return kernels.klt_quantize(x, params.handle, params.fold, bits, normalize)
    checks.check_backend(backend, x.device)
    if backend == "torch":
        return reference.klt_quantize(x, params, bits=bits, normalize=normalize)
    return torch.ops.ppcmi_fast.klt_quantize(x, *_material(params), bits, normalize)  # type: ignore[no-any-return]


def klt_dequantize(
    codes: Tensor,
    params: KltParams,
    *,
    bits: int = 8,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Codes to latents: codebook levels, inverse transform, unfolding.

    Args:
        codes: uint8 [N, D * bits / 8, H, W] from `klt_quantize`.
        params: the material they were made with.
        bits: 2, 4 or 8.
        dtype: float32, float16 or bfloat16.
        backend: as in `klt`.

    Returns:
        [N, C, H*fold, W*fold] of `dtype`, in the memory format of `codes`.

    Raises:
        ValueError, RuntimeError: as `klt_quantize`.
    """
    out = ordinary.klt_dequantize(codes, params, bits, dtype) if backend == "auto" else None
    if out is not None:
        return out
    checks.check_params(params, codes, "codes")
    checks.check_codes(codes, params.dim, bits)
    checks.check_output(dtype)
    kernels = _direct(codes, backend)
    if kernels is not None:
        return kernels.klt_dequantize(codes, params.handle, params.fold, bits, dtype)
    checks.check_backend(backend, codes.device)
    if backend == "torch":
        return reference.klt_dequantize(codes, params, bits=bits, dtype=dtype)
    return torch.ops.ppcmi_fast.klt_dequantize(codes, *_material(params), bits, dtype)  # type: ignore[no-any-return]


def switch_dequantize(
    codes: Tensor,
    matrices: Tensor,
    index: Tensor | None = None,
    offsets: Tensor | None = None,
    *,
    bits: int = 8,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Codes of many sites to one frame: codebook levels, then a matrix per sample.

    Args:
        codes: uint8 [N, D * bits / 8, H, W].
        matrices: float32 [K, Dout, D] with `index`, or [Dout, D] for all samples.
        index: int64 [N] in 0..K-1, the matrix of each sample. On a CUDA device its values are not looked at before
            the work starts, which would wait for the stream; there one out of range makes its sample NaN.
        offsets: float32 [K, Dout] or [Dout], added after the product.
        bits: 2, 4 or 8.
        dtype: float32, float16 or bfloat16.
        backend: as in `klt`.

    Returns:
        [N, Dout, H, W] of `dtype`, in the memory format of `codes`.

    Raises:
        ValueError, RuntimeError: as `klt_quantize`; also an index out of range, or matrices that need a gradient.
    """
    checks.check_switch(codes, matrices, index, offsets, bits)
    checks.check_output(dtype)
    checks.check_no_gradient(matrices=matrices, offsets=offsets)
    kernels = _direct(codes, backend)
    if kernels is not None:
        if codes.is_cpu:
            checks.check_index(index, matrices.shape[0])
        return kernels.switch_dequantize(codes, matrices, index, offsets, bits, dtype)
    checks.check_backend(backend, codes.device)
    if backend == "torch":
        return reference.switch_dequantize(codes, matrices, index, offsets, bits=bits, dtype=dtype)
    out: Tensor = torch.ops.ppcmi_fast.switch_dequantize(codes, matrices, index, offsets, bits, dtype)
    return out
