"""From 32 secret bytes to transform material: HKDF-SHA256, a ChaCha20 stream, and unbiased draws from it.

The schedule is specified byte by byte in docs/keys.md and pinned by tests/vectors/key_schedule.json.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

VERSION = "ppcmi-fast/klt/1"

Floats = NDArray[np.float64]


def derive(secret: bytes, federation_id: str, info: str) -> bytes:
    """32 bytes of HKDF-SHA256 (RFC 5869) with the federation id as salt."""
    return HKDF(SHA256(), 32, salt=federation_id.encode(), info=info.encode()).derive(secret)


def schedule_info(kind: str, role: str, scale: int, dim: int, mixing: str, epoch: int) -> str:
    """What sets one transform apart from every other under the same secret."""
    return f"{VERSION}|{kind}|{role}|{scale}|{dim}|{mixing}|{epoch}"


class KeyStream:
    """ChaCha20 (RFC 8439 block function, 16 zero bytes as counter and nonce) read as numbers, in order."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._cipher.update(bytes(count))

    def uint32(self, count: int) -> NDArray[np.uint32]:
        """The next `count` little-endian 32-bit numbers."""
        return np.frombuffer(self.bytes(4 * count), dtype="<u4").astype(np.uint32)

    def below(self, bound: int) -> int:
        """A uniform integer in 0..bound-1 (bound < 2^32), by rejection."""
        limit = (1 << 32) - (1 << 32) % bound
        while True:
            value = int(self.uint32(1)[0])
            if value < limit:
                return value % bound

    def signs(self, count: int) -> Floats:
        """+1 for a 0 bit, -1 for a 1 bit; bits of each byte from the lowest up."""
        packed = np.frombuffer(self.bytes((count + 7) // 8), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[:count]
        return 1.0 - 2.0 * bits.astype(np.float64)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A uniform permutation of 0..count-1: Fisher-Yates from the last place down."""
        order = np.arange(count, dtype=np.int64)
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def gaussians(self, count: int) -> Floats:
        """Standard normal numbers by Box-Muller; two 53-bit uniforms make a cosine, then a sine."""
        pairs = (count + 1) // 2
        raw = np.frombuffer(self.bytes(16 * pairs), dtype="<u8").astype(np.uint64) >> np.uint64(11)
        uniform = (raw.astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
        angle = 2.0 * np.pi * uniform[1::2]
        numbers: Floats = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[
            :count
        ]
        return numbers

    def haar(self, dim: int) -> Floats:
        """A Haar-distributed orthogonal matrix [dim, dim]: QR with R's diagonal positive (Mezzadri 2007)."""
        q, r = np.linalg.qr(self.gaussians(dim * dim).reshape(dim, dim))
        matrix: Floats = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return matrix
