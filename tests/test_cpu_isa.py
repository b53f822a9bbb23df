"""Every instruction set of this machine against float64, and what is chosen among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ppcmi_fast import ops
from ppcmi_fast.keys import SiteKey
from ppcmi_fast.ops import reference
from ppcmi_fast.ops.kernels import cpu_extension

KEY = SiteKey(bytes(range(32)), "tests")
ISAS = cpu_extension().isas()
# Each number of stages that a step may have, alone and after others, and odd parts.
CASES = [("hadamard", 2**power) for power in range(11)] + [
    ("hadamard", 24),
    ("hadamard", 126),
    ("hadamard", 192),
    ("haar", 70),
]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_extension().isa()
    cpu_extension().use_isa(request.param)
    yield request.param
    cpu_extension().use_isa(before)


@pytest.mark.parametrize(("mixing", "dim"), CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_forward_and_back_are_as_exact_as_torch(
    isa: str, mixing: str, dim: int, layout: torch.memory_format
) -> None:
    params = KEY.klt_params("image", 4, dim, mixing, offset_scale=0.5)
    generator = torch.Generator().manual_seed(dim)
    # A whole tile, whole vectors and single positions.
    x = torch.randn(2, dim, 9, 13, generator=generator).contiguous(memory_format=layout)
    truth = reference.klt(x.double(), params)
    theirs = (reference.klt(x, params) - truth).abs().max()
    ours = ops.klt(x, params)
    assert (ours - truth).abs().max() <= 2 * theirs + 1e-7
    v = x * torch.rsqrt(x.square().mean(1, keepdim=True) + reference.EPSILON)
    back = ops.klt(ours, params, normalize=False, inverse=True)
    torch.testing.assert_close(back, v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", [(8, 8), (8, 16), (5, 7)])
def test_codes_and_their_way_back(isa: str, bits: int, dtype: torch.dtype, grid: tuple[int, int]) -> None:
    params = KEY.klt_params("image", 4, 64, offset_scale=0.3)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 64, *grid, generator=torch.Generator().manual_seed(bits)).to(dtype)
        x = x.contiguous(memory_format=layout)
        mixed = reference.klt(x.double(), params)
        thresholds = ops.codebook(bits)[1].double()
        best = torch.bucketize(mixed.contiguous(), thresholds, right=True)
        codes = ops.klt_quantize(x, params, bits=bits)
        mine = reference.unpack(codes, bits).long()
        gap = (mixed.unsqueeze(-1) - thresholds).abs().min(-1).values
        assert (mine - best).abs().max() <= 1
        assert gap[mine != best].numel() == 0 or gap[mine != best].max() < 1e-5
        back = ops.klt_dequantize(codes, params, bits=bits, dtype=dtype)
        expected = reference.klt_dequantize(codes, params, bits=bits, dtype=dtype)
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(back, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("mixing", "dim", "bits"),
    [(*case, bits) for case in CASES for bits in (2, 4, 8) if case[1] * bits % 8 == 0],
)
def test_codes_at_every_number_of_stages(isa: str, mixing: str, dim: int, bits: int) -> None:
    params = KEY.klt_params("image", 4, dim, mixing, offset_scale=0.3)
    # A whole tile and 48 positions: three blocks of 16, so a half tile that is whole and one that is not.
    x = torch.randn(2, dim, 8, 14, generator=torch.Generator().manual_seed(dim))
    mixed = reference.klt(x.double(), params)
    thresholds = ops.codebook(bits)[1].double()
    best = torch.bucketize(mixed.contiguous(), thresholds, right=True)
    mine = reference.unpack(ops.klt_quantize(x, params, bits=bits), bits).long()
    gap = (mixed.unsqueeze(-1) - thresholds).abs().min(-1).values
    assert (mine - best).abs().max() <= 1
    assert gap[mine != best].numel() == 0 or gap[mine != best].max() < 1e-5


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [16, 64, 256])
def test_what_is_no_number_spoils_its_own_position_alone(isa: str, bits: int, dim: int) -> None:
    params = KEY.klt_params("image", 4, dim)
    x = torch.randn(1, dim, 8, 16, generator=torch.Generator().manual_seed(dim))
    codes = reference.unpack(ops.klt_quantize(x, params, bits=bits), bits)
    broken = x.clone()
    broken[0, dim // 2, 0, 3] = float("nan")
    broken[0, 0, 5, 9] = float("inf")
    spoiled = reference.unpack(ops.klt_quantize(broken, params, bits=bits), bits)
    for y, column in ((0, 3), (5, 9)):
        assert (spoiled[0, :, y, column] == 2**bits - 1).all()
        spoiled[0, :, y, column] = codes[0, :, y, column]
    assert torch.equal(spoiled, codes)


def test_values_beyond_every_threshold_get_the_outermost_codes(isa: str) -> None:
    params = ops.KltParams("haar", 4, matrix=torch.eye(4))
    values = torch.tensor([float("inf"), 3e38, 1e12, 300.0, -300.0, -1e12, -3e38, float("-inf")])
    x = values.view(1, 1, 2, 4).expand(1, 4, 2, 4)
    # A dense product of infinity with the matrix's zeros is no number; its code is the highest.
    finite = torch.isfinite(values)
    for bits in (2, 4, 8):
        codes = reference.unpack(ops.klt_quantize(x, params, bits=bits, normalize=False), bits)[
            0, 0
        ].flatten()
        expected = torch.where(values > 0, 2**bits - 1, 0)
        assert torch.equal(codes[finite].long(), expected[finite])
        assert codes[~finite].tolist() == [2**bits - 1] * 2


def test_every_half_comes_back_as_it_was(isa: str) -> None:
    params = ops.KltParams("haar", 1, matrix=torch.ones(1, 1))
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype).view(1, 1, 256, 256)
        out = ops.klt(x, params, normalize=False)
        number = ~torch.isnan(x)
        assert torch.equal(out[number], x[number]) and out[~number].isnan().all()


def test_an_unknown_instruction_set_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="isa: expected one of .*portable"):
        cpu_extension().use_isa("mmx")
    assert cpu_extension().isa() == ISAS[0]
