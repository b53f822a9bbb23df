"""The shortest way to the CPU kernels, for the calls that small ones mostly are.

That is: a plain tensor on the CPU, dense and without a gradient, material that does not fold, and a result of the
source's shape. The checks of such a call take longer than its work, so what they look at is looked at here once, in the
cheapest order. Everything else gets None, wrong calls among it: the checks then name what is wrong.

The three functions spell their conditions out: calling a helper is one of the costs that are to be saved.
"""

from __future__ import annotations

import torch
from torch import _C, Tensor
from torch.compiler import is_compiling

from ppcmi_fast.ops.kernels import TYPE_CODES
from ppcmi_fast.ops.params import KltParams

# Bound once: looking them up in their modules takes as long as calling them.
_dispatch_modes = _C._len_torch_dispatch_stack
_function_mode = _C._is_torch_function_mode_enabled
_functorch_level = _C._functorch.peek_interpreter_stack
_tracing = _C._get_tracing_state
_empty_like = torch.empty_like
_threads = torch.get_num_threads
_uint8 = torch.uint8
_type_code = TYPE_CODES.get


def unobserved(x: Tensor) -> bool:
    """No subclass, compilation, mode or transform would notice that a call on x passes torch's dispatcher by."""
    return (
        type(x) is Tensor
        and not is_compiling()
        and not _dispatch_modes()
        and not _function_mode()
        and _functorch_level() is None
        and _tracing() is None
    )


def klt(x: Tensor, params: KltParams, normalize: bool, inverse: bool) -> Tensor | None:
    """`ops.klt` where the call is ordinary, else None."""
    if not unobserved(x) or type(params) is not KltParams or (inverse and normalize):
        return None
    shape, code = x.shape, _type_code(x.dtype)
    wanted = x.is_cpu and not x.requires_grad and x.is_contiguous()
    if code is None or not wanted or len(shape) != 4 or shape[1] != params.dim:
        return None
    call = params.cpu_call
    if call is None:
        return None
    out = _empty_like(x)
    address, result = x.data_ptr(), out.data_ptr()
    call.klt(address, shape, None, result, None, code, call.handle, 1, normalize, inverse, _threads())
    return out


def klt_quantize(x: Tensor, params: KltParams, bits: int, normalize: bool) -> Tensor | None:
    """`ops.klt_quantize` where the call is ordinary, else None."""
    if bits != 8 or not unobserved(x) or type(params) is not KltParams:
        return None
    shape, code = x.shape, _type_code(x.dtype)
    wanted = x.is_cpu and not x.requires_grad and x.is_contiguous()
    if code is None or not wanted or len(shape) != 4 or shape[1] != params.dim:
        return None
    call = params.cpu_call
    if call is None:
        return None
    out = _empty_like(x, dtype=_uint8)
    address, result, thresholds = x.data_ptr(), out.data_ptr(), call.thresholds
    call.klt_quantize(
        address, shape, None, code, result, None, call.handle, 1, normalize, 8, thresholds, _threads()
    )
    return out


def klt_dequantize(codes: Tensor, params: KltParams, bits: int, dtype: torch.dtype) -> Tensor | None:
    """`ops.klt_dequantize` where the call is ordinary, else None."""
    if bits != 8 or not unobserved(codes) or type(params) is not KltParams:
        return None
    shape, code = codes.shape, _type_code(dtype)
    wanted = codes.is_cpu and codes.dtype is _uint8 and codes.is_contiguous()
    if code is None or not wanted or len(shape) != 4 or shape[1] != params.dim:
        return None
    call = params.cpu_call
    if call is None:
        return None
    out = _empty_like(codes, dtype=dtype)
    address, result, levels = codes.data_ptr(), out.data_ptr(), call.levels
    call.klt_dequantize(address, shape, None, result, None, code, call.handle, 1, 8, levels, _threads())
    return out
