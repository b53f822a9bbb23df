"""What travels between a site and the server: safetensors bytes behind a versioned header.

A message is 8 bytes of magic, the version as a little-endian uint16, the SHA-256 of the rest, and a safetensors
file whose metadata holds kind, federation, sender, epoch and the kind's own fields as JSON. The digest finds damage;
against a peer who alters messages on purpose, TLS is needed beneath. See docs/wire.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppcmi_fast.errors import WireError

MAGIC = b"PPCMIMSG"
VERSION = 1
_HEADER = struct.Struct("<8sH32s")

_CODES = (torch.uint8, torch.float32)
# One spelling for a scale: \d would also take "04" and other scripts' digits, and two names would be one scale.
_SCALE = "[1-9][0-9]{0,5}"
_SCHEMAS: dict[str, list[tuple[re.Pattern[str], tuple[torch.dtype, ...], int]]] = {
    "register": [
        (re.compile(f"up/(image|mask)/{_SCALE}|down/mask/{_SCALE}"), (torch.float32,), 2),
        (re.compile(f"up_offset/(image|mask)/{_SCALE}|down_offset/mask/{_SCALE}"), (torch.float32,), 1),
    ],
    "upload": [(re.compile(f"(image|mask)/{_SCALE}"), _CODES, 4)],
    "query": [(re.compile(f"image/{_SCALE}"), _CODES, 4)],
    "reply": [(re.compile(f"mask/{_SCALE}"), _CODES, 4)],
    "tune": [(re.compile(f"(image|mask)/{_SCALE}"), _CODES, 4)],
    "tune_fetch": [],
    "gradient": [(re.compile(f"image/{_SCALE}"), (torch.float16,), 4)],
    "mapper_start": [
        (re.compile(r"weights/[a-z0-9_.]+"), (torch.float32,), 1),
        (re.compile(r"weights/[a-z0-9_.]+"), (torch.float32,), 4),
    ],
    "codec_round": [(re.compile(r"sealed"), (torch.uint8,), 1)],
    "codec_fetch": [],
    "codec_relay": [(re.compile(r"sealed/.+"), (torch.uint8,), 1)],
}
KINDS = tuple(_SCHEMAS)
_FIELDS: dict[str, frozenset[str]] = {
    "register": frozenset({"shapes", "bits_up", "bits_down", "mask_weights"}),
    "upload": frozenset({"partition"}),
    "query": frozenset(),
    "reply": frozenset(),
    "tune": frozenset({"step"}),
    "tune_fetch": frozenset({"step"}),
    "gradient": frozenset({"step", "scales"}),
    "mapper_start": frozenset(),
    "codec_round": frozenset({"round", "images"}),
    "codec_fetch": frozenset({"round"}),
    "codec_relay": frozenset({"round", "images"}),
}
SENDER_LENGTH = 200
_EPOCH = re.compile("0|[1-9][0-9]{0,17}")


def is_scale(text: str) -> bool:
    """Whether `text` spells a scale as the names of tensors do."""
    return re.fullmatch(_SCALE, text) is not None


@dataclass(frozen=True, repr=False)
class Message:
    """One message: who says what in which federation and epoch."""

    kind: str
    federation_id: str
    sender: str
    epoch: int
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def role(self, name: str) -> dict[int, Tensor]:
        """The tensors `name/<scale>`, by scale."""
        prefix = name + "/"
        return {int(k[len(prefix) :]): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def __repr__(self) -> str:
        # Shapes only: a registration's matrices may be a site's inverse transform.
        tensors = {name: f"{t.dtype} {list(t.shape)}" for name, t in self.tensors.items()}
        return (
            f"Message(kind={self.kind!r}, federation_id={self.federation_id!r}, sender={self.sender!r},"
            f" epoch={self.epoch}, fields={self.fields}, tensors={tensors})"
        )


def _check_schema(message: Message) -> None:
    if message.kind not in _SCHEMAS:
        raise WireError(
            f"kind: expected one of {', '.join(KINDS)}, got {message.kind!r}; is the peer's version newer?"
        )
    # It becomes part of a tensor's name in codec_relay, where one odd name would spoil the message for all sites.
    if not (0 < len(message.sender) <= SENDER_LENGTH and message.sender.isprintable()):
        raise WireError(
            f"sender: expected 1..{SENDER_LENGTH} printable characters, got {message.sender[:40]!r}; rename the site"
        )
    for name, tensor in message.tensors.items():
        for pattern, dtypes, rank in _SCHEMAS[message.kind]:
            if pattern.fullmatch(name) and tensor.dtype in dtypes and tensor.ndim == rank:
                break
        else:
            raise WireError(
                f"{message.kind}: tensor {name!r} {tensor.dtype} of rank {tensor.ndim} may not travel in this kind of"
                " message; see docs/wire.md for what may"
            )
    stray = sorted(set(message.fields) - _FIELDS[message.kind])
    if stray:
        raise WireError(
            f"{message.kind}: expected no fields but {sorted(_FIELDS[message.kind])}, got {stray}, which may not"
            " travel in this kind of message; see docs/wire.md for what may"
        )


def encode(message: Message) -> bytes:
    """Message to bytes.

    Raises:
        WireError: a tensor or a field that this kind of message may not carry.
    """
    _check_schema(message)
    metadata = {
        "kind": message.kind,
        "federation": message.federation_id,
        "sender": message.sender,
        "epoch": str(message.epoch),
        "fields": json.dumps(message.fields, separators=(",", ":"), allow_nan=False),
    }
    body = save({name: t.contiguous() for name, t in message.tensors.items()}, metadata)
    return _HEADER.pack(MAGIC, VERSION, hashlib.sha256(body).digest()) + body


def _body(data: bytes) -> bytes:
    if len(data) < _HEADER.size:
        raise WireError(
            f"message: expected at least {_HEADER.size} bytes, got {len(data)}; it was cut off, send it again"
        )
    magic, version, digest = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError(
            f"message: expected to begin with {MAGIC!r}, got {magic!r}; this is no message of ppcmi-fast"
        )
    if version != VERSION:
        raise WireError(
            f"message: expected version {VERSION}, got {version}; install the same ppcmi-fast on both sides"
        )
    body = data[_HEADER.size :]
    found = hashlib.sha256(body).digest()
    if found != digest:
        raise WireError(
            f"message: expected a body of digest {digest.hex()[:16]}..., got {found.hex()[:16]}... over {len(body)}"
            " bytes, so it was truncated or altered on the way; send it again"
        )
    return body


def _metadata(body: bytes) -> dict[str, str]:
    (length,) = struct.unpack_from("<Q", body)
    values: dict[str, str] = json.loads(body[8 : 8 + length])["__metadata__"]
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"fields: expected JSON numbers, got {name}")


def _fields(text: str) -> dict[str, Any]:
    """The kind's own fields; NaN and infinities, which JSON does not have and Python reads, are refused."""
    fields = json.loads(text, parse_constant=_no_constant)
    if not isinstance(fields, dict):
        raise ValueError(f"fields: expected a JSON object, got {type(fields).__name__}")
    return fields


def _epoch(text: str) -> int:
    if not _EPOCH.fullmatch(text):
        raise ValueError(f"epoch: expected a decimal number, got {text[:40]!r}")
    return int(text)


def decode(data: bytes, federation_id: str, epoch: int, kinds: tuple[str, ...] = KINDS) -> Message:
    """Bytes to message, everything checked.

    Args:
        data: what arrived.
        federation_id: the receiver's federation.
        epoch: the receiver's epoch.
        kinds: the kinds that the receiver takes.

    Raises:
        WireError: truncated, altered, of another version, federation or epoch, or not of an expected kind and form.
    """
    body = _body(data)
    try:
        # load comes first: it refuses every header that is not of names, shapes and text.
        tensors = load(body)
        values = _metadata(body)
        message = Message(
            values["kind"],
            values["federation"],
            values["sender"],
            _epoch(values["epoch"]),
            _fields(values["fields"]),
            tensors,
        )
    except (SafetensorError, KeyError, ValueError, RecursionError, struct.error) as error:
        raise WireError(
            f"message: expected a safetensors body with our metadata, got {error}; send it again"
        ) from None
    if message.kind not in kinds:
        raise WireError(
            f"kind: expected one of {', '.join(kinds)}, got {message.kind!r}; send it to the right place"
        )
    if message.federation_id != federation_id:
        raise WireError(
            f"federation: expected {federation_id!r}, got {message.federation_id!r}; check the settings"
        )
    if message.epoch != epoch:
        raise WireError(
            f"epoch: expected {epoch}, got {message.epoch}; register again with the keys of epoch {epoch}"
        )
    _check_schema(message)
    return message
