"""What passes between sites and server: the frame, and every message and setting refused."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from federation_parties import (
    COUNT,
    FEDERATION_SECRET,
    NAMES,
    SITE_SECRETS,
    SIZE,
    FakeImageCodec,
    Spy,
    connect,
    data,
    make_site,
    reached,
)
from safetensors.torch import save
from torch import Tensor, nn

from ppcmi_fast import FederationKey, LinearMaskCodec, SiteKey, wire
from ppcmi_fast.codec import MaskAutoencoder
from ppcmi_fast.errors import ConfigError, WireError
from ppcmi_fast.federation.registration import Trust
from ppcmi_fast.federation.server import Server
from ppcmi_fast.wire import Message

# The frame


@pytest.mark.parametrize("trust", ["server", "federation"])
@pytest.mark.parametrize("mixing", ["haar", "hadamard"])
@pytest.mark.parametrize("fold", [1, 2])
def test_the_mapper_is_given_the_latents_in_the_frame(trust: Trust, mixing: str, fold: int) -> None:
    sites = [make_site(name, trust=trust, mixing=mixing, folds={4: fold}) for name in NAMES]
    channel = connect(sites, trust)
    images, masks = data()
    key = FederationKey(FEDERATION_SECRET, "fed")
    plain = {s: z.detach() for s, z in FakeImageCodec().encode(images).items()}
    plain[4] = torch.nn.functional.pixel_unshuffle(plain[4], fold)
    plain = {s: z * torch.rsqrt(z.square().mean(1, keepdim=True)) for s, z in plain.items()}
    spy = Spy({8: LinearMaskCodec(2, 8, 16).encode(masks)[8]})
    channel.server.mapper = cast(Any, spy)
    for site in sites:
        channel.send(site.query(images))
    assert len(spy.given) == len(NAMES)
    for given in spy.given:
        for scale, z in plain.items():
            dim = z.shape[1]
            frame = torch.eye(dim)
            if trust == "federation":
                frame = key.klt_params("image", scale, dim, "haar").dense().float()
            expected = torch.einsum("ij,njhw->nihw", frame, z)
            # The step of the 8-bit codebook is about 0.03; an orthogonal matrix keeps the error's RMS.
            assert (given[scale] - expected).square().mean().sqrt() < 0.02
            assert (given[scale] - z).square().mean().sqrt() < 0.02 or trust == "federation"


@pytest.mark.parametrize("trust", ["server", "federation"])
def test_the_targets_are_the_mask_latents_in_the_frame_with_their_size(trust: Trust) -> None:
    images, masks = data()
    plain = LinearMaskCodec(2, 8, 16).encode(masks)[8]
    # Masks as rough as these have blocks of every RMS: were they normalized, the difference would show.
    assert plain.square().mean(1).sqrt().std() > 0.1
    sites = [make_site(name, trust=trust, bits_up=32) for name in NAMES]
    channel = connect(sites, trust)
    for site in sites:
        channel.send(site.upload(images, masks, "train"))
    _, targets, _ = channel.server.latent_set("train").batch(torch.arange(len(NAMES) * COUNT))
    frame = torch.eye(16)
    if trust == "federation":
        frame = FederationKey(FEDERATION_SECRET, "fed").klt_params("mask", 8, 16, "haar").dense().float()
    weights = torch.tensor([0.7] + [1.75] * 15).view(1, 16, 1, 1)
    expected = torch.einsum("ij,njhw->nihw", frame, plain * weights)
    for found in targets[8].split(COUNT):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("trust", ["server", "federation", "sites"])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_an_oracles_answer_comes_back_as_the_mask(trust: Trust, bits: int) -> None:
    sites = [make_site(name, trust=trust, bits_up=bits, bits_down=bits) for name in NAMES]
    channel = connect(sites, trust)
    images, masks = data()
    blocks = masks[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2)
    for number, site in enumerate(sites):
        # In parts, as a site with many images uploads.
        for part in (slice(0, 1), slice(1, COUNT)):
            channel.send(site.upload(images[part], blocks[part], "train"))
        index = torch.arange(number * COUNT, (number + 1) * COUNT)
        _, targets, _ = channel.server.latent_set("train").batch(index)
        channel.server.mapper = cast(Any, Spy(targets))
        reply = channel.send(site.query(images))
        assert reply is not None
        scores = site.open_reply(reply)
        assert scores.shape == (COUNT, 2, SIZE, SIZE)
        assert torch.equal(scores.argmax(1), blocks)


# Messages refused


def sealed_body(body: bytes) -> bytes:
    """A header that fits the body, as one makes who alters a message on purpose."""
    return struct.pack("<8sH32s", wire.MAGIC, wire.VERSION, hashlib.sha256(body).digest()) + body


def crafted(tensors: dict[str, Tensor] | None = None, **changes: str) -> bytes:
    metadata = {"kind": "query", "federation": "fed", "sender": "a", "epoch": "0", "fields": "{}"} | changes
    return sealed_body(save(tensors or {}, metadata))


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (crafted(fields="[1]"), "expected a JSON object, got list"),
        (crafted(fields="[" * 100_000), "recursion"),
        (crafted(fields='{"round":NaN}', kind="codec_fetch"), "expected JSON numbers, got NaN"),
        (crafted(fields='{"note":"x"}'), r"query: expected no fields but \[\], got \['note'\]"),
        (crafted(epoch=" +0_0"), "epoch: expected a decimal number"),
        (crafted(epoch="9" * 5000), "epoch: expected a decimal number"),
        (crafted(sender=""), r"sender: expected 1\.\.200 printable characters, got ''"),
        (crafted(sender="a\nb"), r"sender: expected 1\.\.200 printable characters"),
        (crafted(kind="gossip"), "kind: expected one of .*, got 'gossip'"),
        (crafted({"image/04": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)}), "may not travel"),
        (crafted({"image/٤": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)}), "may not travel"),
        (crafted({"image/" + "9" * 5000: torch.zeros(1, 1, 1, 1, dtype=torch.uint8)}), "may not travel"),
        (sealed_body(struct.pack("<Q", 2) + b"[]"), "with our metadata"),
        (sealed_body(struct.pack("<Q", 2**63) + b"{}"), "with our metadata"),
        (sealed_body(struct.pack("<Q", 200_000) + b"[" * 200_000), "with our metadata"),
        (sealed_body(b""), "with our metadata"),
        (sealed_body(save({"image/4": torch.zeros(1)})), "with our metadata"),
    ],
)
def test_a_crafted_message_is_a_wire_error_and_nothing_else(message: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        wire.decode(message, "fed", 0)
    server = Server("fed", 0, "federation")
    with pytest.raises(WireError):
        server.receive(message)
    assert reached(server._registrations) == [] and server.sites == []


def registration(**settings: Any) -> Message:
    return wire.decode(make_site("a", **settings).register(SIZE, SIZE), "fed", 0)


def with_shape(shape: Any) -> dict[str, Any]:
    shapes = registration().fields["shapes"]
    return {"shapes": {**shapes, "image": {**shapes["image"], "4": shape}}}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bits_up": 3}, "bits_up as one of"),
        ({"bits_down": "8"}, "bits_down as one of"),
        ({"bits_up": True}, "bits_up as one of"),
        ({"mask_weights": None}, "mask_weights as two finite numbers over 0"),
        ({"mask_weights": [1.0]}, "mask_weights as two finite numbers over 0"),
        ({"mask_weights": [0.7, 0]}, "mask_weights as two finite numbers over 0"),
        ({"mask_weights": [True, 1.75]}, "mask_weights as two finite numbers over 0"),
        ({"shapes": [1]}, "shapes of image and mask"),
        ({"shapes": {"image": {}, "mask": {}}}, "shapes of image by scale"),
        ({"shapes": {"image": {"-4": [8, 8, 8]}, "mask": {}}}, "a stride as scale"),
        (with_shape([8, 8]), r"\[D, h, w\] of image/4"),
        (with_shape([8, -8, 8]), r"\[D, h, w\] of image/4"),
        (with_shape([8, 8.5, 8]), r"\[D, h, w\] of image/4"),
        (with_shape([16, 8, 8]), r"up/image/4: expected \[16, 16\], got \[8, 8\]"),
        ({"bits_up": 2, **with_shape([7, 8, 8])}, "fills bytes"),
    ],
)
def test_registrations_whose_fields_are_wrong(fields: dict[str, Any], match: str) -> None:
    message = registration()
    server = Server("fed", 0, "federation")
    with pytest.raises(WireError, match=match):
        server.receive(wire.encode(replace(message, fields=message.fields | fields)))
    assert server.sites == []


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"up/image/4": torch.full((8, 8), float("nan"))}, "up/image/4: expected an orthogonal matrix"),
        ({"down/mask/8": torch.eye(16) * 2}, "down/mask/8: expected an orthogonal matrix"),
        ({"up/image/32": torch.eye(8)}, "expected switch matrices"),
        ({"up_offset/image/32": torch.zeros(8)}, "expected switch matrices"),
        ({"up_offset/image/4": torch.zeros(9)}, "finite offset"),
        ({"up_offset/image/4": torch.full((8,), float("inf"))}, "finite offset"),
    ],
)
def test_registrations_whose_matrices_are_wrong(tensors: dict[str, Tensor], match: str) -> None:
    message = registration()
    server = Server("fed", 0, "federation")
    with pytest.raises(WireError, match=match):
        server.receive(wire.encode(replace(message, tensors=message.tensors | tensors)))
    assert server.sites == []


def test_after_uploads_a_site_registers_only_what_it_uploaded_under() -> None:
    images, masks = data()
    channel = connect([make_site("a")])
    channel.send(make_site("a", bits_up=4).register(SIZE, SIZE))  # nothing uploaded yet: it may still change
    channel.send(make_site("a").register(SIZE, SIZE))
    channel.send(make_site("a").upload(images, masks, "val"))
    channel.send(make_site("a", bits_down=4).register(SIZE, SIZE))  # says nothing of what was uploaded
    others = [
        make_site("a", bits_up=4).register(SIZE, SIZE),
        make_site("a").register(64, 64),
        make_site("a", mask_weights=(1.0, 1.0)).register(SIZE, SIZE),
        make_site("a", site_key=SiteKey(SITE_SECRETS["b"], "fed")).register(SIZE, SIZE),
    ]
    for other in others:
        with pytest.raises(WireError, match="under which 'a' has uploaded, got others; raise the epoch"):
            channel.send(other)
    assert len(channel.server.latent_set("val")) == COUNT


def test_codes_without_weights_are_declared_so() -> None:
    message = registration(mask_codec=MaskAutoencoder(2, (8,), (16,)), mask_weights=(0.5, 2.0))
    assert message.fields["mask_weights"] == [1.0, 1.0]
    assert registration(mask_weights=(0.5, 2.0)).fields["mask_weights"] == [0.5, 2.0]


def test_a_site_that_weights_its_mask_codes_otherwise_cannot_join() -> None:
    channel = connect([make_site("a")])
    with pytest.raises(WireError, match=r"expected the latents of 'a' .*\[0.7, 1.75\]\), got .*\[1.0, 1.0\]"):
        channel.send(make_site("b", mask_weights=(1.0, 1.0)).register(SIZE, SIZE))
    assert channel.server.sites == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_float_latents_travel_only_at_32_bits_and_finite(value: float) -> None:
    images, masks = data()
    exact = make_site("a", bits_up=32, bits_down=32)
    message = wire.decode(exact.upload(images, masks, "train"), "fed", 0)
    with pytest.raises(WireError, match=r"expected \[N, .* torch.uint8 as registered"):
        connect([make_site("a")]).send(wire.encode(message))
    broken = {name: t.clone() for name, t in message.tensors.items()}
    broken["mask/8"][0, 0, 0, 0] = value
    channel = connect([exact])
    with pytest.raises(WireError, match="mask/8: expected finite latents"):
        channel.send(wire.encode(replace(message, tensors=broken)))
    channel.send(wire.encode(message))
    assert len(channel.server.latent_set("train")) == COUNT


def reply(tensors: dict[str, Tensor]) -> bytes:
    return wire.encode(Message("reply", "fed", "server", 0, {}, tensors))


def test_replies_that_do_not_fit_the_site() -> None:
    site = make_site("a")
    codes = torch.zeros(1, 16, 4, 4, dtype=torch.uint8)
    with pytest.raises(WireError, match="expected mask/8 as torch.uint8"):
        site.open_reply(reply({"mask/8": codes.float()}))
    with pytest.raises(WireError, match=r"expected mask/8 as torch.uint8 \[N, 16, h, w\] at 8 bits"):
        site.open_reply(reply({"mask/8": codes[:, :8]}))
    with pytest.raises(WireError, match=r"got torch.uint8 \[1, 16, 0, 4\]"):
        site.open_reply(reply({"mask/8": codes[:, :, :0]}))
    with pytest.raises(WireError, match="expected mask scales"):
        site.open_reply(reply({"mask/8": codes, "mask/16": codes.clone()}))
    with pytest.raises(WireError, match="expected finite latents"):
        make_site("a", bits_down=32).open_reply(reply({"mask/8": torch.full((1, 16, 4, 4), float("nan"))}))


def relay(images: Any, blob: Tensor) -> bytes:
    return wire.encode(
        Message("codec_relay", "fed", "server", 0, {"round": 0, "images": images}, {"sealed/a": blob})
    )


@pytest.mark.parametrize("images", [{"a": 0}, {"a": -1}, {"a": "x"}, {"a": True}, {}, [1], None])
def test_relays_with_impossible_counts(images: Any) -> None:
    site = make_site("a")
    blob = wire.decode(site.seal_codec(site.image_codec, 0, 1), "fed", 0).tensors["sealed"]
    with pytest.raises(WireError, match="expected a positive count of images for each site"):
        site.average_codecs(site.image_codec, relay(images, blob), 0)


def test_codecs_that_would_spoil_the_mean_are_not_loaded() -> None:
    site = make_site("a")
    before = {k: v.clone() for k, v in site.image_codec.state_dict().items()}
    other = wire.decode(site.seal_codec(nn.Linear(2, 2), 0, 1), "fed", 0).tensors["sealed"]
    with pytest.raises(WireError, match="expected a's weights to be of the codec here"):
        site.average_codecs(site.image_codec, relay({"a": 1}, other), 0)
    diverged = FakeImageCodec()
    nn.init.constant_(diverged.fine.weight, 1e6)  # infinite in half precision
    blob = wire.decode(site.seal_codec(diverged, 0, 1), "fed", 0).tensors["sealed"]
    with pytest.raises(WireError, match="expected finite weights of 'a'"):
        site.average_codecs(site.image_codec, relay({"a": 1}, blob), 0)
    damaged = blob.clone()
    damaged[40] ^= 1
    with pytest.raises(WireError, match="sealed"):
        site.average_codecs(site.image_codec, relay({"a": 1}, damaged), 0)
    assert all(torch.equal(v, before[k]) for k, v in site.image_codec.state_dict().items())


# Settings refused


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        # Once this registered the inverse keys, as if the mode were "server".
        ({"trust": "federated"}, "trust: expected one of server, federation, sites, got 'federated'"),
        ({"federation_key": None}, 'expected a key for trust="federation"'),
        ({"federation_key": SiteKey(SITE_SECRETS["b"], "fed")}, "federation_key: expected a FederationKey"),
        ({"site_key": FederationKey(FEDERATION_SECRET, "fed")}, "site_key: expected a SiteKey"),
        ({"site_key": SiteKey(SITE_SECRETS["a"], "other")}, "site_key: .* 'fed', got one of 'other'"),
        (
            {"federation_key": FederationKey(FEDERATION_SECRET, "x")},
            "federation_key: .* 'fed', got one of 'x'",
        ),
        ({"bits_up": 3}, "bits_up: expected one of"),
        ({"bits_down": 16}, "bits_down: expected one of"),
    ],
)
def test_settings_of_a_site_that_cannot_be(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_site("a", **settings)


def test_other_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="trust: expected one of"):
        Server("fed", 0, cast(Any, "federated"))
    with pytest.raises(ConfigError, match="expected positive multiples of 4 for image/4, got 33 x 32"):
        make_site("a").register(33, 32)
    with pytest.raises(ConfigError, match="expected positive multiples of 8 for image/4, got 36 x 32"):
        make_site("a", folds={4: 2}).register(36, 32)
