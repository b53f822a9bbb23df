"""Rotate-and-quantize of a key/value cache: outlier channels are spread over all channels before few bits are spent.

A few channels of real attention keys and values are far larger than the rest. One scale per position then wastes most
int4 steps on them. A fixed random rotation makes every coordinate nearly Gaussian, which a Gaussian codebook fits.

    python examples/rotate_and_quantize.py --tokens 1024 --heads 8 --dim 128
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ppcmi_fast import SiteKey, ops
from ppcmi_fast.ops import KltParams

BITS = (2, 4, 8)
SCALE_BYTES = 2
OUTLIER_CHANNELS = 4
OUTLIER_GAIN = 12.0
ROTATION_KEY = SiteKey(
    bytes(32), "examples"
)  # nothing is to be hidden here: any fixed key gives a good rotation


class Row(NamedTuple):
    """One way to keep the cache: bytes of keys and values together, and its relative errors."""

    name: str
    cache_bytes: int
    cache_error: float
    attention_error: float


class Cached(NamedTuple):
    """Packed codes [N, D * bits / 8, 1, T] uint8 and the RMS [N, 1, 1, T] float16 of every position."""

    codes: Tensor
    rms: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that the cache takes."""
        return self.codes.nbytes + self.rms.nbytes


def quantize(x: Tensor, params: KltParams, bits: int) -> Cached:
    """Cache [batch, heads, tokens, dim]; the channels stay innermost, so no element is moved."""
    channels_last = x.flatten(0, 1).transpose(1, 2).unsqueeze(2)
    rms = channels_last.float().square().mean(1, keepdim=True).sqrt().half()
    return Cached(ops.klt_quantize(channels_last, params, bits=bits), rms)


def dequantize(cached: Cached, params: KltParams, bits: int, shape: torch.Size) -> Tensor:
    """Undo `quantize`: float32 of `shape`."""
    unit = ops.klt_dequantize(cached.codes, params, bits=bits)
    return (unit * cached.rms).squeeze(2).transpose(1, 2).reshape(shape)


def absmax_int4(x: Tensor) -> Tensor:
    """Round trip through int4 with one float16 scale per position."""
    scale = (
        (x.float().abs().amax(-1, keepdim=True) / 7).half().float().clamp_min(torch.finfo(torch.half).tiny)
    )
    return (x.float() / scale).round().clamp(-7, 7) * scale


def activations(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Normal float16 values; each head has its own few channels of OUTLIER_GAIN times the size."""
    heads, dim = shape[1], shape[3]
    gain = torch.ones(heads, 1, dim)
    for head in range(heads):
        gain[head, 0, torch.randperm(dim, generator=generator)[:OUTLIER_CHANNELS]] = OUTLIER_GAIN
    return (torch.randn(shape, generator=generator) * gain).half()


def relative_error(got: Tensor, expected: Tensor) -> float:
    """RMS of the error over RMS of the expected values."""
    return float((got - expected).norm() / expected.norm())


def compare(params: KltParams, batch: int, heads: int, tokens: int, seed: int) -> list[Row]:
    """All ways on the same queries, keys and values, drawn on the CPU so that a seed means the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, params.dim)
    query = torch.randn(shape, generator=generator).to(params.device)
    keys, values = (activations(shape, generator).to(params.device) for _ in range(2))
    exact = torch.stack([keys, values]).float()
    attended = F.scaled_dot_product_attention(query, exact[0], exact[1], is_causal=True)

    def row(name: str, cache_bytes: int, restored: Tensor) -> Row:
        output = F.scaled_dot_product_attention(query, restored[0], restored[1], is_causal=True)
        return Row(name, cache_bytes, relative_error(restored, exact), relative_error(output, attended))

    positions = 2 * batch * heads * tokens
    rows = [
        row("float16", keys.nbytes + values.nbytes, exact),
        row(
            "absmax int4",
            positions * (params.dim // 2 + SCALE_BYTES),
            torch.stack([absmax_int4(keys), absmax_int4(values)]),
        ),
    ]
    for bits in BITS:
        cached = [quantize(x, params, bits) for x in (keys, values)]
        restored = torch.stack([dequantize(c, params, bits, keys.shape) for c in cached])
        rows.append(row(f"rotated {bits}-bit", sum(c.nbytes for c in cached), restored))
    return rows


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse."""

    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return int(text)

    return parse


def device(text: str) -> torch.device:
    """A type for argparse: the CPU, or a CUDA device that is there."""
    try:
        found = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected 'cpu' or 'cuda', got {text!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected 'cpu' or 'cuda', got {text!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f"expected a device that is there, got {text!r} with {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(
        description="A key/value cache of few bits, with and without a rotation."
    )
    parser.add_argument("--batch", type=at_least(1), default=1)
    parser.add_argument("--heads", type=at_least(1), default=8)
    parser.add_argument("--tokens", type=at_least(1), default=512)
    parser.add_argument(
        "--dim", type=at_least(4), default=128, help="head_dim, a multiple of 4 (default 128)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--device", type=device, default="cpu", help="cpu (default) or cuda")
    options = parser.parse_args(arguments)
    if options.dim % 4:
        parser.error(f"argument --dim: expected a multiple of 4, to fill bytes at 2 bits, got {options.dim}")
    try:
        params = ROTATION_KEY.klt_params("image", 1, options.dim).to(options.device)
    except ValueError as error:
        parser.error(f"argument --dim: {error}")
    rows = compare(params, options.batch, options.heads, options.tokens, options.seed)
    print(f"{'cache':<14}{'bytes':>12}{'rel. RMSE':>12}{'attention':>12}")
    for row in rows:
        print(f"{row.name:<14}{row.cache_bytes:>12}{row.cache_error:>12.4f}{row.attention_error:>12.4f}")
    return rows


if __name__ == "__main__":
    main()
