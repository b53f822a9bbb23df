"""The ops as torch citizens: opcheck, compile, export, gradients, and every bad input by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppcmi_fast import ops
from ppcmi_fast.keys import SiteKey
from ppcmi_fast.ops import KltParams, reference

KEY = SiteKey(bytes(range(32)), "tests")
HADAMARD = KEY.klt_params("image", 4, 24, "hadamard", 2, offset_scale=0.3)
HAAR = KEY.klt_params("image", 4, 24, "haar", 2)
PARAMS = [HADAMARD, HAAR]


def material(params: KltParams) -> tuple[Tensor | None, ...]:
    mix = params.matrix if params.matrix is not None else params.signs
    return (mix, params.factors, params.perm, params.offset)


@pytest.mark.parametrize("params", PARAMS, ids=["hadamard", "haar"])
def test_opcheck(params: KltParams) -> None:
    x = torch.randn(2, 6, 8, 8)
    base = torch.ops.ppcmi_fast
    torch.library.opcheck(base.klt.default, (x, *material(params), 2, True, False))
    torch.library.opcheck(base.klt.default, (torch.randn(2, 24, 4, 4), *material(params), 2, False, True))
    torch.library.opcheck(base.klt_quantize.default, (x, *material(params), 2, 4, True))
    codes = ops.klt_quantize(x, params, bits=4)
    torch.library.opcheck(base.klt_dequantize.default, (codes, *material(params), 2, 4, torch.float32))
    matrices, index = torch.randn(3, 5, 24), torch.tensor([2, 0])
    args = (codes, matrices, index, torch.randn(3, 5), 4, torch.float32)
    torch.library.opcheck(base.switch_dequantize.default, args)


def pipeline(params: KltParams) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        codes = ops.klt_quantize(torch.tanh(x), params, bits=4)
        plain = ops.klt_dequantize(codes, params, bits=4)
        switched = ops.switch_dequantize(codes, torch.eye(params.dim), bits=4)
        both = ops.klt(plain, params, normalize=False) + switched
        return ops.klt(both, params, normalize=False, inverse=True)

    return run


@pytest.mark.parametrize("params", PARAMS, ids=["hadamard", "haar"])
def test_compile_without_a_break_and_export(params: KltParams) -> None:
    run, x = pipeline(params), torch.randn(2, 6, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x), rtol=1e-5, atol=1e-5)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return run(x)

    exported = torch.export.export(Module(), (x,))
    torch.testing.assert_close(exported.module()(x), run(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("params", PARAMS, ids=["hadamard", "haar"])
def test_compiled_gradient(params: KltParams) -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    compiled = torch.compile(lambda x: ops.klt(x, params), fullgraph=True, backend="aot_eager")
    weight = torch.randn(2, 24, 4, 4)
    (ours,) = torch.autograd.grad((compiled(x) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((reference.klt(x, params) * weight).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("params", PARAMS, ids=["hadamard", "haar"])
@pytest.mark.parametrize(("normalize", "inverse"), [(True, False), (False, False), (False, True)])
def test_gradient_matches_autograd_through_the_reference(
    params: KltParams, normalize: bool, inverse: bool
) -> None:
    shape = (2, 24, 4, 4) if inverse else (2, 6, 8, 8)
    x = torch.randn(shape, requires_grad=True)
    ours = ops.klt(x, params, normalize=normalize, inverse=inverse)
    theirs = reference.klt(x, params, normalize=normalize, inverse=inverse)
    weight = torch.randn(ours.shape)
    (grad_ours,) = torch.autograd.grad((ours * weight).sum(), x)
    (grad_theirs,) = torch.autograd.grad((theirs * weight).sum(), x)
    torch.testing.assert_close(grad_ours, grad_theirs, rtol=1e-4, atol=1e-5)


X = torch.zeros(2, 6, 8, 8)
CODES = torch.zeros(2, 12, 4, 4, dtype=torch.uint8)
# What has a short way of its own (ops/ordinary.py), which wrong calls must not take.
PLAIN = KEY.klt_params("image", 4, 24)
DENSE = torch.zeros(2, 24, 4, 4)
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: ops.klt(DENSE.double(), PLAIN), ValueError, r"x: expected .* got \[2, 24, 4, 4\] float64"),
    (lambda: ops.klt(DENSE[0], PLAIN), ValueError, r"got \[24, 4, 4\] float32"),
    (lambda: ops.klt(DENSE[:1, :12], PLAIN), ValueError, r"C = 24 .* got \[1, 12, 4, 4\]"),
    (lambda: ops.klt(DENSE, PLAIN, inverse=True), ValueError, "a normalization has no inverse"),
    (lambda: ops.klt(DENSE.to("meta"), PLAIN), ValueError, "params: expected material on meta"),
    (
        lambda: ops.klt_quantize(DENSE.clone().requires_grad_(), PLAIN),
        ValueError,
        "x: expected a tensor that needs no gradient",
    ),
    (lambda: ops.klt_dequantize(DENSE, PLAIN), ValueError, "codes: expected .* uint8"),
    (
        lambda: ops.klt_dequantize(DENSE.byte(), PLAIN, dtype=torch.int8),
        ValueError,
        "dtype: expected float32",
    ),
    (lambda: ops.klt(X.long(), HAAR), ValueError, r"x: expected \[N, C, H, W\] float32, float16 or bfloat16"),
    (lambda: ops.klt(X.double(), HAAR), ValueError, r"got \[2, 6, 8, 8\] float64"),
    (lambda: ops.klt(X[0], HAAR), ValueError, r"got \[6, 8, 8\] float32"),
    (
        lambda: ops.klt(torch.zeros(2, 48, 32, 32), HAAR),
        ValueError,
        r"C\*fold\^2 = 24\), got \[2, 48, 32, 32\]",
    ),
    (lambda: ops.klt(torch.zeros(2, 6, 7, 8), HAAR), ValueError, "H and W that fold=2 divides"),
    (lambda: ops.klt(X, HAAR, inverse=True), ValueError, "a normalization has no inverse"),
    (lambda: ops.klt(X, HAAR, backend="gpu"), ValueError, "backend: expected one of"),
    (lambda: ops.klt(X, HAAR, backend="cuda"), ValueError, "a tensor on a cuda device for .*, got cpu"),
    (lambda: ops.klt(X.to("meta"), HAAR), ValueError, "params: expected material on meta"),
    (
        lambda: ops.klt(X, HAAR.to("meta")),
        ValueError,
        "params: expected material on cpu, got meta",
    ),
    (
        lambda: ops.klt_quantize(X.clone().requires_grad_(), HAAR),
        ValueError,
        "x: expected a tensor that needs no gradient.*got requires_grad=True",
    ),
    (
        lambda: ops.switch_dequantize(CODES, torch.eye(24, requires_grad=True), bits=4),
        ValueError,
        "matrices: expected a tensor that needs no gradient",
    ),
    (
        lambda: KEY.klt_params("image", 4, 2 * 67, "hadamard"),
        ValueError,
        "odd m <= 63 .* got 134; use mixing='haar'",
    ),
    (lambda: ops.klt(X, "key"), TypeError, "params: expected KltParams"),  # type: ignore[arg-type]
    (lambda: ops.klt_quantize(X, HAAR, bits=3), ValueError, "bits: expected 2, 4 or 8, got 3"),
    (lambda: ops.klt_dequantize(CODES.int(), HAAR, bits=4), ValueError, "codes: expected .* uint8"),
    (
        lambda: ops.klt_dequantize(CODES, HAAR, bits=8),
        ValueError,
        r"expected \[N, 24, H, W\] uint8 for bits=8",
    ),
    (
        lambda: ops.klt_dequantize(CODES, HAAR, bits=4, dtype=torch.int8),
        ValueError,
        "dtype: expected float32",
    ),
    (
        lambda: ops.switch_dequantize(CODES, torch.eye(23), bits=4),
        ValueError,
        r"matrices: expected \[Dout, D\]",
    ),
    (
        lambda: ops.switch_dequantize(CODES, torch.zeros(3, 5, 24), torch.tensor([0, 3]), bits=4),
        ValueError,
        r"index: expected values 0\.\.2, got 0\.\.3",
    ),
    (
        lambda: ops.switch_dequantize(CODES, torch.zeros(3, 5, 24), torch.tensor([0]), bits=4),
        ValueError,
        r"index: expected \[2\] int64",
    ),
    (
        lambda: ops.switch_dequantize(CODES, torch.zeros(5, 24), offsets=torch.zeros(4), bits=4),
        ValueError,
        r"offsets: expected \[5\] float32",
    ),
    (
        lambda: KltParams("haar", 8, matrix=torch.zeros(8, 7)),
        ValueError,
        r"matrix: expected .* got .*\[8, 7\]",
    ),
    (lambda: KltParams("fourier", 8), ValueError, "mixing: expected one of"),
    (lambda: KltParams("haar", 6, 2, matrix=torch.eye(6)), ValueError, r"multiple of fold\^2 = 4, got 6"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_what_needs_a_gradient_is_quantized_where_none_is_recorded() -> None:
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with torch.no_grad():
        codes = ops.klt_quantize(x, HAAR, bits=4)
    assert torch.equal(codes, ops.klt_quantize(x.detach(), HAAR, bits=4))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    params = KEY.klt_params("image", 4, 256)
    small = torch.randn(1, 256, 1, 64)
    rows = 2**31 // (256 * 64) + 3
    # Strides of 0 spare the input its 8 GiB; the kernels see sizes and offsets like any other.
    x = small.expand(1, 256, rows, 64)
    if layout == "nhwc":
        x = small.contiguous(memory_format=torch.channels_last).expand(1, 256, rows, 64)
    codes = ops.klt_quantize(x, params, bits=2)
    assert codes.numel() * 4 > 2**31
    expected = ops.klt_quantize(small, params, bits=2)[0, :, 0]
    for row in (0, 1, rows // 2, rows - 1):
        assert torch.equal(codes[0, :, row], expected)


def test_odd_dims_do_not_pack() -> None:
    params = KEY.klt_params("image", 4, 7, "haar")
    with pytest.raises(ValueError, match="a dim that 2 divides for bits=4, got 7"):
        ops.klt_quantize(torch.zeros(1, 7, 2, 2), params, bits=4)
    assert ops.klt_quantize(torch.zeros(1, 7, 2, 2), params, bits=8).shape == (1, 7, 2, 2)


def test_index_out_of_range_is_caught_by_the_kernel_and_by_the_reference() -> None:
    matrices, index = torch.zeros(3, 5, 24), torch.tensor([0, -1])
    with pytest.raises(ValueError, match="index: expected values"):
        ops.switch_dequantize(CODES, matrices, index, bits=4)


def test_missing_extension_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ppcmi_fast.ops.kernels import cpu_extension

    params, x = KEY.klt_params("image", 4, 24), torch.zeros(1, 24, 2, 2)
    cpu_extension.cache_clear()
    monkeypatch.setitem(sys.modules, "ppcmi_fast._cpu", None)
    monkeypatch.delattr("ppcmi_fast._cpu", raising=False)
    try:
        with pytest.raises(RuntimeError, match=r"reinstall with `pip install \.`"):
            ops.klt(x, params)
        with pytest.raises(ValueError, match=r"x: expected \[N, C, H, W\]"):
            ops.klt(x[0], params)
    finally:
        cpu_extension.cache_clear()


def test_key_material_is_neither_printed_nor_pickled() -> None:
    import pickle

    assert "tensor" not in repr(HADAMARD)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(HADAMARD)
