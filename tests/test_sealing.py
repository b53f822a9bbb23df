"""Sealed weights: round trip, and every way of tampering refused."""

from __future__ import annotations

import pytest
import torch

from ppcmi_fast import FederationKey, SiteKey
from ppcmi_fast.errors import WireError
from ppcmi_fast.sealing import seal, seal_weights, unseal, unseal_weights

KEY = FederationKey(bytes(range(32)), "fed")


def test_round_trip_and_a_new_nonce_every_time() -> None:
    sealed = [seal(KEY, b"weights", epoch=1, context="codec|0|a") for _ in range(200)]
    assert len({s[:12] for s in sealed}) == 200
    assert unseal(KEY, sealed[0], epoch=1, context="codec|0|a") == b"weights"
    assert all(b"weights" not in s for s in sealed)


def test_weights_round_trip() -> None:
    weights = {"a": torch.randn(3, 4).half(), "n": torch.tensor(5)}
    opened = unseal_weights(KEY, seal_weights(KEY, weights, epoch=0, context="c"), epoch=0, context="c")
    assert set(opened) == {"a", "n"} and torch.equal(opened["a"], weights["a"]) and opened["n"] == 5


@pytest.mark.parametrize("at", [0, 11, 12, 20, -17, -1])
def test_one_altered_bit_is_found(at: int) -> None:
    sealed = bytearray(seal(KEY, b"some weights here", epoch=0, context="c"))
    sealed[at] ^= 1
    with pytest.raises(WireError, match="altered"):
        unseal(KEY, bytes(sealed), epoch=0, context="c")


def test_other_epoch_context_federation_or_key_is_refused() -> None:
    sealed = seal(KEY, b"weights", epoch=0, context="codec|0|a")
    others = [
        (KEY, 1, "codec|0|a"),
        (KEY, 0, "codec|1|a"),
        (FederationKey(bytes(range(32)), "fed2"), 0, "codec|0|a"),
        (FederationKey(bytes(32), "fed"), 0, "codec|0|a"),
    ]
    for key, epoch, context in others:
        with pytest.raises(WireError, match="expected bytes sealed for epoch"):
            unseal(key, sealed, epoch=epoch, context=context)


@pytest.mark.parametrize("length", [0, 5, 27])
def test_truncated_bytes_are_refused(length: int) -> None:
    sealed = seal(KEY, b"", epoch=0, context="c")
    with pytest.raises(WireError, match="expected at least 28 bytes"):
        unseal(KEY, sealed[:length], epoch=0, context="c")


def test_bytes_that_open_but_are_no_weights_are_refused() -> None:
    with pytest.raises(WireError, match="expected weights as safetensors"):
        unseal_weights(KEY, seal(KEY, b"junk", epoch=0, context="c"), epoch=0, context="c")


def test_only_a_federation_key_and_a_whole_epoch_seal() -> None:
    with pytest.raises(TypeError, match="expected a FederationKey"):
        seal(SiteKey(bytes(32), "fed"), b"x", epoch=0, context="c")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epoch: expected an integer"):
        seal(KEY, b"x", epoch=-1, context="c")
