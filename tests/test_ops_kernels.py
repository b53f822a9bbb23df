"""The kernels of every device against float64 and against torch at the same precision; layouts, sizes, packing.

Those for CUDA run here as well, on the CPU, through the host shim: their logic is tested where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import cuda_on_host
import pytest
import torch
from torch import Tensor

from ppcmi_fast import ops
from ppcmi_fast.keys import SiteKey
from ppcmi_fast.ops import KltParams, reference
from ppcmi_fast.ops.codebook import rms_error
from ppcmi_fast.ops.kernels import KERNELS, Kernels

KEY = SiteKey(bytes(range(32)), "tests")
CASES = [
    ("hadamard", 2, 1),
    ("hadamard", 64, 1),
    ("hadamard", 48, 1),
    ("hadamard", 48, 2),
    ("hadamard", 128, 4),
    ("haar", 7, 1),
    ("haar", 100, 1),
    ("haar", 36, 2),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GRIDS = [(1, 1), (3, 5), (8, 16), (9, 15)]


ORDERS = ["forward", "reverse", "shuffled"]


@pytest.fixture(autouse=True, params=["cpu", *(f"cuda-{order}" for order in ORDERS)])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that tensors on the CPU meet: its own, or CUDA's with a block's threads run in one of three orders."""
    if request.param == "cpu":
        return
    on_host = Kernels(cuda_on_host.extension, lambda x: (0, 0))
    monkeypatch.setitem(KERNELS, "cpu", on_host)
    monkeypatch.setattr(KltParams, "cpu_call", None)  # the short way leads to the CPU's own
    on_host.extension().set_order(request.param.removeprefix("cuda-"), 1)


def test_calls_reach_the_kernels_that_are_meant(
    kernels: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_host = request.node.callspec.params["kernels"] != "cpu"
    reached: list[str] = []
    for name in ("klt", "klt_quantize", "klt_dequantize"):
        whole = getattr(Kernels, name)

        def seen(self: Kernels, *args: Any, name: str = name, whole: Any = whole) -> Tensor:
            reached.append(name)
            out: Tensor = whole(self, *args)
            return out

        monkeypatch.setattr(Kernels, name, seen)
    params = KEY.klt_params("image", 4, 16)
    ops.klt_dequantize(ops.klt_quantize(ops.klt(torch.randn(1, 16, 4, 4), params), params), params)
    assert reached == (["klt", "klt_quantize", "klt_dequantize"] if on_host else [])


def params_of(case: tuple[str, int, int], offset: float = 0.5) -> KltParams:
    mixing, dim, fold = case
    return KEY.klt_params("image", 4, dim, mixing, fold, offset_scale=offset)


def draw(
    params: KltParams, grid: tuple[int, int], dtype: torch.dtype = torch.float32, count: int = 2
) -> Tensor:
    generator = torch.Generator().manual_seed(grid[0] * 100 + params.dim)
    shape = (count, params.channels, grid[0] * params.fold, grid[1] * params.fold)
    return (torch.randn(shape, generator=generator) * 2 + 0.3).to(dtype)


def exact(x: Tensor, params: KltParams, normalize: bool) -> Tensor:
    """The transform in float64, straight from its definition."""
    v = torch.nn.functional.pixel_unshuffle(x.double(), params.fold)
    if normalize:
        v = v / v.square().mean(1, keepdim=True).add(1e-12).sqrt()
    out = torch.einsum("ij,njhw->nihw", params.dense(), v)
    return out if params.offset is None else out + params.offset.double().view(1, -1, 1, 1)


def worst(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_forward_is_as_exact_as_torch(
    case: tuple[str, int, int], dtype: torch.dtype, normalize: bool
) -> None:
    params = params_of(case)
    x = draw(params, (9, 15), dtype)
    truth = exact(x, params, normalize)
    ours = worst(ops.klt(x, params, normalize=normalize), truth)
    theirs = worst(reference.klt(x, params, normalize=normalize), truth)
    assert ours <= 2 * theirs + 1e-7


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_undoes_forward(case: tuple[str, int, int], dtype: torch.dtype) -> None:
    params = params_of(case)
    x = draw(params, (8, 16), dtype)
    back = ops.klt(ops.klt(x, params, normalize=False), params, normalize=False, inverse=True)
    assert back.dtype == dtype and back.shape == x.shape
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    assert worst(back, x) < tolerance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grid", GRIDS)
def test_layouts_and_views_give_the_same_and_keep_theirs(
    case: tuple[str, int, int], grid: tuple[int, int]
) -> None:
    params = params_of(case)
    x = draw(params, grid)
    plain = ops.klt(x, params)
    last = ops.klt(x.contiguous(memory_format=torch.channels_last), params)
    wide = torch.randn(x.shape[0], x.shape[1], x.shape[2], 2 * x.shape[3])
    wide[..., ::2] = x
    torch.testing.assert_close(last, plain, rtol=0, atol=0)
    torch.testing.assert_close(ops.klt(wide[..., ::2], params), plain, rtol=0, atol=0)
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", [c for c in CASES if c[1] % 4 == 0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_differ_only_at_thresholds_and_by_one(case: tuple[str, int, int], bits: int) -> None:
    params = params_of(case)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = draw(params, (9, 15)).contiguous(memory_format=layout)
        codes = ops.klt_quantize(x, params, bits=bits)
        assert codes.is_contiguous(memory_format=layout)
        mine = reference.unpack(codes, bits).int()
        truth = exact(x, params, normalize=True)
        thresholds = ops.codebook(bits)[1].double()
        best = torch.bucketize(truth.contiguous(), thresholds, right=True)
        assert (mine - best).abs().max() <= 1
        gap = (truth.unsqueeze(-1) - thresholds).abs().min(-1).values
        assert gap[mine != best].numel() == 0 or gap[mine != best].max() < 1e-5


@pytest.mark.parametrize("case", [c for c in CASES if c[1] % 4 == 0])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_matches_the_reference(case: tuple[str, int, int], bits: int, dtype: torch.dtype) -> None:
    params = params_of(case)
    codes = reference.klt_quantize(draw(params, (9, 15)), params, bits=bits)
    ours = ops.klt_dequantize(codes, params, bits=bits, dtype=dtype)
    theirs = reference.klt_dequantize(codes, params, bits=bits, dtype=dtype)
    assert ours.dtype == dtype and ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)
    last = ops.klt_dequantize(
        codes.contiguous(memory_format=torch.channels_last), params, bits=bits, dtype=dtype
    )
    torch.testing.assert_close(last, ours, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("outputs", [5, 32])
def test_switch_dequantize_uses_each_samples_matrix(bits: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices, offsets = (
        torch.randn(3, outputs, 32, generator=generator),
        torch.randn(3, outputs, generator=generator),
    )
    codes = torch.randint(0, 256, (5, 32 * bits // 8, 7, 9), generator=generator).to(torch.uint8)
    index = torch.tensor([2, 0, 1, 1, 2])
    ours = ops.switch_dequantize(codes, matrices, index, offsets, bits=bits)
    levels = ops.codebook(bits)[0].double()[reference.unpack(codes, bits).long()]
    for sample in range(5):
        truth = torch.einsum("ij,jhw->ihw", matrices[index[sample]].double(), levels[sample])
        assert worst(ours[sample], truth + offsets[index[sample]].double()[:, None, None]) < 1e-4
    single = ops.switch_dequantize(codes, matrices[1], offsets=offsets[1], bits=bits)
    torch.testing.assert_close(single[2], ours[2], rtol=0, atol=0)
    torch.testing.assert_close(
        reference.switch_dequantize(codes, matrices, index, offsets, bits=bits), ours, rtol=1e-4, atol=1e-4
    )


# Channels and offsets of dense mixings whose planes a GPU's warps take alone, and below images of more tiles than the
# host shim's warps are, the last of a sample not full.
PLANES = [(8, 0.5), (16, 0.0), (24, 0.5), (40, 0.5), (64, 0.0), (64, 0.5), (100, 0.5), (128, 0.0)]


def draw_planes(params: KltParams, dtype: torch.dtype = torch.float32) -> Tensor:
    return draw(params, (10, 20), dtype, count=4)


@pytest.mark.parametrize(("dim", "offset"), PLANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_are_as_exact_as_torch_and_give_what_other_layouts_give(
    dim: int, dtype: torch.dtype, offset: float
) -> None:
    params = params_of(("haar", dim, 1), offset)
    x = draw_planes(params, dtype)
    for normalize, inverse in ((True, False), (False, False), (False, True)):
        truth = reference.klt(x.double(), params, normalize=normalize, inverse=inverse)
        theirs = worst(reference.klt(x, params, normalize=normalize, inverse=inverse), truth)
        ours = ops.klt(x, params, normalize=normalize, inverse=inverse)
        assert worst(ours, truth) <= 2 * theirs + 1e-7
        last = x.contiguous(memory_format=torch.channels_last)
        last = ops.klt(last, params, normalize=normalize, inverse=inverse)
        torch.testing.assert_close(last, ours, rtol=0, atol=0)


@pytest.mark.parametrize(("dim", "offset"), PLANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_planes_differ_only_at_thresholds_and_come_back(
    dim: int, dtype: torch.dtype, offset: float
) -> None:
    params = params_of(("haar", dim, 1), offset)
    x = draw_planes(params, dtype)
    codes = ops.klt_quantize(x, params)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.klt_quantize(last, params), codes)
    truth = exact(x, params, normalize=True)
    levels, thresholds = (table.double() for table in ops.codebook(8))
    best = torch.bucketize(truth.contiguous(), thresholds, right=True)
    gap = (truth.unsqueeze(-1) - thresholds).abs().min(-1).values
    assert (codes.int() - best).abs().max() <= 1
    assert gap[codes != best].numel() == 0 or gap[codes != best].max() < 1e-5

    source = levels[codes.long()]
    if params.offset is not None:
        source = source - params.offset.double().view(-1, 1, 1)
    truth = torch.einsum("ij,nihw->njhw", params.dense(), source)
    theirs = worst(reference.klt_dequantize(codes, params, dtype=dtype), truth)
    assert worst(ops.klt_dequantize(codes, params, dtype=dtype), truth) <= 2 * theirs + 1e-7


@pytest.mark.parametrize("outputs", [5, 32, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_of_codes_meet_their_samples_matrix(outputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    matrices, offsets = (
        torch.randn(3, outputs, 40, generator=generator),
        torch.randn(3, outputs, generator=generator),
    )
    codes = torch.randint(0, 256, (5, 40, 26, 28), generator=generator).to(torch.uint8)
    index = torch.tensor([2, 0, 1, 1, 2])
    source = ops.codebook(8)[0].double()[codes.long()]
    truth = torch.einsum("nij,njhw->nihw", matrices[index].double(), source)
    truth = truth + offsets[index].double()[..., None, None]
    theirs = worst(reference.switch_dequantize(codes, matrices, index, offsets, dtype=dtype), truth)
    ours = ops.switch_dequantize(codes, matrices, index, offsets, dtype=dtype)
    assert worst(ours, truth) <= 2 * theirs + 1e-6
    single = ops.switch_dequantize(codes, matrices[1], offsets=offsets[1], dtype=dtype)
    torch.testing.assert_close(single[2], ours[2], rtol=0, atol=0)


def test_parts_of_images_that_lie_as_planes_give_what_copies_give() -> None:
    params = params_of(("haar", 16, 1))
    whole = torch.randn(3, 24, 9, 8, generator=torch.Generator().manual_seed(3))
    wide = torch.randn(3, 16, 6, 11)
    flat = torch.randn(16 * 72 + 1)[1:].view(1, 16, 9, 8)  # not where an access of 16 bytes may be
    for part in (whole[:, 5:21], whole[1:, 8:], wide[:, :, :, :8], flat):
        torch.testing.assert_close(ops.klt(part, params), ops.klt(part.clone(), params), rtol=0, atol=0)
        assert torch.equal(ops.klt_quantize(part, params), ops.klt_quantize(part.clone(), params))


def test_a_nan_in_planes_spoils_its_own_position_alone() -> None:
    params = params_of(("haar", 24, 1))
    x = draw(params, (8, 9))
    before = ops.klt_quantize(x, params)
    x[1, 7, 3, 5] = float("nan")
    after = ops.klt_quantize(x, params)
    assert (after[1, :, 3, 5] == 255).all()
    after[1, :, 3, 5] = before[1, :, 3, 5]
    assert torch.equal(after, before)


def test_packing_puts_the_first_channel_in_the_lowest_bits() -> None:
    codes = torch.tensor([1, 2, 3, 0, 3, 3, 0, 1], dtype=torch.uint8).view(1, 8, 1, 1)
    assert reference.pack(codes, 2).flatten().tolist() == [0b00111001, 0b01001111]
    assert reference.pack(codes, 4).flatten().tolist() == [0x21, 0x03, 0x33, 0x10]
    for bits in (2, 4, 8):
        assert torch.equal(reference.unpack(reference.pack(codes, bits), bits), codes)


def test_codebooks_are_optimal_for_a_gaussian() -> None:
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Max (1960): distortion of the optimal quantizers of 4 and 16 levels.
    for bits, distortion in ((2, 0.1175), (4, 0.009497)):
        levels, thresholds = ops.codebook(bits)
        error = (levels.double()[torch.bucketize(x, thresholds.double(), right=True)] - x).square().mean()
        assert error.item() == pytest.approx(distortion, rel=0.02)
        assert rms_error(bits) == pytest.approx(distortion**0.5, rel=0.001)
    with pytest.raises(ValueError, match="bits: expected 2, 4 or 8, got 3"):
        rms_error(3)
    levels, thresholds = ops.codebook(8)
    steps = levels.diff()
    assert steps.max() - steps.min() < 1e-6
    base = (levels.double()[torch.bucketize(x, thresholds.double(), right=True)] - x).square().mean()
    for factor in (0.9, 1.1):
        other = (levels * factor).double()[torch.bucketize(x, (thresholds * factor).double(), right=True)]
        assert (other - x).square().mean() > base


@pytest.mark.parametrize("shape", [(0, 64, 4, 4), (2, 64, 0, 4), (1, 64, 1, 1)])
def test_empty_batches_and_single_positions_work(shape: tuple[int, ...]) -> None:
    params = params_of(("hadamard", 64, 1))
    x = torch.randn(shape)
    assert ops.klt(x, params).shape == shape
    codes = ops.klt_quantize(x, params, bits=4)
    assert codes.shape == (shape[0], 32, *shape[2:])
    assert ops.klt_dequantize(codes, params, bits=4).shape == shape


def test_zero_vectors_stay_zero_and_nan_gets_the_highest_code() -> None:
    params = KEY.klt_params("image", 4, 16, "haar")
    assert torch.equal(ops.klt(torch.zeros(1, 16, 2, 2), params), torch.zeros(1, 16, 2, 2))
    broken = torch.full((1, 16, 1, 1), float("nan"))
    for bits in (2, 4, 8):
        ours = reference.unpack(ops.klt_quantize(broken, params, bits=bits), bits)
        assert torch.equal(ours, torch.full_like(ours, 2**bits - 1))


@pytest.mark.parametrize(
    "values", [[0.0, -0.0, 1.0, 65504.0, 1e-7, 6e-8, 3e-8, 70000.0, float("inf"), 1 / 3]]
)
def test_half_types_round_as_torch_rounds(values: list[float]) -> None:
    params = KltParams("haar", 1, matrix=torch.ones(1, 1))
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.tensor(values).to(dtype).view(1, 1, 1, -1)
        out, finite = ops.klt(x, params, normalize=False), torch.isfinite(x)
        # An infinity may come out as NaN: CUDA's dense product takes a value apart into two.
        assert torch.equal(out[finite], x[finite]) and not torch.isfinite(out[~finite]).any()
    third = KltParams("haar", 1, matrix=torch.full((1, 1), 1 / 3))
    x = torch.randn(1, 1, 40, 50)
    for dtype in (torch.float16, torch.bfloat16):
        expected = (x.to(dtype).float() * torch.tensor(1 / 3)).to(dtype)
        assert torch.equal(ops.klt(x.to(dtype), third, normalize=False), expected)


def test_two_threads_give_what_one_gives() -> None:
    params = params_of(("hadamard", 64, 1))
    x = torch.randn(4, 64, 33, 31)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.klt_quantize(x, params, bits=4)
        torch.set_num_threads(2)
        two = ops.klt_quantize(x, params, bits=4)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


# Channel counts that CUDA has kernels of their own for, on more positions than their blocks take.
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("grid", [(6, 44), (3, 5)])
def test_every_number_of_channels_mixes_and_comes_back(dim: int, grid: tuple[int, int]) -> None:
    params = params_of(("hadamard", dim, 1))
    x = draw(params, grid, count=1)
    last = x.contiguous(memory_format=torch.channels_last)
    mixed, truth = ops.klt(x, params), exact(x, params, normalize=True)
    assert worst(mixed, truth) <= 2 * worst(reference.klt(x, params), truth) + 1e-7
    assert torch.equal(ops.klt(last, params), mixed)
    back = ops.klt(mixed, params, normalize=False, inverse=True)
    normalized = x / x.square().mean(1, keepdim=True).add(1e-12).sqrt()
    torch.testing.assert_close(back, normalized, rtol=1e-5, atol=1e-5)
    mixed_last = mixed.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.klt(mixed_last, params, normalize=False, inverse=True), back)
    half = ops.klt(x.half(), params)
    torch.testing.assert_close(half.float(), ops.klt(x.half().float(), params), rtol=1e-3, atol=1e-3)
    for bits in (2, 4, 8):
        codes = ops.klt_quantize(x, params, bits=bits)
        assert torch.equal(ops.klt_quantize(last, params, bits=bits), codes)
        thresholds = ops.codebook(bits)[1].double()
        best = torch.bucketize(truth.contiguous(), thresholds, right=True)
        off = reference.unpack(codes, bits).int() - best
        gap = (truth.unsqueeze(-1) - thresholds).abs().min(-1).values
        assert off.abs().max() <= 1 and (gap[off != 0] < 1e-5).all()
        levels = ops.klt_dequantize(codes, params, bits=bits)
        theirs = reference.klt_dequantize(codes, params, bits=bits)
        torch.testing.assert_close(levels, theirs, rtol=1e-5, atol=1e-5)
        codes_last = codes.contiguous(memory_format=torch.channels_last)
        assert torch.equal(ops.klt_dequantize(codes_last, params, bits=bits), levels)


@pytest.mark.parametrize("dim", [64, 256])
def test_a_position_that_is_not_a_number_gets_the_highest_codes(dim: int) -> None:
    params = params_of(("hadamard", dim, 1), offset=0.0)
    x = draw(params, (8, 16), count=1)
    x[0, 3, 2, 5] = float("nan")
    codes = ops.klt_quantize(x, params)
    others = torch.ones(8, 16, dtype=torch.bool)
    others[2, 5] = False
    assert (codes[0, :, 2, 5] == 255).all() and (codes[0][:, others] < 255).any()
    x[0, 3, 2, 5] = 0.0
    assert torch.equal(ops.klt_quantize(x, params)[0][:, others], codes[0][:, others])
