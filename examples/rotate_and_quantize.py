"""A 4-bit cache of attention keys and values, rotated before it is quantized.

Nothing here belongs to a federation: `klt_quantize` is a rotation by a fixed random orthogonal matrix, fused with
quantization. A few channels of attention keys are far larger than the rest, and a plain 4-bit grid spends itself on
them; after the rotation every channel is close to a Gaussian, which one fixed codebook suits.

    python examples/rotate_and_quantize.py
    python examples/rotate_and_quantize.py --device cuda --heads 32 --dim 128
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from ppcmi_fast import SiteKey, ops


@dataclass(frozen=True)
class Cached:
    """Activations [batch, heads, tokens, dim] as codes, and the root mean square that the transform divides by."""

    codes: Tensor  # uint8 [batch * heads, dim * bits / 8, 1, tokens]
    norms: Tensor  # float16 [batch * heads, 1, 1, tokens]
    shape: torch.Size
    bits: int

    @property
    def nbytes(self) -> int:
        """What the cache holds."""
        return self.codes.nbytes + self.norms.nbytes


class RotatedCache:
    """Stores and loads activations [batch, heads, tokens, dim]; a token of a head is one position of an image."""

    def __init__(self, dim: int, bits: int, device: str, seed: int = 0) -> None:
        # Any fixed 32 bytes will do: here the key is no secret, only the seed of the rotation.
        key = SiteKey(seed.to_bytes(32, "big"), "cache")
        self.params = key.klt_params("image", 1, dim).to(device)
        self.bits = bits

    def store(self, x: Tensor) -> Cached:
        """Rotate and quantize; the norms are kept beside the codes."""
        # Channels last, as the activations lie: no data moves.
        image = x.flatten(0, 1).unsqueeze(1).permute(0, 3, 1, 2)
        norms = image.float().square().mean(1, keepdim=True).sqrt().half()
        return Cached(ops.klt_quantize(image, self.params, bits=self.bits), norms, x.shape, self.bits)

    def load(self, cached: Cached) -> Tensor:
        """The activations again, float32."""
        image = ops.klt_dequantize(cached.codes, self.params, bits=cached.bits) * cached.norms.float()
        return image.permute(0, 2, 3, 1).reshape(cached.shape)


def absmax_int4(x: Tensor) -> tuple[Tensor, int]:
    """What is usual without a rotation: 15 even steps over each vector's range. Gives the values and their bytes."""
    scale = (x.abs().amax(-1, keepdim=True) / 7).half().float().clamp_min(1e-6)
    return (x / scale).round().clamp(-7, 7) * scale, x.numel() // 2 + scale.numel() * 2


def activations(heads: int, tokens: int, dim: int, device: str) -> Tensor:
    """Keys as language models have them: mostly Gaussian, with a few channels many times larger."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, heads, tokens, dim, generator=generator)
    loud = torch.randperm(dim, generator=generator)[: max(1, dim // 32)]
    x[..., loud] *= 20
    return x.to(device)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Root mean square of the error over that of the truth."""
    return float((value - truth).norm() / truth.norm())


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention, [batch, heads, tokens, dim]."""
    return torch.nn.functional.scaled_dot_product_attention(queries, keys, values)


def compare(heads: int, tokens: int, dim: int, device: str) -> list[tuple[str, int, float, float]]:
    """Of each cache: name, bytes, error of the keys, error of the attention's output."""
    keys = activations(heads, tokens, dim, device)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(keys.shape, generator=generator).to(device)
    # A query looks for one token: without that, attention averages over all and hides every error.
    queries = keys / keys.square().mean(-1, keepdim=True) * 4
    truth = attention(queries, keys, values)
    rows = [("float16", keys.numel() * 2, *_errors(keys.half().float(), keys, queries, values, truth))]
    plain, nbytes = absmax_int4(keys)
    rows.append(("4 bits, absmax", nbytes, *_errors(plain, keys, queries, values, truth)))
    for bits in (8, 4, 2):
        cache = RotatedCache(dim, bits, device)
        cached = cache.store(keys)
        errors = _errors(cache.load(cached), keys, queries, values, truth)
        rows.append((f"{bits} bits, rotated", cached.nbytes, *errors))
    return rows


def _errors(
    loaded: Tensor, keys: Tensor, queries: Tensor, values: Tensor, truth: Tensor
) -> tuple[float, float]:
    return relative_error(loaded, keys), relative_error(attention(queries, loaded, values), truth)


def main(arguments: list[str] | None = None) -> None:
    """Print one line a cache."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dim", type=int, default=128, help="a power of two times an odd number up to 63")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args(arguments)
    for name in ("heads", "tokens"):
        if getattr(given, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(given, name)}")
    if given.dim < 4 or given.dim % 4:
        parser.error(f"--dim: expected a multiple of 4, so that 2 bits fill bytes, got {given.dim}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device for cuda, found none; use cpu")
    print(f"{'cache':<18} {'bytes':>10} {'error of keys':>14} {'error of output':>16}")
    for name, nbytes, keys, output in compare(given.heads, given.tokens, given.dim, given.device):
        print(f"{name:<18} {nbytes:>10} {keys:>14.4f} {output:>16.4f}")


if __name__ == "__main__":
    main()
