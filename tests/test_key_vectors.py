"""The key schedule once more, from docs/keys.md alone, without the package's code or `cryptography`."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import runpy
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ppcmi_fast import FederationKey, SiteKey
from ppcmi_fast.key_schedule import KeyStream, derive

FOLDER = Path(__file__).parent / "vectors"
SECRET = bytes(range(32))
ID = "test-federation"


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def block(key: bytes, counter: int) -> bytes:
    """RFC 8439, section 2.3, with a zero nonce."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter, 0, 0, 0]
    x = list(start)

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for p, q, r, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) & 0xFFFFFFFF
            word = x[r] ^ x[p]
            x[r] = (word << turn | word >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(x, start, strict=True)))


class Stream:
    """The draws of docs/keys.md, one number at a time."""

    def __init__(self, kind: str, role: str, scale: int, dim: int, mixing: str, epoch: int) -> None:
        info = f"ppcmi-fast/klt/1|{kind}|{role}|{scale}|{dim}|{mixing}|{epoch}"
        self.key, self.counter, self.rest = hkdf(SECRET, ID.encode(), info.encode()), 0, b""

    def take(self, count: int) -> bytes:
        while len(self.rest) < count:
            self.rest += block(self.key, self.counter)
            self.counter += 1
        out, self.rest = self.rest[:count], self.rest[count:]
        return out

    def signs(self, count: int) -> list[float]:
        data = self.take((count + 7) // 8)
        return [-1.0 if data[i // 8] >> (i % 8) & 1 else 1.0 for i in range(count)]

    def permutation(self, count: int) -> list[int]:
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            limit = 2**32 // (last + 1) * (last + 1)
            while (value := int.from_bytes(self.take(4), "little")) >= limit:
                pass
            other = value % (last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def gaussians(self, count: int) -> list[float]:
        out: list[float] = []
        while len(out) < count:
            u, v = (((n >> 11) + 0.5) / 2**53 for n in struct.unpack("<2Q", self.take(16)))
            radius = math.sqrt(-2 * math.log(u))
            out += [radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)]
        return out[:count]

    def haar(self, dim: int) -> np.ndarray:
        """Gram-Schmidt on the columns, twice for accuracy: the QR whose R has a positive diagonal."""
        columns = np.array(self.gaussians(dim * dim)).reshape(dim, dim).T.copy()
        for i in range(dim):
            for _ in range(2):
                columns[i] -= columns[:i].T @ (columns[:i] @ columns[i])
            columns[i] /= np.linalg.norm(columns[i])
        return columns.T


def test_stream_and_haar_agree() -> None:
    stream = Stream("site", "image", 4, 16, "haar", 0)
    package = KeyStream(derive(SECRET, ID, "ppcmi-fast/klt/1|site|image|4|16|haar|0"))
    assert stream.take(1000) == package.bytes(1000)
    np.testing.assert_allclose(package.haar(16), stream.haar(16), rtol=0, atol=1e-12)
    assert package.permutation(300).tolist() == stream.permutation(300)


@pytest.mark.parametrize("kind", ["site", "federation"])
def test_haar_transform_draws_gaussians_then_permutation_then_offset(kind: str) -> None:
    key = (SiteKey if kind == "site" else FederationKey)(SECRET, ID)
    params = key.klt_params("mask", 8, 24, "haar", epoch=3, offset_scale=0.5)
    stream = Stream(kind, "mask", 8, 24, "haar", 3)
    matrix = stream.haar(24)
    matrix = matrix[stream.permutation(24)]
    assert params.matrix is not None and params.offset is not None
    np.testing.assert_allclose(params.matrix.numpy(), matrix, rtol=0, atol=1e-7)
    np.testing.assert_allclose(params.offset.numpy(), 0.5 * np.array(stream.gaussians(24)), atol=1e-6)


@pytest.mark.parametrize("dim", [16, 48, 2])
def test_hadamard_transform_draws_signs_factors_permutation_offset(dim: int) -> None:
    params = SiteKey(SECRET, ID).klt_params("image", 4, dim, "hadamard", rounds=3, epoch=1, offset_scale=2.0)
    stream = Stream("site", "image", 4, dim, "hadamard", 1)
    odd = 3 if dim == 48 else 1
    signs = [stream.signs(dim) for _ in range(3)]
    # An odd part of 1 draws nothing for its factors.
    factors = np.stack([stream.haar(odd) if odd > 1 else np.ones((1, 1)) for _ in range(3)])
    assert params.signs is not None and params.factors is not None and params.perm is not None
    assert params.signs.tolist() == signs
    np.testing.assert_allclose(params.factors.numpy(), factors, rtol=0, atol=1e-7)
    assert params.perm.tolist() == stream.permutation(dim)
    assert params.offset is not None
    np.testing.assert_allclose(params.offset.numpy(), 2.0 * np.array(stream.gaussians(dim)), atol=1e-6)


def test_rounds_fold_and_offset_do_not_change_what_is_drawn_before_them() -> None:
    key = SiteKey(SECRET, ID)
    two, folded = key.klt_params("image", 4, 16), key.klt_params("image", 4, 16, fold=2, offset_scale=1.0)
    assert two.signs is not None and folded.signs is not None
    assert two.perm is not None and folded.perm is not None
    assert torch.equal(two.signs, folded.signs) and torch.equal(two.perm, folded.perm)


def test_the_generator_reproduces_the_published_file() -> None:
    made = runpy.run_path(str(FOLDER / "make_key_schedule.py"))
    published = json.loads((FOLDER / "key_schedule.json").read_text())
    assert made["SECRET"].hex() == published["secret"] and made["FEDERATION_ID"] == published["federation_id"]
    assert len(made["INFOS"]) == len(published["vectors"])
    for info, vector in zip(made["INFOS"], published["vectors"], strict=True):
        again = made["vector"](info)
        for name in ("info", "derived", "stream", "signs", "permutation"):
            assert again[name] == vector[name]
        for name in ("gaussians", "haar"):
            np.testing.assert_allclose(again[name], vector[name], rtol=0, atol=1e-12)
