"""What is measured: a case, and the calls that compete on it."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppcmi_fast import ops
from ppcmi_fast.benchmark import chains
from ppcmi_fast.benchmark.timing import Calls, summarise, take_turns
from ppcmi_fast.keys import SiteKey

OPERATIONS = ("klt", "klt_quantize", "klt_dequantize", "switch_dequantize")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
KEY = SiteKey(bytes(32), "bench")
MATRICES = 3  # of switch_dequantize


@dataclass(frozen=True)
class Case:
    """One operator on latents [batch, channels, size, size]."""

    operation: str = "klt_quantize"
    mixing: str = "hadamard"
    channels: int = 64
    batch: int = 8
    size: int = 32
    dtype: str = "float32"
    layout: str = "nchw"
    bits: int = 8
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("operation", self.operation, OPERATIONS),
            ("mixing", self.mixing, ("hadamard", "haar")),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("layout", self.layout, tuple(LAYOUTS)),
            ("bits", self.bits, (2, 4, 8)),
            ("device", self.device, ("cpu", "cuda")),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {known}, got {value!r}")
        for name, count in (("channels", self.channels), ("batch", self.batch), ("size", self.size)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
        if self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        if (self.channels * self.bits) % 8:
            raise ValueError(f"bits: expected whole bytes, got {self.bits} bits of {self.channels} channels")

    @property
    def elements(self) -> int:
        """Values of the latents."""
        return self.batch * self.channels * self.size**2

    @property
    def bytes_moved(self) -> int:
        """What the operator must read and write at least: its image and its codes, each once."""
        image = self.elements * DTYPES[self.dtype].itemsize
        return 2 * image if self.operation == "klt" else image + self.elements * self.bits // 8


def memcpy(target: Tensor, source: Tensor) -> None:
    """The C library's, of all bytes of the source."""
    ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel() * source.element_size())


def _inputs(case: Case) -> tuple[Tensor, Tensor, Any]:
    """Latents, their codes, and the material."""
    params = KEY.klt_params("image", 4, case.channels, case.mixing)
    generator = torch.Generator(case.device).manual_seed(0)
    shape = (case.batch, case.channels, case.size, case.size)
    x = torch.randn(shape, generator=generator, device=case.device).to(DTYPES[case.dtype])
    params, x = params.to(case.device), x.contiguous(memory_format=LAYOUTS[case.layout])
    return x, ops.klt_quantize(x, params, bits=case.bits), params


def _fht_cpu(case: Case) -> Any:
    """The transforms alone, in place and in that package's best layout; None where it is not there or not able."""
    power_of_two = case.channels & (case.channels - 1) == 0
    if case.mixing != "hadamard" or not power_of_two or importlib.util.find_spec("fht_cpu") is None:
        return None
    import fht_cpu

    rows = torch.randn(case.elements // case.channels, case.channels).numpy()

    def run() -> None:
        rows[0, 0] = 1.0
        for _ in range(2):
            fht_cpu.fht(rows, axis=-1)
            rows[:1] *= 1e-3  # keeps the numbers finite, at no cost worth counting

    return run


def _fht_gpu(case: Case) -> Any:
    """The transforms alone, by the package fast-hadamard-transform, channels last; None where it is not there."""
    power_of_two = case.channels & (case.channels - 1) == 0
    there = importlib.util.find_spec("fast_hadamard_transform") is not None
    if case.mixing != "hadamard" or not power_of_two or not there:
        return None
    from fast_hadamard_transform import hadamard_transform

    rows = torch.randn(case.elements // case.channels, case.channels, device="cuda", dtype=DTYPES[case.dtype])
    scale = case.channels**-0.5
    return lambda: hadamard_transform(hadamard_transform(rows, scale), scale)


def calls_of(case: Case, *, compiled: bool = False, peers: bool = True) -> Calls:
    """Ours first; `compiled` adds torch.compile of the eager chain, `peers` what does a part of the work.

    Every call but `memcpy` gives its result as a new tensor.
    """
    x, codes, params = _inputs(case)
    dtype, bits = x.dtype, case.bits
    calls: Calls = {}
    chain, given = None, x
    if case.operation == "klt":
        calls["ours"] = partial(ops.klt, x, params)
        calls["reference"] = partial(ops.klt, x, params, backend="torch")
    elif case.operation == "klt_quantize":
        calls["ours"] = partial(ops.klt_quantize, x, params, bits=bits)
        chain, given = chains.klt_quantize(params, bits), x
    elif case.operation == "klt_dequantize":
        calls["ours"] = partial(ops.klt_dequantize, codes, params, bits=bits, dtype=dtype)
        chain, given = chains.klt_dequantize(params, bits, dtype), codes
    else:
        matrices = torch.stack([params.dense().float()] * MATRICES)
        index = torch.arange(case.batch, device=x.device) % MATRICES
        settings: dict[str, Any] = {"bits": bits, "dtype": dtype}
        calls["ours"] = partial(ops.switch_dequantize, codes, matrices, index, **settings)
        calls["reference"] = partial(
            ops.switch_dequantize, codes, matrices, index, backend="torch", **settings
        )
    if chain is not None:
        calls["eager"] = partial(chain, given)
        if compiled:
            torch._dynamo.reset()
            calls["compiled"] = partial(torch.compile(chain, dynamic=False, fullgraph=True), given)
    wide = x.float().contiguous()
    target = torch.empty_like(wide)
    if case.device == "cpu":
        calls["memcpy"] = partial(memcpy, target, wide)
    calls["copy_"] = partial(target.copy_, wide)
    calls["clone"] = wide.clone
    if peers:
        dense, flat = params.dense().float(), wide.flatten(2)
        calls["matmul"] = partial(torch.matmul, dense, flat)
        cpu = case.device == "cpu"
        fht = _fht_cpu(case) if cpu else _fht_gpu(case)
        if fht is not None:
            calls["fht_cpu" if cpu else "fast_hadamard_transform"] = fht
    return calls


def measure(case: Case, rounds: int, *, compiled: bool = False, peers: bool = True) -> dict[str, Any]:
    """Time a case: its settings, bytes and calls, ready for JSON."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        with torch.inference_mode():
            calls = calls_of(case, compiled=compiled, peers=peers)
            samples = take_turns(calls, rounds, cuda=case.device == "cuda")
    finally:
        torch.set_num_threads(before)
    return {
        "case": asdict(case),
        "rounds": rounds,
        "bytes_moved": case.bytes_moved,
        "calls": summarise(samples, "ours"),
    }
