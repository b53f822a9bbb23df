"""Calls every CUDA kernel once or more, for compute-sanitizer: small sizes, both layouts, odd edges.

compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/gpu_all_kernels.py
"""

from __future__ import annotations

import torch

from ppcmi_fast import SiteKey, ops

KEY = SiteKey(bytes(32), "bench")


def main() -> None:
    """Run them; what is wrong, compute-sanitizer reports."""
    calls = 0
    every = [torch.float32, torch.float16, torch.bfloat16]
    cases = [
        ("hadamard", 64, 1, every),
        ("hadamard", 96, 2, every),
        ("haar", 72, 1, every),
        ("haar", 32, 1, every),
    ]
    # Not of every type: a kernel differs between types in its loads and stores alone.
    cases += [("hadamard", dim, 1, every[:1]) for dim in (16, 32, 128, 256, 512)]
    cases += [("haar", 16, 1, every[:2]), ("haar", 64, 1, every[:2]), ("hadamard", 64, 2, every[:1])]
    for mixing, dim, fold, dtypes in cases:
        params = KEY.klt_params("image", 4, dim, mixing, fold, offset_scale=0.5).to("cuda")
        matrices, index = torch.randn(2, 20, dim, device="cuda"), torch.tensor([1, 0], device="cuda")
        for height, width in ((1, 1), (3, 11), (8, 16), (12, 24)):
            for layout in (torch.contiguous_format, torch.channels_last):
                for dtype in dtypes:
                    x = torch.randn(2, params.channels, height * fold, width * fold, device="cuda")
                    x = x.to(dtype).contiguous(memory_format=layout)
                    mixed = ops.klt(x, params)
                    ops.klt(mixed, params, normalize=False, inverse=True)
                    for bits in (2, 4, 8):
                        codes = ops.klt_quantize(x, params, bits=bits)
                        ops.klt_dequantize(codes, params, bits=bits, dtype=dtype)
                        ops.switch_dequantize(codes, matrices, index, bits=bits, dtype=dtype)
                        calls += 3
                    calls += 2
    torch.cuda.synchronize()
    print(f"{calls} calls")


if __name__ == "__main__":
    main()
