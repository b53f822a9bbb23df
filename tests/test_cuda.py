"""The CUDA module on a machine without a driver, and the kernels on a GPU. Their logic is tested on every machine:
test_ops_kernels.py runs them on the CPU through the host shim.
"""

from __future__ import annotations

import importlib.util
import itertools

import cuda_on_host
import pytest
import torch

from ppcmi_fast import ops
from ppcmi_fast.keys import SiteKey
from ppcmi_fast.ops import KltParams, reference
from ppcmi_fast.ops.kernels import Kernels, cuda_extension

KEY = SiteKey(bytes(range(32)), "tests")
BUILT = importlib.util.find_spec("ppcmi_fast._cuda") is not None
GPU = BUILT and torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="no CUDA device, or a build without nvcc")
CASES = [
    ("hadamard", 32, 1),
    ("hadamard", 64, 2),
    ("hadamard", 96, 1),
    ("hadamard", 256, 1),
    ("hadamard", 1024, 4),
    ("haar", 7, 1),
    ("haar", 64, 1),
    ("haar", 100, 1),
    ("haar", 256, 1),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.skipif(not BUILT, reason="a build without nvcc has no CUDA module")
@pytest.mark.skipif(GPU, reason="with a device the call succeeds")
def test_without_a_device_the_module_loads_and_a_call_says_where_and_why() -> None:
    module = cuda_extension()
    x = torch.zeros(1, 4, 2, 2)
    eye = torch.eye(4)
    material = module.Material(4, 0, 1, eye.data_ptr(), 0, 0, 0)
    with pytest.raises(RuntimeError, match=r"cuda\.cpp:\d+: CUDA driver version|cuda\.cpp:\d+: no CUDA"):
        module.klt(x.data_ptr(), x.shape, None, x.data_ptr(), None, 0, material, 1, True, False, 0, 0)


@pytest.mark.skipif(BUILT, reason="a build with nvcc has the CUDA module")
def test_a_build_without_nvcc_names_the_cure() -> None:
    with pytest.raises(RuntimeError, match="the CUDA kernels are missing .* PPCMI_CUDA=ON"):
        cuda_extension()


def test_an_unknown_matrix_makes_its_sample_nan_and_no_other() -> None:
    on_host = Kernels(cuda_on_host.extension, lambda x: (0, 0))
    matrices, offsets = torch.randn(2, 5, 16), torch.randn(2, 5)
    for unknown, width in itertools.product((-1, 2, 2**40), (5, 8)):
        codes = torch.randint(0, 256, (3, 16, 3, width)).to(torch.uint8)
        out = on_host.switch_dequantize(
            codes, matrices, torch.tensor([0, unknown, 1]), offsets, 8, torch.float32
        )
        assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


def params_of(case: tuple[str, int, int]) -> KltParams:
    mixing, dim, fold = case
    return KEY.klt_params("image", 4, dim, mixing, fold, offset_scale=0.5).to("cuda")


def draw(params: KltParams, dtype: torch.dtype, layout: torch.memory_format) -> torch.Tensor:
    x = torch.randn(3, params.channels, 12 * params.fold, 20 * params.fold, device="cuda") * 2 + 0.3
    return x.to(dtype).contiguous(memory_format=layout)


@needs_gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_klt_is_as_exact_as_torch(
    case: tuple[str, int, int], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    params = params_of(case)
    x = draw(params, dtype, layout)
    for normalize, inverse in ((True, False), (False, False), (False, True)):
        y = reference.klt(x, params, normalize=False) if inverse else x
        truth = reference.klt(y.double(), params, normalize=normalize, inverse=inverse)
        theirs = reference.klt(y, params, normalize=normalize, inverse=inverse)
        ours = ops.klt(y, params, normalize=normalize, inverse=inverse)
        assert ours.is_contiguous(memory_format=layout) or params.fold > 1
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 1e-6


@needs_gpu
@pytest.mark.parametrize("case", [c for c in CASES if c[1] % 4 == 0])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_differ_only_at_thresholds_and_come_back(
    case: tuple[str, int, int], bits: int, layout: torch.memory_format
) -> None:
    params = params_of(case)
    x = draw(params, torch.float32, layout)
    codes = ops.klt_quantize(x, params, bits=bits)
    mine = reference.unpack(codes, bits).long()
    truth = reference.klt(x.double(), params)
    thresholds = ops.codebook(bits)[1].double().cuda()
    best = torch.bucketize(truth.contiguous(), thresholds, right=True)
    gap = (truth.unsqueeze(-1) - thresholds).abs().min(-1).values
    assert (mine - best).abs().max() <= 1
    assert gap[mine != best].numel() == 0 or gap[mine != best].max() < 1e-5
    for dtype in DTYPES:
        ours = ops.klt_dequantize(codes, params, bits=bits, dtype=dtype)
        theirs = reference.klt_dequantize(codes, params, bits=bits, dtype=dtype)
        tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# So many positions that every warp of the device has several tiles.
@needs_gpu
@pytest.mark.parametrize("dim", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dense_mixing_of_many_tiles(dim: int, dtype: torch.dtype) -> None:
    params = params_of(("haar", dim, 1))
    x = (torch.randn(5, dim, 500, 500, device="cuda") * 2 + 0.3).to(dtype)
    for inverse in (False, True):
        truth = reference.klt(x.double(), params, normalize=not inverse, inverse=inverse)
        theirs = reference.klt(x, params, normalize=not inverse, inverse=inverse)
        ours = ops.klt(x, params, normalize=not inverse, inverse=inverse)
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 1e-6
    codes = ops.klt_quantize(x, params)
    best = torch.bucketize(reference.klt(x.double(), params), ops.codebook(8)[1].double().cuda(), right=True)
    assert (codes.long() - best).abs().max() <= 1 and (codes.long() != best).float().mean() < 1e-3


@needs_gpu
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_switch_dequantize_uses_each_samples_matrix_and_marks_an_unknown_one(bits: int) -> None:
    matrices, offsets = torch.randn(3, 70, 64, device="cuda"), torch.randn(3, 70, device="cuda")
    codes = torch.randint(0, 256, (5, 64 * bits // 8, 8, 12), device="cuda").to(torch.uint8)
    index = torch.tensor([2, 0, 1, 1, 2], device="cuda")
    ours = ops.switch_dequantize(codes, matrices, index, offsets, bits=bits)
    truth = reference.switch_dequantize(codes, matrices.double().float(), index, offsets, bits=bits)
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-3)
    wrong = ops.switch_dequantize(codes, matrices, index + torch.tensor([0, 0, 0, 0, 1]).cuda(), bits=bits)
    assert wrong[4].isnan().all() and not wrong[:4].isnan().any()


@needs_gpu
def test_opcheck_gradient_and_compile() -> None:
    params = params_of(("hadamard", 64, 2))
    x = torch.randn(2, 16, 8, 8, device="cuda")
    args = (params.signs, params.factors, params.perm, params.offset, 2)
    torch.library.opcheck(torch.ops.ppcmi_fast.klt.default, (x, *args, True, False))
    torch.library.opcheck(torch.ops.ppcmi_fast.klt_quantize.default, (x, *args, 4, True))
    leaf = x.clone().requires_grad_()
    weight = torch.randn(2, 64, 4, 4, device="cuda")
    (ours,) = torch.autograd.grad((ops.klt(leaf, params) * weight).sum(), leaf)
    (theirs,) = torch.autograd.grad((reference.klt(leaf, params) * weight).sum(), leaf)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(lambda t: ops.klt_quantize(t, params) + 0, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), ops.klt_quantize(x, params))


@needs_gpu
def test_a_graph_captures_all_operators_on_its_stream() -> None:
    params = params_of(("hadamard", 64, 1))
    matrices, index = torch.randn(2, 64, 64, device="cuda"), torch.tensor([1, 0], device="cuda")

    def work(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes = ops.klt_quantize(x, params)
        back = ops.klt_dequantize(codes, params)
        return codes, back, ops.switch_dequantize(codes, matrices, index), ops.klt(back, params)

    x = torch.randn(2, 64, 16, 16, device="cuda")
    work(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for ours, expected in zip(captured, work(x), strict=True):
        assert torch.equal(ours, expected)


@needs_gpu
def test_work_waits_for_the_current_stream_alone() -> None:
    params = params_of(("hadamard", 64, 1))
    stream = torch.cuda.Stream()
    x = torch.zeros(1, 64, 8, 8, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        codes = ops.klt_quantize(x, params)
    stream.synchronize()
    assert torch.equal(codes, ops.klt_quantize(torch.ones_like(x), params))


@needs_gpu
def test_empty_batches_and_views_work() -> None:
    params = params_of(("hadamard", 64, 1))
    assert ops.klt_quantize(torch.zeros(0, 64, 4, 4, device="cuda"), params).shape == (0, 64, 4, 4)
    wide = torch.randn(2, 64, 6, 20, device="cuda")
    assert torch.equal(ops.klt(wide[..., ::2], params), ops.klt(wide[..., ::2].contiguous(), params))


@needs_gpu
def test_material_on_another_device_is_refused() -> None:
    params = KEY.klt_params("image", 4, 64)
    with pytest.raises(ValueError, match="params: expected material on cuda:0, got cpu"):
        ops.klt(torch.zeros(1, 64, 2, 2, device="cuda"), params)
