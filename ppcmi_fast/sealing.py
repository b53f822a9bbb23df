"""Sealed bytes between sites: AES-256-GCM under a key that the server does not have."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppcmi_fast.errors import WireError
from ppcmi_fast.keys import FederationKey

VERSION = "ppcmi-fast/seal/1"
NONCE_BYTES = 12
TAG_BYTES = 16


def _cipher(key: FederationKey, epoch: int) -> AESGCM:
    if not isinstance(key, FederationKey):
        raise TypeError(f"key: expected a FederationKey, which all sites hold, got {type(key).__name__}")
    if type(epoch) is not int or epoch < 0:
        raise ValueError(f"epoch: expected an integer of at least 0, got {epoch!r}")
    return AESGCM(key.derive(f"{VERSION}|{epoch}"))


def _bound(key: FederationKey, epoch: int, context: str) -> bytes:
    return f"{VERSION}|{key.federation_id}|{epoch}|{context}".encode()


def seal(key: FederationKey, payload: bytes, *, epoch: int, context: str) -> bytes:
    """Nonce (12 random bytes), ciphertext and tag (16 bytes); `context` is bound but not sent."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher(key, epoch).encrypt(nonce, payload, _bound(key, epoch, context))


def unseal(key: FederationKey, sealed: bytes, *, epoch: int, context: str) -> bytes:
    """Open what `seal` made.

    Raises:
        WireError: altered, truncated, or sealed for another federation, epoch or context.
    """
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise WireError(
            f"sealed: expected at least {NONCE_BYTES + TAG_BYTES} bytes, got {len(sealed)}; ask for it again"
        )
    try:
        return _cipher(key, epoch).decrypt(
            sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(key, epoch, context)
        )
    except InvalidTag:
        raise WireError(
            f"sealed: expected bytes sealed for epoch {epoch} and {context!r} in this federation, got others or altered"
            " ones; ask for them again"
        ) from None


def seal_weights(key: FederationKey, weights: dict[str, Tensor], *, epoch: int, context: str) -> bytes:
    """Seal named tensors."""
    return seal(
        key, save({k: v.detach().contiguous() for k, v in weights.items()}), epoch=epoch, context=context
    )


def unseal_weights(key: FederationKey, sealed: bytes, *, epoch: int, context: str) -> dict[str, Tensor]:
    """Open what `seal_weights` made.

    Raises:
        WireError: as `unseal`; also bytes that open but hold no named tensors.
    """
    payload = unseal(key, sealed, epoch=epoch, context=context)
    try:
        return load(payload)
    except SafetensorError as error:
        raise WireError(
            f"sealed: expected weights as safetensors for {context!r}, got other bytes ({error}); check the sender's"
            " version"
        ) from None
