"""The wire format: round trip, and every damaged or foreign message refused."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
import torch

from ppcmi_fast import wire
from ppcmi_fast.errors import WireError
from ppcmi_fast.wire import Message

QUERY = Message("query", "fed", "a", 3, {}, {"image/4": torch.randint(0, 255, (2, 8, 4, 4)).to(torch.uint8)})


def test_round_trip() -> None:
    message = wire.decode(wire.encode(QUERY), "fed", 3)
    assert (message.kind, message.sender, message.epoch, message.fields) == ("query", "a", 3, {})
    assert torch.equal(message.role("image")[4], QUERY.tensors["image/4"])


def test_the_header_costs_little() -> None:
    assert len(wire.encode(QUERY)) - QUERY.tensors["image/4"].numel() < 320


@pytest.mark.parametrize("length", [0, 7, 41, 60, -1])
def test_truncated_messages_are_refused(length: int) -> None:
    with pytest.raises(WireError, match=r"cut off|truncated"):
        wire.decode(wire.encode(QUERY)[:length], "fed", 3)


def test_every_altered_byte_is_refused() -> None:
    data = wire.encode(QUERY)
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 0x10
        with pytest.raises(WireError):
            wire.decode(bytes(broken), "fed", 3)


def resigned(data: bytes, **changes: int) -> bytes:
    """The message with another version, its digest made right again."""
    body = data[42:]
    return struct.pack("<8sH32s", wire.MAGIC, changes.get("version", 1), hashlib.sha256(body).digest()) + body


def test_other_version_epoch_federation_and_kind_are_named() -> None:
    data = wire.encode(QUERY)
    with pytest.raises(WireError, match="version: expected|expected version 1, got 2; install the same"):
        wire.decode(resigned(data, version=2), "fed", 3)
    with pytest.raises(WireError, match="epoch: expected 4, got 3; register again"):
        wire.decode(data, "fed", 4)
    with pytest.raises(WireError, match="federation: expected 'other', got 'fed'"):
        wire.decode(data, "other", 3)
    with pytest.raises(WireError, match="kind: expected one of reply, got 'query'"):
        wire.decode(data, "fed", 3, ("reply",))
    with pytest.raises(WireError, match="this is no message of ppcmi-fast"):
        wire.decode(b"GET / HTTP/1.1\r\nHost: example\r\nAccept: */*\r\n\r\n", "fed", 3)


@pytest.mark.parametrize("sender", ["", "a\nb", "a" * 201, "\u202eb"])
def test_senders_that_could_not_be_relayed_are_refused(sender: str) -> None:
    with pytest.raises(
        WireError, match=r"sender: expected 1\.\.200 printable characters, got .*; rename the site"
    ):
        wire.encode(replace(QUERY, sender=sender))


def test_a_printed_message_shows_shapes_and_no_values() -> None:
    text = repr(
        Message("register", "fed", "a", 0, {"bits_up": 4}, {"up/image/4": torch.full((2, 2), 0.123456)})
    )
    assert "'up/image/4': 'torch.float32 [2, 2]'" in text and "'bits_up': 4" in text
    assert "0.1234" not in text


@pytest.mark.parametrize(
    ("kind", "name", "tensor"),
    [
        ("query", "mask/4", torch.zeros(1, 1, 1, 1, dtype=torch.uint8)),
        ("query", "image/4", torch.zeros(1, 1, 1, 1, dtype=torch.int64)),
        ("query", "image/4", torch.zeros(1, 1, dtype=torch.uint8)),
        ("query", "image", torch.zeros(1, 1, 1, 1, dtype=torch.uint8)),
        ("codec_round", "encoder.weight", torch.zeros(3, 3)),
        ("codec_fetch", "anything", torch.zeros(1)),
        ("upload", "images", torch.zeros(1, 1, 8, 8)),
    ],
)
def test_tensors_that_may_not_travel_do_not(kind: str, name: str, tensor: torch.Tensor) -> None:
    with pytest.raises(WireError, match="may not travel"):
        wire.encode(Message(kind, "fed", "a", 0, {}, {name: tensor}))


def test_a_body_that_is_not_ours_is_refused() -> None:
    from safetensors.torch import save

    body = save({"image/4": torch.zeros(1)}, {"kind": "query"})
    data = struct.pack("<8sH32s", wire.MAGIC, 1, hashlib.sha256(body).digest()) + body
    with pytest.raises(WireError, match="with our metadata"):
        wire.decode(data, "fed", 3)
