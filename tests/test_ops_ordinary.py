"""The short way of ordinary calls: the same results, and taken by nothing that it could serve wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ppcmi_fast import SiteKey, ops
from ppcmi_fast.ops import KltParams, ordinary

KEY = SiteKey(bytes(range(32)), "ordinary")
SHAPES = [(1, 64, 1, 1), (2, 64, 8, 8), (3, 64, 5, 7), (0, 64, 4, 4)]


@pytest.fixture(scope="module")
def params() -> KltParams:
    return KEY.klt_params("image", 4, 64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_results_are_those_of_the_named_backend(
    params: KltParams, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape).to(dtype)
    short = ordinary.klt(x, params, True, False)
    codes = ordinary.klt_quantize(x, params, 8, True)
    assert short is not None and codes is not None
    assert torch.equal(short, ops.klt(x, params, backend="cpu"))
    assert torch.equal(codes, ops.klt_quantize(x, params, backend="cpu"))
    back = ordinary.klt_dequantize(codes, params, 8, dtype)
    assert back is not None
    assert torch.equal(back, ops.klt_dequantize(codes, params, dtype=dtype, backend="cpu"))
    plain, inverse = ordinary.klt(x, params, False, False), ordinary.klt(x, params, False, True)
    assert plain is not None and torch.equal(plain, ops.klt(x, params, normalize=False, backend="cpu"))
    assert inverse is not None
    assert torch.equal(inverse, ops.klt(x, params, normalize=False, inverse=True, backend="cpu"))


def test_dense_material_is_served(x: Tensor) -> None:
    params = KEY.klt_params("image", 4, 64, mixing="haar")
    short = ordinary.klt_quantize(x, params, 8, True)
    assert short is not None and torch.equal(short, ops.klt_quantize(x, params, backend="cpu"))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, ::2],
        lambda x: x.clone().requires_grad_(),
        lambda x: torch.nn.Parameter(x, requires_grad=False),
        lambda x: x[0],
        lambda x: x[:, :32].contiguous(),
        lambda x: x.double(),
        lambda x: x.to(torch.int64),
        lambda x: x.to("meta"),
    ],
    ids=["channels last", "view", "gradient", "subclass", "rank", "channels", "float64", "int64", "meta"],
)
def test_other_tensors_are_left_to_the_checks(
    params: KltParams, x: Tensor, change: Callable[[Tensor], Tensor]
) -> None:
    changed = change(x)
    assert ordinary.klt(changed, params, True, False) is None
    assert ordinary.klt_quantize(changed, params, 8, True) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda codes: codes.contiguous(memory_format=torch.channels_last),
        lambda codes: codes[:, :, ::2],
        lambda codes: codes[0],
        lambda codes: codes[:, :32].contiguous(),
        lambda codes: codes.to(torch.int16),
        lambda codes: codes.to("meta"),
    ],
    ids=["channels last", "view", "rank", "channels", "int16", "meta"],
)
def test_other_codes_are_left_to_the_checks(
    params: KltParams, x: Tensor, change: Callable[[Tensor], Tensor]
) -> None:
    codes = ops.klt_quantize(x, params)
    assert ordinary.klt_dequantize(change(codes), params, 8, torch.float32) is None


def test_other_settings_are_left_to_the_checks(params: KltParams, x: Tensor) -> None:
    codes = ops.klt_quantize(x, params)
    folding = KEY.klt_params("image", 4, 256, fold=2)
    not_params: Any = params.signs
    assert ordinary.klt(x, folding, True, False) is None
    assert ordinary.klt(x, not_params, True, False) is None
    assert ordinary.klt(x, params, True, True) is None
    for bits in (2, 4, 3):
        assert ordinary.klt_quantize(x, params, bits, True) is None
        assert ordinary.klt_dequantize(codes, params, bits, torch.float32) is None
    assert ordinary.klt_dequantize(codes, params, 8, torch.float64) is None


def test_the_public_calls_take_the_short_way(
    params: KltParams, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("klt", "klt_quantize", "klt_dequantize"):
        marker = torch.zeros(1)
        monkeypatch.setattr(ordinary, name, lambda *_, marker=marker: marker)
        assert getattr(ops, name)(x, params) is marker
        with pytest.raises(ValueError, match="expected"):
            getattr(ops, name)(x, params, backend="gpu")


@pytest.mark.parametrize("shape", [(2, 64, 4, 4), (1, 64, 1, 1), (1, 1, 1, 1), (5, 1, 2, 3)])
def test_negative_views_count_as_what_they_stand_for(shape: tuple[int, ...]) -> None:
    params = KEY.klt_params("image", 4, shape[1])
    x = torch.randn(shape)
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg() and torch.equal(negative, x)
    torch.testing.assert_close(ops.klt(negative, params), ops.klt(x, params, backend="torch"))
    assert torch.equal(ops.klt_quantize(negative, params), ops.klt_quantize(x, params))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [_Dispatch, _Function])
def test_modes_see_the_call(params: KltParams, x: Tensor, mode: Any) -> None:
    with mode():
        assert ordinary.klt(x, params, True, False) is None
    assert ordinary.klt(x, params, True, False) is not None


def test_transforms_see_the_call(params: KltParams, x: Tensor) -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(ordinary.klt(x, params, True, False))
        return x

    torch.func.vmap(look)(x[None])
    assert seen == [None]
