"""The operators against eager torch and against a copy of the same bytes, on this machine's CPU.

One process; the calls of a case take turns, so that a slow moment hits all alike; figures are medians. `copy` is a
memcpy of the case's float32 tensor, the least that any operator on it could take. `eager` is `backend="torch"`.

    python benchmarks/bench_klt.py --out klt.json                     # all cases, one thread
    python benchmarks/bench_klt.py --out klt.json --threads 2 --quick
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppcmi_fast import SiteKey, ops

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
KEY = SiteKey(bytes(32), "bench")


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, in turns, after two of each that are not counted."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in [*calls.values(), *calls.values()]:
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in samples.items()}


def calls_of(x: Tensor, mixing: str) -> dict[str, Callable[[], Any]]:
    """Every operator twice, as `<name>` and `<name> eager`, and `copy`."""
    dim, dtype = x.shape[1], x.dtype
    params = KEY.klt_params("image", 4, dim, mixing)
    wide = x.float()
    calls: dict[str, Callable[[], Any]] = {"copy": partial(torch.empty_like(wide).copy_, wide)}
    matrices = torch.stack([params.dense().float()] * 3)
    index = torch.arange(len(x)) % len(matrices)
    for suffix, backend in (("", "cpu"), (" eager", "torch")):
        calls["klt" + suffix] = partial(ops.klt, x, params, backend=backend)
        for bits in (8, 4, 2):
            codes = ops.klt_quantize(x, params, bits=bits)
            settings: dict[str, Any] = {"bits": bits, "backend": backend}
            calls[f"klt_quantize int{bits}{suffix}"] = partial(ops.klt_quantize, x, params, **settings)
            settings["dtype"] = dtype
            calls[f"klt_dequantize int{bits}{suffix}"] = partial(
                ops.klt_dequantize, codes, params, **settings
            )
        codes = ops.klt_quantize(x, params)
        calls["switch_dequantize int8" + suffix] = partial(
            ops.switch_dequantize, codes, matrices, index, dtype=dtype, backend=backend
        )
    return calls


def measure(
    shape: tuple[int, int, int, int], mixing: str, layout: str, dtype: str, repeats: int
) -> dict[str, Any]:
    """Medians and ratios of one case."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    x = x.contiguous(memory_format=LAYOUTS[layout])
    with torch.inference_mode():
        medians = alternate(calls_of(x, mixing), repeats)
    ours = [name for name in medians if f"{name} eager" in medians]
    return {
        "shape": list(shape),
        "mixing": mixing,
        "layout": layout,
        "dtype": dtype,
        "median_ms": medians,
        "speedup_over_eager": {name: medians[f"{name} eager"] / medians[name] for name in ours},
        "time_over_copy": {name: medians[name] / medians["copy"] for name in ours},
    }


def overhead() -> float:
    """Microseconds of `ops.klt` on 64 elements: dispatch, checks and pointers; next to no arithmetic."""
    x, params = torch.randn(1, 64, 1, 1), KEY.klt_params("image", 4, 64)
    runs = []
    with torch.inference_mode():
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(100):
                ops.klt(x, params)
            runs.append(1e4 * (time.perf_counter() - start))
    return statistics.median(runs)


def cpu_name() -> str:
    """What the kernel calls the CPU."""
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=32, help="edge of the latent grid")
    parser.add_argument("--quick", action="store_true", help="float32 only, dims 64 and 256")
    args = parser.parse_args()
    if min(args.threads, args.repeats, args.batch, args.size) < 1:
        parser.error("--threads, --repeats, --batch, --size: expected positive numbers")
    if not args.out.resolve().parent.is_dir():
        parser.error(f"--out: expected a file in a folder that exists, got {args.out}")
    torch.set_num_threads(args.threads)
    dims = (64, 256) if args.quick else (32, 48, 64, 128, 256)
    dtypes = ("float32",) if args.quick else tuple(DTYPES)
    results = []
    for dim, mixing, layout, dtype in itertools.product(dims, ("hadamard", "haar"), LAYOUTS, dtypes):
        results.append(measure((args.batch, dim, args.size, args.size), mixing, layout, dtype, args.repeats))
        speed, copy = results[-1]["speedup_over_eager"], results[-1]["time_over_copy"]
        line = "  ".join(
            f"{name} {speed[name]:.1f}x eager {copy[name]:.1f}x copy" for name in speed if "int8" in name
        )
        print(f"{mixing} D={dim} {layout} {dtype}: {line}", flush=True)
    report = {
        "benchmark": "klt",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "repeats": args.repeats,
        "call_overhead_us": overhead(),
        "results": results,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        f"{report['threads']} threads, {report['call_overhead_us']:.1f} us a call on 64 elements; wrote {args.out}"
    )


if __name__ == "__main__":
    main()
