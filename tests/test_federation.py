"""Site and server: one frame for all sites, what the server was ever given, trust modes, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppcmi_fast import FederationKey, ImageCodec, LinearMaskCodec, SiteKey, wire
from ppcmi_fast.codec import CodecLearner
from ppcmi_fast.errors import ConfigError, WireError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.registration import Trust
from ppcmi_fast.federation.server import Server
from ppcmi_fast.federation.site import Site
from ppcmi_fast.wire import Message

SIZE = 32
FEDERATION_KEY = FederationKey(bytes(range(100, 132)), "fed")
SITE_KEYS = {name: SiteKey(bytes([i + 1] * 31 + [7]), "fed") for i, name in enumerate("abc")}


def make_learner() -> CodecLearner:
    torch.manual_seed(0)
    codec = ImageCodec((4, 8), (8, 16), width=8, blocks=1)
    return CodecLearner(codec, LinearMaskCodec(2, 8, 16), None).eval()


def make_sites(trust: Trust = "federation", **settings: Any) -> dict[str, Site]:
    sites = {}
    for name, key in SITE_KEYS.items():
        learner = make_learner()
        arguments: dict[str, Any] = {
            "federation_id": "fed",
            "trust": trust,
            "bits_up": 8,
            "bits_down": 8,
        } | settings
        sites[name] = Site(name, key, FEDERATION_KEY, learner.image_codec, learner.mask_codec, **arguments)
    return sites


def data(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(count, 1, SIZE, SIZE, generator=generator)
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    masks[:, 8:20, 10:26] = 1
    return images, masks


def connect(sites: dict[str, Site], trust: Trust = "federation") -> Channel:
    channel = Channel(Server("fed", 0, trust), record=True)
    for site in sites.values():
        channel.send(site.register(SIZE, SIZE))
    return channel


@pytest.mark.parametrize("trust", ["server", "federation"])
@pytest.mark.parametrize("mixing", ["hadamard", "haar"])
def test_the_server_sees_one_frame_whatever_the_site(trust: Trust, mixing: str) -> None:
    sites = make_sites(trust, mixing=mixing, folds={4: 2})
    channel = connect(sites, trust)
    images, masks = data()
    for site in sites.values():
        channel.send(site.upload(images, masks, "train"))
    latents = channel.server.latent_set("train")
    inputs, targets, site_index = latents.batch(torch.arange(9))
    assert site_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for z in [*inputs.values(), *targets.values()]:
        first, second, third = z.split(3)
        assert (first - second).abs().mean() < 0.06 and (first - third).abs().mean() < 0.06
    weights = torch.tensor([0.7] + [1.75] * 15).view(1, 16, 1, 1)
    plain = make_learner().mask_codec.encode(masks)[8] * weights
    if trust == "server":
        torch.testing.assert_close(targets[8][:3], plain, rtol=0, atol=0.15)
    else:
        assert (targets[8][:3] - plain).abs().mean() > 0.5
        # Orthogonal: the server's squared error is that of the plain space.
        assert targets[8][:3].square().sum() == pytest.approx(plain.square().sum().item(), rel=0.02)


def test_without_switch_matrices_every_site_has_its_own_frame() -> None:
    sites = make_sites("sites")
    channel = connect(sites, "sites")
    images, masks = data()
    for site in sites.values():
        channel.send(site.upload(images, masks, "val"))
    inputs, _, _ = channel.server.latent_set("val").batch(torch.arange(9))
    first, second, _ = inputs[4].split(3)
    assert (first - second).abs().mean() > 0.5


class Oracle(nn.Module):
    """A mapper that knows the answer in the server's frame."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, latents: dict[int, Tensor], site: Tensor) -> dict[int, Tensor]:
        return {8: self.answer[: len(site)]}


@pytest.mark.parametrize("trust", ["server", "federation"])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_an_answer_in_the_frame_becomes_the_mask_at_every_site(trust: Trust, bits: int) -> None:
    sites = make_sites(trust, bits_up=bits, bits_down=bits)
    channel = connect(sites, trust)
    images, masks = data()
    channel.send(sites["a"].upload(images, masks, "train"))
    _, targets, _ = channel.server.latent_set("train").batch(torch.arange(3))
    channel.server.mapper = Oracle(targets[8])  # type: ignore[assignment]
    for site in sites.values():
        reply = channel.send(site.query(images))
        assert reply is not None
        found = site.open_reply(reply).argmax(1)
        overlap = 2 * (found * masks).sum() / (found.sum() + masks.sum())
        assert overlap > 0.97


def forbidden(sites: dict[str, Site], images: Tensor, masks: Tensor) -> dict[str, bytes]:
    """Byte patterns that must never be among what the server was given: keys, pixels, masks, weights, frames."""
    patterns: dict[str, bytes] = {"federation key": bytes(range(100, 132))}
    patterns |= {f"key of {name}": bytes([i + 1] * 31 + [7]) for i, name in enumerate("abc")}
    tensors: dict[str, Tensor] = {"image": images, "mask": masks}
    for name, site in sites.items():
        tensors |= {
            f"codec {name} {k}": v for k, v in site.image_codec.state_dict().items() if v.numel() >= 8
        }
        for (role, scale), params in site._params.items():
            tensors[f"transform {name} {role} {scale}"] = params.dense()
        for (role, scale), frame in site._frames.items():
            if frame is not None:
                tensors[f"frame {name} {role} {scale}"] = frame.dense()
    for name, tensor in tensors.items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            flat = tensor.to(dtype).contiguous().view(torch.uint8).flatten()
            patterns[f"{name} {dtype}"] = bytes(flat[:32].tolist())
        if name in ("image", "mask"):
            scaled = (tensor.float() / tensor.max() * 255).to(torch.uint8).flatten()
            patterns[f"{name} bytes"] = bytes(scaled[300:332].tolist())
            patterns[f"{name} labels"] = bytes(tensor.to(torch.uint8).flatten()[300:332].tolist())
    # A run of zeros says nothing about where it comes from.
    return {name: pattern for name, pattern in patterns.items() if any(pattern)}


def reachable_tensors(value: Any, seen: set[int]) -> list[Tensor]:
    """Every tensor that can be reached from an object."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        children = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set)):
        children = list(value)
    else:
        children = list(getattr(value, "__dict__", {}).values())
    return [t for child in children for t in reachable_tensors(child, seen)]


def found_leaks(channel: Channel, patterns: dict[str, bytes]) -> set[str]:
    assert channel.recorded is not None
    given = b"".join(channel.recorded)
    held = b"".join(
        bytes(t.detach().contiguous().view(torch.uint8).flatten().tolist())
        for t in reachable_tensors(channel.server, set())
    )
    return {name for name, pattern in patterns.items() if pattern in given or pattern in held}


def whole_exchange(sites: dict[str, Site]) -> tuple[Channel, Tensor, Tensor]:
    channel = connect(sites)
    images, masks = data()
    for site in sites.values():
        learner = CodecLearner(site.image_codec, site.mask_codec, None)
        channel.send(site.seal_codec(learner, 0, 3))
    for site in sites.values():
        relay = channel.send(site.fetch_codecs(0))
        assert relay is not None
        site.average_codecs(CodecLearner(site.image_codec, site.mask_codec, None), relay, 0)
        channel.send(site.upload(images, masks, "train"))
    _, targets, _ = channel.server.latent_set("train").batch(torch.arange(3))
    channel.server.mapper = Oracle(targets[8])  # type: ignore[assignment]
    for site in sites.values():
        channel.send(site.query(images))
    return channel, images, masks


def test_no_image_mask_key_frame_or_weight_ever_reaches_the_server() -> None:
    sites = make_sites()
    channel, images, masks = whole_exchange(sites)
    patterns = forbidden(sites, images, masks)
    assert len(patterns) > 40
    assert found_leaks(channel, patterns) == set()


def test_the_inspection_finds_each_kind_of_leak() -> None:
    sites = make_sites()
    channel, images, masks = whole_exchange(sites)
    patterns = forbidden(sites, images, masks)
    weights = next(iter(sites["a"].image_codec.state_dict().values()))
    frame = sites["a"]._frames["image", 4]
    assert frame is not None
    leaks = {
        "image torch.float32": images,
        "mask labels": masks.to(torch.uint8),
        "key of b": torch.tensor([2] * 31 + [7], dtype=torch.uint8),
        "codec a stages.0.0.0.weight torch.float16": weights.half(),
        "frame a image 4 torch.float32": frame.dense().float(),
    }
    for name, tensor in leaks.items():
        channel.server.planted = tensor  # type: ignore[attr-defined]
        assert name in found_leaks(channel, patterns)


def test_the_paper_mode_gives_the_server_the_inverse_keys_and_the_inspection_sees_it() -> None:
    sites = make_sites("server")
    channel = connect(sites, "server")
    a = sites["a"]._params["image", 8].dense().T.contiguous().float()
    pattern = bytes(a.view(torch.uint8).flatten()[:32].tolist())
    assert found_leaks(channel, {"inverse key": pattern}) == {"inverse key"}


def test_codecs_are_averaged_by_images_and_stay_equal() -> None:
    sites = make_sites()
    channel = connect(sites)
    learners = {}
    for number, (name, site) in enumerate(sites.items()):
        learners[name] = CodecLearner(site.image_codec, site.mask_codec, None)
        with torch.no_grad():
            for p in learners[name].parameters():
                p.fill_(float(number))
        channel.send(site.seal_codec(learners[name], 4, images=number + 1))
    for name, site in sites.items():
        relay = channel.send(site.fetch_codecs(4))
        assert relay is not None
        site.average_codecs(learners[name], relay, 4)
        with pytest.raises(WireError, match="sealed"):
            site.average_codecs(learners[name], relay, 5)
    for learner in learners.values():
        assert all(torch.allclose(p, torch.tensor((0 * 1 + 1 * 2 + 2 * 3) / 6)) for p in learner.parameters())


def test_refusals_of_the_server() -> None:
    sites = make_sites()
    images, masks = data()
    channel = Channel(Server("fed", 0, "federation"))
    with pytest.raises(WireError, match="expected a registered site, got 'a'; register first"):
        channel.send(sites["a"].query(images))
    channel = connect(sites)
    with pytest.raises(WireError, match="expected a trained mapper"):
        channel.send(sites["a"].query(images))
    with pytest.raises(WireError, match="expected latents for 'train', got none"):
        channel.server.latent_set("train")
    with pytest.raises(WireError, match="partition: expected one of"):
        channel.send(sites["a"].upload(images, masks, "test"))
    with pytest.raises(WireError, match=r"image/[48]: expected .* torch.uint8 as registered"):
        channel.send(sites["a"].query(torch.rand(1, 1, 64, 64)))
    with pytest.raises(WireError, match="expected image scales"):
        codes = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
        channel.send(wire.encode(Message("query", "fed", "a", 0, {}, {"image/4": codes})))
    with pytest.raises(WireError, match="expected switch matrices .* in trust mode 'federation', got \\[\\]"):
        channel.send(make_sites("sites")["a"].register(SIZE, SIZE))
    with pytest.raises(WireError, match="use the same codec settings at all sites"):
        channel.send(make_sites(bits_up=2)["b"].register(SIZE, SIZE))
    with pytest.raises(WireError, match="codec_fetch: expected round -1, got 0"):
        channel.send(sites["a"].fetch_codecs(0))
    with pytest.raises(WireError, match="kind: expected one of register"):
        channel.send(wire.encode(Message("reply", "fed", "a", 0)))
    with pytest.raises(WireError, match="epoch: expected 0, got 1"):
        channel.send(make_sites(epoch=1)["a"].register(SIZE, SIZE))


def test_refusals_of_the_site() -> None:
    learner = make_learner()
    with pytest.raises(ConfigError, match='expected a key for trust="federation"'):
        Site("a", SITE_KEYS["a"], None, learner.image_codec, learner.mask_codec, federation_id="fed")
    alone = Site(
        "a", SITE_KEYS["a"], None, learner.image_codec, learner.mask_codec, federation_id="fed", trust="sites"
    )
    with pytest.raises(ConfigError, match="to seal the codec with"):
        alone.seal_codec(learner, 0, 1)
    with pytest.raises(WireError, match="kind: expected one of reply"):
        alone.open_reply(alone.fetch_codecs(0))
    with pytest.raises(WireError, match="expected mask scales"):
        alone.open_reply(wire.encode(Message("reply", "fed", "server", 0)))
