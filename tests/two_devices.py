"""A second device that is none: tensors moved to "cuda" stay in memory, are marked, and must not meet others.

It shows that code puts things where they must be, on machines without a GPU. Marks are on storages, so views and
in-place operations share them; a result is marked when an operand is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda")
CPU = torch.device("cpu")
# Copies go across, indices may come from the CPU, and one_hot fills what it makes itself on what is really the CPU.
MIXED = ("aten.copy_", "aten.index", "aten._index", "aten.scatter_")


class Marks:
    """Which storages are on the device; all that were ever marked are kept, so that no address is used again."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}
        self.moves = 0

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._kept

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self._kept[storage.data_ptr()] = storage


class _Operators(TorchDispatchMode):
    """Refuses operands of two devices, as torch does."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        marked = [self.marks.has(value) for value in operands]
        # torch lets a number from the CPU meet tensors of any device.
        alone = [
            not mark and value.numel() > 0 and value.ndim > 0
            for value, mark in zip(operands, marked, strict=True)
        ]
        if any(marked) and any(alone) and not str(func).startswith(MIXED):
            raise RuntimeError(f"{func}: expected all tensors on one device")
        out = func(*args, **(kwargs or {}))
        if any(marked):
            for value in tree_leaves(out):
                if isinstance(value, Tensor):
                    self.marks.add(value)
        return out


class _Placement(TorchFunctionMode):
    """`.to`, `.cpu` and `.device` of marked tensors."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks

    def _place(self, tensor: Tensor, device: torch.device) -> Tensor:
        if (device.type == "cuda") == self.marks.has(tensor):
            return tensor
        self.marks.moves += 1
        return _Move.apply(tensor, self.marks, device)  # type: ignore[no-any-return, no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            wanted = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.device)]
            args = tuple(CPU if isinstance(v, torch.device) else v for v in args)
            kwargs = {k: CPU if isinstance(v, torch.device) else v for k, v in kwargs.items()}
            value = func(*args, **kwargs)
            return self._place(value, wanted[0]) if wanted else value
        if func is Tensor.cpu:
            return self._place(args[0], CPU)
        if func == Tensor.device.__get__:
            return CUDA if self.marks.has(args[0]) else CPU
        if func is Tensor.numpy and self.marks.has(args[0]):
            raise TypeError("can't convert cuda device type tensor to numpy")
        if isinstance(kwargs.get("device"), torch.device) and kwargs["device"].type == "cuda":
            kwargs.pop("device")
            return self._place(func(*args, **kwargs), CUDA)
        return func(*args, **kwargs)


class _Move(torch.autograd.Function):
    """A copy on the other device; its gradient comes back the same way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, marks: Marks, device: torch.device) -> Tensor:
        ctx.marks, ctx.back = marks, not marks.has(tensor)
        return _copied(tensor, marks, device.type == "cuda")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _copied(grads[0], ctx.marks, not ctx.back), None, None


def _copied(tensor: Tensor, marks: Marks, marked: bool) -> Tensor:
    with torch.utils._python_dispatch._disable_current_modes():
        twin = torch.empty_like(tensor)
        twin.copy_(tensor)
    if marked:
        marks.add(twin)
    return twin


@contextmanager
def two_devices() -> Iterator[Marks]:
    """Inside, "cuda" is the marked half of the memory."""
    marks = Marks()
    with _Placement(marks), _Operators(marks):
        yield marks
