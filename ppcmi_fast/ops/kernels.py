"""The compiled kernels on tensors: makes the output and passes pointers and strides. Checks nothing.

Material comes as the handle of `material`, made once: passing seven numbers to each call takes longer than a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ppcmi_fast.ops.codebook import codebook
from ppcmi_fast.ops.layout import memory_format

TYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@cache
def cpu_extension() -> Any:
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


@cache
def cuda_extension() -> Any:
    """The compiled CUDA kernels.

    Raises:
        RuntimeError: the package was installed without them.
    """
    try:
        from ppcmi_fast import _cuda
    except ImportError as error:
        raise RuntimeError(
            f"ppcmi_fast: the CUDA kernels are missing ({error}); reinstall where nvcc is with"
            ' `pip install . -C cmake.define.PPCMI_CUDA=ON`, or use backend="torch"'
        ) from error
    return _cuda


@cache
def table_addresses(bits: int) -> tuple[int, int]:
    """Addresses of the levels and thresholds, which `codebook` keeps alive."""
    levels, thresholds = codebook(bits)
    return levels.data_ptr(), thresholds.data_ptr()


@dataclass(frozen=True, slots=True)
class CpuCall:
    """What does not change from one call with the same material to the next; attributes cost less than calls.

    Attributes:
        klt, klt_quantize, klt_dequantize: the compiled functions.
        handle: the material's.
        levels, thresholds: addresses of the codebook of 8 bits.
    """

    klt: Callable[..., None]
    klt_quantize: Callable[..., None]
    klt_dequantize: Callable[..., None]
    handle: Any
    levels: int
    thresholds: int


def empty(like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """[N, channels, height, width] on the device and in the memory format of `like`."""
    shape = (like.shape[0], channels, height, width)
    if like.is_contiguous():
        return like.new_empty(shape, dtype=dtype)  # the shorter call
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format(like))


class Kernels:
    """The operators of one device.

    Args:
        extension: gives the compiled module.
        where: what a call ends with, from its input: the number of threads, or device and stream.
    """

    def __init__(self, extension: Callable[[], Any], where: Callable[[Tensor], tuple[int, ...]]) -> None:
        self.extension = extension
        self.where = where

    def material(
        self, mix: Tensor, factors: Tensor | None, perm: Tensor | None, offset: Tensor | None
    ) -> Any:
        """Pointers of contiguous key material; its tensors must outlive the handle.

        Args:
            mix: float32 [D, D] dense matrix, or with perm the signs [R, D].
            factors: float32 [R, m, m] or None.
            perm: int64 [D] or None.
            offset: float32 [D] or None.
        """
        shift = 0 if offset is None else offset.data_ptr()
        if perm is None or factors is None:
            return self.extension().Material(mix.shape[1], 0, 1, mix.data_ptr(), 0, 0, shift)
        rounds, dim = mix.shape
        return self.extension().Material(
            dim, rounds, factors.shape[1], mix.data_ptr(), factors.data_ptr(), perm.data_ptr(), shift
        )

    # Results of the shape of their source, which small calls mostly have, are made by the shortest call there is.

    def klt(self, x: Tensor, keys: Any, fold: int, normalize: bool, inverse: bool) -> Tensor:
        """`ops.klt` with the handle of its material."""
        _, c, h, w = shape = x.shape
        dense = x.is_contiguous()
        if dense and fold == 1:
            out = torch.empty_like(x)
        elif inverse:
            out = empty(x, c // (fold * fold), h * fold, w * fold, x.dtype)
        else:
            out = empty(x, c * fold * fold, h // fold, w // fold, x.dtype)
        self.extension().klt(
            x.data_ptr(),
            shape,
            None if dense else x.stride(),
            out.data_ptr(),
            None if dense else out.stride(),
            TYPE_CODES[x.dtype],
            keys,
            fold,
            normalize,
            inverse,
            *self.where(x),
        )
        return out

    def klt_quantize(self, x: Tensor, keys: Any, fold: int, bits: int, normalize: bool) -> Tensor:
        """`ops.klt_quantize` with the handle of its material."""
        _, c, h, w = shape = x.shape
        dense = x.is_contiguous()
        if dense and fold == 1 and bits == 8:
            out = torch.empty_like(x, dtype=torch.uint8)
        else:
            channels = c * fold * fold * bits // 8
            out = empty(x, channels, h // fold, w // fold, torch.uint8)
        self.extension().klt_quantize(
            x.data_ptr(),
            shape,
            None if dense else x.stride(),
            TYPE_CODES[x.dtype],
            out.data_ptr(),
            None if dense else out.stride(),
            keys,
            fold,
            normalize,
            bits,
            table_addresses(bits)[1],
            *self.where(x),
        )
        return out

    def klt_dequantize(self, codes: Tensor, keys: Any, fold: int, bits: int, dtype: torch.dtype) -> Tensor:
        """`ops.klt_dequantize` with the handle of its material."""
        _, c, h, w = shape = codes.shape
        dense = codes.is_contiguous()
        if dense and fold == 1 and bits == 8:
            out = torch.empty_like(codes, dtype=dtype)
        else:
            channels = c * 8 // bits // (fold * fold)
            out = empty(codes, channels, h * fold, w * fold, dtype)
        self.extension().klt_dequantize(
            codes.data_ptr(),
            shape,
            None if dense else codes.stride(),
            out.data_ptr(),
            None if dense else out.stride(),
            TYPE_CODES[dtype],
            keys,
            fold,
            bits,
            table_addresses(bits)[0],
            *self.where(codes),
        )
        return out

    def switch_dequantize(
        self,
        codes: Tensor,
        matrices: Tensor,
        index: Tensor | None,
        offsets: Tensor | None,
        bits: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """`ops.switch_dequantize`; on a CPU every index must be one of a matrix."""
        matrices = matrices.contiguous()
        index = None if index is None else index.contiguous()
        offsets = None if offsets is None else offsets.contiguous()
        channels, dense = matrices.shape[-2], codes.is_contiguous()
        out = empty(codes, channels, codes.shape[2], codes.shape[3], dtype)
        self.extension().switch_dequantize(
            codes.data_ptr(),
            codes.shape,
            None if dense else codes.stride(),
            out.data_ptr(),
            None if dense else out.stride(),
            TYPE_CODES[dtype],
            matrices.data_ptr(),
            channels,
            1 if index is None else matrices.shape[0],
            0 if index is None else index.data_ptr(),
            0 if offsets is None else offsets.data_ptr(),
            bits,
            table_addresses(bits)[0],
            *self.where(codes),
        )
        return out


def _device_and_stream(x: Tensor) -> tuple[int, int]:
    index = x.get_device()
    return index, torch.cuda.current_stream(index).cuda_stream


KERNELS = {
    "cpu": Kernels(cpu_extension, lambda x: (torch.get_num_threads(),)),
    "cuda": Kernels(cuda_extension, _device_and_stream),
}
