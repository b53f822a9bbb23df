"""What the server was sent and can reach: nothing secret, and every kind of leak is found where it lies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from federation_parties import (
    COUNT,
    FEDERATION_SECRET,
    NAMES,
    SITE_SECRETS,
    Spy,
    connect,
    data,
    make_site,
    reached,
)
from safetensors.torch import save
from torch import Tensor

from ppcmi_fast import ops
from ppcmi_fast.errors import WireError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.site import Site


def raw(leaf: Any) -> bytes:
    """The bytes of a leaf; of a tensor the whole storage, since a view keeps all of it alive."""
    if isinstance(leaf, Tensor):
        return leaf.detach().numpy().tobytes() + bytes(leaf.untyped_storage().tolist())
    return leaf.encode() if isinstance(leaf, str) else bytes(leaf)


WINDOW = 24


def windows(data: bytes) -> list[bytes]:
    """Pieces of the beginning, middle and end; those too plain to say where they come from are left out."""
    starts = {0, (len(data) // 2) & ~7, max(len(data) - WINDOW, 0)}
    pieces = [data[start : start + WINDOW] for start in sorted(starts)]
    return [piece for piece in pieces if len(set(piece)) >= 8]


def tensor_patterns(tensor: Tensor) -> list[bytes]:
    """Windows of a tensor's values in the layouts and dtypes in which it could travel."""
    flat = tensor.detach().double()
    layouts = [flat.flatten()]
    if flat.ndim == 2:
        layouts.append(flat.T.flatten())
    if flat.ndim == 4:
        layouts.append(flat.permute(0, 2, 3, 1).flatten())
    patterns = []
    for values in layouts:
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            patterns += windows(values.to(dtype).view(torch.uint8).numpy().tobytes())
        span = (values.max() - values.min()).clamp_min(1e-9)
        for scaled in (values * 255, (values - values.min()) / span * 255):
            for rounded in (scaled.round(), scaled.floor()):
                patterns += windows(rounded.clamp(0, 255).to(torch.uint8).numpy().tobytes())
    return patterns


def mask_patterns(masks: Tensor) -> list[bytes]:
    """Labels are of few values, so rows of a noisy mask stand for it: as bytes, wider integers, floats and bits."""
    found = []
    for value in (1, 255):
        for dtype in (torch.uint8, torch.int32, torch.int64, torch.float32, torch.float16):
            found += [(row * value).to(dtype).numpy().tobytes() for row in masks[0, 0:4:3]]
    packed = np.packbits(masks[0].numpy().astype(bool))
    return [*found, packed.tobytes()[:WINDOW]]


def secrets_of(sites: list[Site], images: Tensor, masks: Tensor) -> dict[str, list[bytes]]:
    """By name, byte patterns none of which may be at the server."""
    found: dict[str, list[bytes]] = {}
    for name, secret in {"federation": FEDERATION_SECRET, **SITE_SECRETS}.items():
        encoded = [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")]
        found[f"key {name}"] = [
            *encoded,
            json.dumps(list(secret)).encode(),
            json.dumps(list(secret), separators=(",", ":")).encode(),
        ]
    found["image"] = tensor_patterns(images)
    found["mask"] = mask_patterns(masks)
    for site in sites:
        for scale, z in site.image_codec.encode(images).items():
            identity = ops.KltParams("haar", z.shape[1], matrix=torch.eye(z.shape[1]))
            found[f"plain latents {scale}"] = tensor_patterns(z)
            found[f"unkeyed codes {scale}"] = windows(
                ops.klt_quantize(z.detach(), identity, bits=min(site.bits_up, 8)).numpy().tobytes()
            )
        for scale, z in site.mask_codec.encode(masks).items():
            found[f"plain mask latents {scale}"] = tensor_patterns(z)
            found[f"weighted mask latents {scale}"] = tensor_patterns(z * site._weights[scale])
        for key, value in site.image_codec.state_dict().items():
            found[f"codec {key}"] = tensor_patterns(value)
        for (role, scale), params in site._params.items():
            found[f"transform {site.name} {role} {scale}"] = tensor_patterns(params.dense())
            frame = site._frames[role, scale]
            assert frame is not None
            found[f"frame {role} {scale}"] = tensor_patterns(frame.dense())
    return found


def leaks(channel: Channel, secrets: dict[str, list[bytes]]) -> set[str]:
    """Names of the secrets found in the bytes that the server was sent or in what it can reach."""
    assert channel.recorded is not None
    # The separator keeps a pattern from being found across two neighbours.
    held = b"|".join([*channel.recorded, *(raw(leaf) for leaf in reached(channel.server))])
    return {name for name, patterns in secrets.items() if any(pattern in held for pattern in patterns)}


def exchange(sites: list[Site]) -> tuple[Channel, dict[str, list[bytes]]]:
    """One of every message but those of tuning and of the mapper's start, which have tests of their own."""
    images, masks = data()
    secrets = secrets_of(sites, images, masks)
    channel = connect(sites)
    for site in sites:
        channel.send(site.seal_codec(site.image_codec, 0, COUNT))
    for site in sites:
        relay = channel.send(site.fetch_codecs(0))
        assert relay is not None
        site.average_codecs(site.image_codec, relay, 0)
        channel.send(site.upload(images, masks, "train"))
        channel.send(site.upload(images, masks, "val"))
    _, targets, _ = channel.server.latent_set("train").batch(torch.arange(COUNT))
    spy = Spy(targets)
    channel.server.mapper = cast(Any, spy)
    for site in sites:
        reply = channel.send(site.query(images))
        assert reply is not None
        site.open_reply(reply)
    return channel, secrets


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_nothing_secret_is_in_what_the_server_was_sent_or_can_reach(bits: int) -> None:
    channel, secrets = exchange(
        [make_site(name, mixing="haar", bits_up=bits, bits_down=bits) for name in NAMES]
    )
    # Short biases give only some of their windows; every secret must be looked for somewhere.
    assert all(secrets.values()) and len(secrets) >= 20
    assert leaks(channel, secrets) == set()


class LeakingSite(Site):
    """Sends what it must not, in messages whose form the wire lets pass."""

    leak = ""

    def _encode(self, kind: str, fields: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
        params, frame = self._params["image", 8], self._frames["image", 8]
        assert frame is not None
        images, masks = data()
        if kind == "register":
            instead = {
                "transform": params.dense(),
                "transposed transform": params.dense().T,
                "frame": frame.dense(),
            }
            if self.leak in instead:
                tensors = tensors | {"up/image/8": instead[self.leak].float()}
        if kind == "codec_round":
            weights = {k: v.half() for k, v in self.image_codec.state_dict().items()}
            blobs = {"weights": save(weights), "key": SITE_SECRETS["a"], "federation key": FEDERATION_SECRET}
            if self.leak in blobs:
                tensors = {"sealed": torch.tensor(list(blobs[self.leak]), dtype=torch.uint8)}
        if kind == "upload":
            if self.leak == "image":
                pixels = images.mul(255).round().to(torch.uint8)
                tensors = tensors | {"image/4": torch.nn.functional.pixel_unshuffle(pixels, 1)}
            if self.leak == "mask":
                tensors = tensors | {"mask/8": masks.to(torch.uint8).unsqueeze(1)}
            if self.leak == "hidden in a field":
                fields = fields | {"partition": SITE_SECRETS["a"].hex()}
        return super()._encode(kind, fields, tensors)

    def _protect(self, role: str, latents: dict[int, Tensor]) -> dict[str, Tensor]:
        if self.leak == "unkeyed":
            params = {
                s: ops.KltParams("haar", z.shape[1], matrix=torch.eye(z.shape[1])) for s, z in latents.items()
            }
            return {
                f"{role}/{s}": ops.klt_quantize(z, params[s], bits=self.bits_up) for s, z in latents.items()
            }
        return super()._protect(role, latents)


LEAKS = {
    "transform": "transform a image 8",
    "transposed transform": "transform a image 8",
    "frame": "frame image 8",
    "weights": "codec fine.weight",
    "key": "key a",
    "federation key": "key federation",
    "image": "image",
    "mask": "mask",
    "hidden in a field": "key a",
    "unkeyed": "unkeyed codes 4",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_site_that_leaks_is_caught(leak: str) -> None:
    site = make_site("a", LeakingSite, mixing="haar")
    cast(LeakingSite, site).leak = leak
    images, masks = data()
    secrets = secrets_of([site], images, masks)
    channel = connect([site])
    # The server refuses some of them, yet it was given the bytes.
    refused = leak in ("image", "mask", "hidden in a field")
    channel.send(site.seal_codec(site.image_codec, 0, 1))
    with pytest.raises(WireError) if refused else nullcontext():
        channel.send(site.upload(images, masks, "train"))
    assert LEAKS[leak] in leaks(channel, secrets)


class Slotted:
    __slots__ = ("kept",)

    def __init__(self, kept: Any) -> None:
        self.kept = kept


PLACES: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda value: value,
    "slot": Slotted,
    "closure": lambda value: lambda: value,
    "partial": lambda value: partial(print, value),
    "generic container": lambda value: {"x": [(value,)]},
    "array": lambda value: np.frombuffer(value, dtype=np.uint8),
    "text": lambda value: value.hex(),
    "storage behind a view": lambda value: torch.tensor(list(value), dtype=torch.uint8)[:1],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_key_that_lies_at_the_server_is_found_wherever_it_lies(place: str) -> None:
    site = make_site("a")
    secrets = secrets_of([site], *data())
    channel = connect([site])
    assert "key a" not in leaks(channel, secrets)
    channel.server.planted = PLACES[place](SITE_SECRETS["a"])  # type: ignore[attr-defined]
    assert "key a" in leaks(channel, secrets)
