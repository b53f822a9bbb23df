"""What keeps wrong material from a kernel, and the key in its process; second gradients, large dims, crops."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppcmi_fast import KeyedLatentTransform, ops
from ppcmi_fast.keys import SiteKey
from ppcmi_fast.ops import KltParams, reference

KEY = SiteKey(bytes(range(32)), "tests")
HADAMARD = KEY.klt_params("image", 4, 24, "hadamard", 2, offset_scale=0.3)
HAAR = KEY.klt_params("image", 4, 24, "haar", 2, offset_scale=0.3)
CODES = torch.zeros(2, 24, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize("change", [lambda p: p + 1000, lambda p: p - 1, lambda p: p * 0])
def test_a_perm_that_is_none_never_reaches_a_kernel(change: Callable[[Tensor], Tensor]) -> None:
    assert HADAMARD.perm is not None
    with pytest.raises(ValueError, match=r"perm: expected each of 0\.\.23 once"):
        KltParams("hadamard", 24, signs=HADAMARD.signs, factors=HADAMARD.factors, perm=change(HADAMARD.perm))


def test_material_lies_on_one_device() -> None:
    assert HADAMARD.perm is not None
    with pytest.raises(ValueError, match="perm: expected a tensor on cpu as the rest, got meta"):
        KltParams(
            "hadamard", 24, signs=HADAMARD.signs, factors=HADAMARD.factors, perm=HADAMARD.perm.to("meta")
        )


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("index", [[0, 3], [0, -1]])
def test_index_out_of_range_is_an_error_with_every_backend(backend: str, index: list[int]) -> None:
    with pytest.raises(ValueError, match=r"index: expected values 0\.\.2"):
        ops.switch_dequantize(CODES, torch.zeros(3, 5, 24), torch.tensor(index), backend=backend)


def test_the_base_op_checks_sizes_too() -> None:
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="mix: expected material for 3 channels"):
        torch.ops.ppcmi_fast.klt(x, HAAR.matrix, None, None, None, 1, True, False)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: ops.klt([1.0], HAAR), "x"),  # type: ignore[arg-type]
        (lambda: ops.klt_quantize(None, HAAR), "x"),  # type: ignore[arg-type]
        (lambda: ops.klt_dequantize(None, HAAR), "codes"),  # type: ignore[arg-type]
        (lambda: ops.switch_dequantize(CODES, [1.0]), "matrices"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_tensor_is_named(call: Callable[[], object], name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}: expected a torch\.Tensor"):
        call()


@pytest.mark.parametrize("params", [HADAMARD, HAAR], ids=["hadamard", "haar"])
@pytest.mark.parametrize(("normalize", "inverse"), [(True, False), (False, False), (False, True)])
def test_second_gradient_matches_the_reference(params: KltParams, normalize: bool, inverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 24, 4, 4) if inverse else (2, 6, 8, 8), generator=generator, requires_grad=True)

    def second(op: Callable[..., Tensor]) -> Tensor:
        out = op(x, params, normalize=normalize, inverse=inverse)
        (grad,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    torch.testing.assert_close(second(ops.klt), second(reference.klt), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("mixing", "dim"), [("hadamard", 768), ("hadamard", 1024), ("haar", 512)])
def test_large_dims_are_as_exact_as_torch(mixing: str, dim: int) -> None:
    params = KEY.klt_params("image", 4, dim, mixing)
    x = torch.randn(2, dim, 8, 8, generator=torch.Generator().manual_seed(dim))
    v = x.double() / x.double().square().mean(1, keepdim=True).sqrt()
    truth = torch.einsum("ij,njhw->nihw", params.dense(), v)
    ours, theirs = ((op(x, params) - truth).abs().max() for op in (ops.klt, reference.klt))
    assert ours <= 2 * theirs


def test_a_crop_of_a_channels_last_tensor_keeps_its_format() -> None:
    params = KEY.klt_params("image", 4, 64)
    whole = torch.randn(2, 128, 9, 9).contiguous(memory_format=torch.channels_last)
    for view in (whole[:, :64, :8, :7], whole[:, 64:], whole[:, ::2, 1:, 1:]):
        plain = ops.klt(view.contiguous(), params)
        out = ops.klt(view, params)
        torch.testing.assert_close(out, plain, rtol=0, atol=0)
        last = view.stride(1) == 1
        assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# Inductor imports a part of torch that torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_inductor_and_a_dynamic_export_keep_values_and_strides() -> None:
    params = KEY.klt_params("image", 4, 16)
    x = torch.randn(3, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    module = KeyedLatentTransform(params)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n", max=64)},))
    other = torch.randn(5, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(exported.module()(other), module(other), rtol=0, atol=0)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.klt(x, params) * 2, fullgraph=True, dynamic=True)(x)
    torch.testing.assert_close(compiled, ops.klt(x, params) * 2, rtol=0, atol=0)
    assert compiled.stride() == ops.klt(x, params).stride()


@pytest.mark.parametrize("params", [HADAMARD, HAAR], ids=["hadamard", "haar"])
def test_the_module_keeps_its_key_exact_and_to_itself(params: KltParams) -> None:
    module = KeyedLatentTransform(params)
    x = torch.randn(1, 6, 4, 4)
    before = module(x)
    module.half().double()
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(module.eval())(x), before, rtol=0, atol=0)
    assert not copy.deepcopy(module).training
    for save in (pickle.dumps, lambda m: torch.save(m, io.BytesIO())):
        with pytest.raises(TypeError, match="not pickled"):
            save(module)
