"""Keys: files, secrecy, the schedule's published vectors, statistics of the draws, switch matrices."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppcmi_fast import FederationKey, SiteKey, ops
from ppcmi_fast.errors import KeyFileError
from ppcmi_fast.key_schedule import KeyStream, derive, schedule_info
from ppcmi_fast.keys import switch_down, switch_up

SECRET = bytes(range(32))
VECTORS = json.loads((Path(__file__).parent / "vectors" / "key_schedule.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda v: v["info"])
def test_published_vectors(vector: dict[str, Any]) -> None:
    key = derive(bytes.fromhex(VECTORS["secret"]), VECTORS["federation_id"], vector["info"])
    assert key.hex() == vector["derived"]
    assert KeyStream(key).bytes(32).hex() == vector["stream"]
    stream = KeyStream(key)
    assert stream.signs(16).astype(int).tolist() == vector["signs"]
    assert stream.permutation(12).tolist() == vector["permutation"]
    np.testing.assert_allclose(stream.gaussians(5), vector["gaussians"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(stream.haar(3), vector["haar"], rtol=0, atol=1e-12)


def test_chacha20_stream_is_that_of_rfc_8439() -> None:
    # RFC 8439, appendix A.1, test vector 1: zero key, zero nonce, block counter 0.
    assert KeyStream(bytes(32)).bytes(16).hex() == "76b8e0ada0f13d90405d6ae55386bd28"


def test_hkdf_is_that_of_rfc_5869() -> None:
    # Appendix A.1, with the salt as text; the first 32 bytes are what HKDF-Expand gives for any longer length.
    salt = bytes(range(13)).decode("latin-1")
    info = bytes(range(0xF0, 0xFA))
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    okm = HKDF(SHA256(), 42, salt=salt.encode(), info=info).derive(b"\x0b" * 22)
    assert okm.hex().startswith("3cb25f25faacd57a90434f64d0362f2a")


def dense(key: SiteKey | FederationKey, **changes: object) -> torch.Tensor:
    arguments: dict[str, Any] = {
        "role": "image",
        "scale": 4,
        "dim": 32,
        "mixing": "haar",
        "epoch": 0,
    } | changes
    return key.klt_params(**arguments).dense()


def test_the_same_arguments_give_the_same_transform_and_any_other_another() -> None:
    key = SiteKey(SECRET, "fed")
    base = dense(key)
    assert torch.equal(base, dense(SiteKey(SECRET, "fed")))
    others = [
        dense(key, role="mask"),
        dense(key, scale=8),
        dense(key, epoch=1),
        dense(key, mixing="hadamard"),
        dense(SiteKey(SECRET, "fed2"), dim=32),
        dense(SiteKey(bytes(32), "fed")),
        dense(FederationKey(SECRET, "fed")),
    ]
    for other in others:
        # Independent orthogonal matrices have entries of product about 1 / D on average.
        assert (base * other).sum().abs() < 6


@pytest.mark.parametrize(("mixing", "dim"), [("haar", 5), ("haar", 64), ("hadamard", 64), ("hadamard", 48)])
def test_transforms_are_orthogonal(mixing: str, dim: int) -> None:
    matrix = dense(SiteKey(SECRET, "fed"), mixing=mixing, dim=dim)
    assert (matrix @ matrix.T - torch.eye(dim)).abs().max() < 1e-6
    haar = KeyStream(SECRET).haar(dim)
    assert np.abs(haar @ haar.T - np.eye(dim)).max() < 1e-12


def test_permutations_and_small_numbers_are_unbiased() -> None:
    stream = KeyStream(SECRET)
    counts = Counter(tuple(stream.permutation(4).tolist()) for _ in range(4800))
    assert len(counts) == 24
    # chi-square at p = 0.001: 23 degrees of freedom, then 6
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 49.7
    small = Counter(stream.below(7) for _ in range(7000))
    assert sum((n - 1000) ** 2 / 1000 for n in small.values()) < 22.5


def test_gaussians_and_haar_have_the_right_moments() -> None:
    stream = KeyStream(SECRET)
    numbers = stream.gaussians(100_001)
    assert (
        abs(numbers.mean()) < 0.015 and abs(numbers.std() - 1) < 0.01 and abs((numbers**4).mean() - 3) < 0.1
    )
    corners = np.array([stream.haar(4)[0, 0] for _ in range(2000)])
    assert abs(corners.mean()) < 0.04 and abs((corners**2).mean() - 0.25) < 0.02


def test_key_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    key = SiteKey.generate("fed")
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size == 32
    assert SiteKey.load(path, "fed") == key and SiteKey.load(path, "other") != key
    assert FederationKey.load(path, "fed") != key
    with pytest.raises(KeyFileError, match="a key is never overwritten"):
        key.save(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "site.key"
    SiteKey.generate("fed").save(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"expected mode 0600, got {mode:04o}; run chmod 600"):
        SiteKey.load(path, "fed")


@pytest.mark.parametrize("size", [0, 31, 33, 1000])
def test_key_file_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(b"k" * size)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"expected 32 bytes, got .*; make one with `ppcmi keygen`"):
        SiteKey.load(path, "fed")


def test_missing_folder_and_link_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot open it"):
        SiteKey.load(tmp_path / "absent", "fed")
    with pytest.raises(KeyFileError, match="expected a regular file"):
        SiteKey.load(tmp_path, "fed")
    SiteKey.generate("fed").save(tmp_path / "real.key")
    (tmp_path / "link.key").symlink_to(tmp_path / "real.key")
    with pytest.raises(KeyFileError, match="cannot open it"):
        SiteKey.load(tmp_path / "link.key", "fed")
    with pytest.raises(KeyFileError, match="cannot be written"):
        SiteKey.generate("fed").save(tmp_path / "no" / "folder.key")


@pytest.mark.parametrize("kind", [SiteKey, FederationKey])
def test_the_secret_does_not_leak(kind: type[SiteKey], caplog: pytest.LogCaptureFixture) -> None:
    key = kind(SECRET, "fed")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").info("%s %r", key, key)
    with pytest.raises(ValueError, match="secret: expected 32 bytes, got 31 bytes") as short:
        kind(SECRET[:31], "fed")
    for text in (str(key), repr(key), caplog.text, str(short.value)):
        assert SECRET.hex() not in text and repr(SECRET)[2:-1] not in text
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            call(key)


def test_a_switch_matrix_does_not_print_its_values() -> None:
    # Without a frame, as in trust mode "server", it is the site's inverse transform.
    switch = switch_up(SiteKey(SECRET, "fed").klt_params("image", 4, 4, "haar"), None)
    for text in (repr(switch), str(switch), f"{[switch]}"):
        assert "SwitchMatrix(dim=4, values hidden)" in text and "tensor" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "label"}, "role: expected one of"),
        ({"scale": 0}, "scale: expected an integer of at least 1"),
        ({"scale": 4.0}, "scale: expected an integer of at least 1, got 4.0"),
        ({"dim": True}, "dim: expected an integer"),
        ({"epoch": "0"}, "epoch: expected an integer"),
        ({"dim": 0}, "dim: expected"),
        ({"epoch": -1}, "epoch: expected"),
        ({"mixing": "dct"}, "mixing: expected 'haar' or 'hadamard'"),
        ({"mixing": "hadamard", "dim": 67 * 2}, "odd m <= 63 .* use mixing='haar'"),
        ({"mixing": "hadamard", "dim": 9}, "use mixing='haar'"),
        ({"offset_scale": -1.0}, "offset_scale"),
        ({"fold": 3}, r"multiple of fold\^2"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense(SiteKey(SECRET, "fed"), **changes)


def test_a_federation_key_mixes_by_haar_alone() -> None:
    with pytest.raises(ValueError, match="expected 'haar' for a federation key"):
        dense(FederationKey(SECRET, "fed"), mixing="hadamard")
    with pytest.raises(ValueError, match="federation_id"):
        SiteKey(SECRET, "a|b")


@pytest.mark.parametrize("mixing", ["haar", "hadamard"])
@pytest.mark.parametrize("offset", [0.0, 0.7])
def test_switch_matrices_change_frames(mixing: str, offset: float) -> None:
    site = SiteKey(SECRET, "fed").klt_params("image", 4, 48, mixing, offset_scale=offset)
    frame = FederationKey(SECRET[::-1], "fed").klt_params("image", 4, 48, "haar", offset_scale=offset)
    x = torch.randn(2, 48, 5, 5)
    for common in (frame, None):
        up, down = switch_up(site, common), switch_down(site, common)
        sent = ops.klt(x, site, normalize=False)
        zero = torch.zeros(48)
        arrived = torch.einsum("ij,njhw->nihw", up.matrix, sent)
        arrived = arrived + (zero if up.offset is None else up.offset).view(1, -1, 1, 1)
        wanted = x if common is None else ops.klt(x, common, normalize=False)
        torch.testing.assert_close(arrived, wanted, rtol=1e-4, atol=1e-4)
        back = torch.einsum("ij,njhw->nihw", down.matrix, arrived)
        back = back + (zero if down.offset is None else down.offset).view(1, -1, 1, 1)
        torch.testing.assert_close(back, sent, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="frame: expected dim 48"):
        switch_up(site, FederationKey(SECRET, "fed").klt_params("image", 4, 32, "haar"))


def test_info_names_everything() -> None:
    assert schedule_info("site", "mask", 8, 16, "haar", 3) == "ppcmi-fast/klt/1|site|mask|8|16|haar|3"
