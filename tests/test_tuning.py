"""Split fine-tuning: the gradient is that of the whole, messages out of turn are refused, runs resume."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from federation_parties import COUNT, NAMES, SIZE, connect, data, make_site
from test_federation_leaks import leaks, secrets_of
from tiny_runs import interrupting, same_keys
from torch import Tensor, nn

from ppcmi_fast import wire
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import WireError
from ppcmi_fast.federation import tuning
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.predict import segment_image
from ppcmi_fast.federation.registration import Trust
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import read_json
from ppcmi_fast.federation.site import Site
from ppcmi_fast.federation.tuning import MapperTuning
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.mapper.training import squared_error
from ppcmi_fast.training import FitSettings

Latents = dict[int, Tensor]


def make_mapper(sites: int = 0, fold: int = 1) -> LatentMapper:
    torch.manual_seed(2)
    return LatentMapper({4: (8 * fold**2, 4 * fold), 8: (16, 8)}, {8: (16, 8)}, 8, 1, sites=sites)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bfloat16, whose rounding would drown what is compared."""
    monkeypatch.setattr("ppcmi_fast.training.half_precision", lambda: False)


def tuned(
    trust: Trust = "federation", bits: int = 32, fold: int = 1, **more: Any
) -> tuple[list[Site], Channel, MapperTuning]:
    sites = [make_site(name, trust=trust, bits_up=bits, folds={4: fold}, **more) for name in NAMES]
    channel = connect(sites, trust)
    channel.server.mapper = make_mapper(len(NAMES) if trust == "sites" else 0, fold)
    # So small a rate that the mapper hardly moves.
    part = MapperTuning(channel.server, FitSettings(10, 1e-9))
    channel.server.tuning = part
    return sites, channel, part


EQUAL = (COUNT,) * len(NAMES)


def batches(counts: tuple[int, ...] = EQUAL) -> list[tuple[Tensor, Tensor]]:
    """A batch a site, each another."""
    images, masks = data()
    return [(images.roll(n, 3)[:count], masks.roll(n, 2)[:count]) for n, count in enumerate(counts)]


def step(sites: list[Site], channel: Channel, number: int = 0, counts: tuple[int, ...] = EQUAL) -> None:
    for site, (images, masks) in zip(sites, batches(counts), strict=True):
        channel.send(site.tune(images, masks, number))
    for site in sites:
        reply = channel.send(site.fetch_gradient(number))
        assert reply is not None
        site.descend_from(reply, number)


def gradients(site: Site) -> list[Tensor]:
    codec = cast(nn.Module, site.image_codec)
    return [p.grad.clone() for p in codec.parameters() if p.grad is not None]


def frame_of(site: Site, channel: Channel, role: str, scale: int) -> Tensor:
    number = channel.server.sites.index(site.name)
    return channel.server._switches("up", role, scale)[0][number]


@pytest.mark.parametrize("trust", ["server", "federation", "sites"])
@pytest.mark.parametrize("mixing", ["haar", "hadamard"])
@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("counts", [EQUAL, (3, 1, 2)], ids=["equal", "unequal"])
def test_the_gradient_is_that_of_one_network_from_image_to_error(
    trust: Trust, mixing: str, fold: int, counts: tuple[int, ...]
) -> None:
    sites, channel, part = tuned(trust, fold=fold, mixing=mixing)
    mapper = copy.deepcopy(part.mapper)
    step(sites, channel, counts=counts)

    twins = [make_site(n, trust=trust, bits_up=32, folds={4: fold}, mixing=mixing) for n in NAMES]
    inputs: dict[int, list[Tensor]] = {4: [], 8: []}
    targets: list[Tensor] = []
    for twin, (images, masks) in zip(twins, batches(counts), strict=True):
        for scale, z in twin.image_codec.encode(images).items():
            params = twin._params["image", scale]
            v = torch.nn.functional.pixel_unshuffle(z, params.fold)
            v = v * torch.rsqrt(v.square().mean(1, keepdim=True))
            total = frame_of(twin, channel, "image", scale) @ params.dense().float()
            inputs[scale].append(torch.einsum("ij,njhw->nihw", total, v))
        mask = twin.mask_codec.encode(masks)[8] * twin._weights[8]
        turn = frame_of(twin, channel, "mask", 8) @ twin._params["mask", 8].dense().float()
        targets.append(torch.einsum("ij,njhw->nihw", turn, mask))
    mapper.train()
    site = torch.arange(len(NAMES)).repeat_interleave(torch.tensor(counts))
    guess = mapper({scale: torch.cat(zs) for scale, zs in inputs.items()}, site)
    squared_error(guess, {8: torch.cat(targets)}).backward()
    for one, twin, count in zip(sites, twins, counts, strict=True):
        for found, of_the_sum in zip(gradients(one), gradients(twin), strict=True):
            # Of the mean over the site's own batch, whatever the others send.
            wanted = of_the_sum * sum(counts) / count
            # The gradient travels in half precision.
            assert (found - wanted).norm() < 2e-3 * wanted.norm()


def test_codes_of_few_bits_give_nearly_the_same_direction() -> None:
    sites, channel, _ = tuned(bits=32)
    step(sites, channel)
    coarse, other, _ = tuned(bits=4)
    step(coarse, other)
    for one, two in zip(sites, coarse, strict=True):
        a, b = (torch.cat([g.flatten() for g in gradients(site)]) for site in (one, two))
        assert torch.nn.functional.cosine_similarity(a, b, 0) > 0.9


def test_the_server_learns_from_all_sites_at_once() -> None:
    sites, channel, part = tuned()
    before = copy.deepcopy(part.mapper.state_dict())
    step(sites, channel)
    assert part.step == 1 and part.loss > 0 and not part.mapper.training
    moved = [k for k, v in part.mapper.state_dict().items() if not torch.equal(v, before[k])]
    assert any("running_mean" in name for name in moved) and any("weight" in name for name in moved)


def test_messages_out_of_turn_are_refused() -> None:
    sites, channel, part = tuned()
    (images, masks), first = batches()[0], sites[0]
    with pytest.raises(WireError, match="expected step 0, got 1"):
        channel.send(first.tune(images, masks, 1))
    channel.send(first.tune(images, masks, 0))
    with pytest.raises(WireError, match=r"expected latents of every site first, none of \['b', 'c'\]"):
        channel.send(first.fetch_gradient(0))
    with pytest.raises(WireError, match="tune_fetch: expected step 0, got 3"):
        channel.send(first.fetch_gradient(3))
    assert part.step == 0
    step(sites, channel)
    with pytest.raises(WireError, match="tune: expected step 1, got 0"):
        channel.send(first.tune(images, masks, 0))
    channel.server.tuning = None
    with pytest.raises(WireError, match="the server is not tuning"):
        channel.send(first.tune(images, masks, 1))


def test_latents_that_were_not_registered_are_refused() -> None:
    sites, channel, part = tuned()
    images, masks = batches()[0]
    with pytest.raises(WireError, match="as registered, got"):
        channel.send(sites[0].tune(images[:, :, :16, :16], masks[:, :16, :16], 0))
    with pytest.raises(WireError, match="register first"):
        stranger = wire.decode(sites[0].tune(images, masks, 0), "fed", 0)
        channel.send(wire.encode(replace(stranger, sender="d")))
    assert part.step == 0


@pytest.mark.parametrize("bits", [4, 32])
def test_nothing_secret_reaches_the_server_while_it_tunes(bits: int) -> None:
    sites, channel, part = tuned(bits=bits, mixing="haar")
    images, masks = data()
    secrets = secrets_of(sites, images, masks)
    for site in sites:
        channel.send(site.tune(images, masks, 0))
    for site in sites:
        reply = channel.send(site.fetch_gradient(0))
        assert reply is not None
        site.descend_from(reply, 0)
    assert part.step == 1 and all(secrets.values())
    assert leaks(channel, secrets) == set()


def reply_for(site: Site, **changes: Any) -> bytes:
    tensors = {f"image/{s}": torch.zeros(z.shape, dtype=torch.float16) for s, z in site._sent.items()}
    fields = {"step": 0, "scales": {"4": 1.0, "8": 1.0}}
    message: dict[str, Any] = {"fields": fields, "tensors": tensors} | changes
    return wire.encode(wire.Message("gradient", "fed", "server", 0, **message))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"step": 1, "scales": {"4": 1.0, "8": 1.0}}}, "expected that of step 0 .* got step 1"),
        ({"fields": {"step": 0, "scales": {"4": 1.0}}}, "expected finite numbers"),
        ({"fields": {"step": 0, "scales": {"4": 1.0, "8": "x"}}}, "expected finite numbers"),
        ({"fields": {"step": 0, "scales": 3}}, "fetch it again"),
        ({"tensors": {"image/4": torch.zeros(COUNT, 8, 8, 8).half()}}, "fetch it again"),
        (
            {
                "tensors": {
                    "image/4": torch.zeros(1, 8, 8, 8).half(),
                    "image/8": torch.zeros(1, 16, 4, 4).half(),
                }
            },
            "got",
        ),
        (
            {
                "tensors": {
                    "image/4": torch.full((COUNT, 8, 8, 8), float("nan")).half(),
                    "image/8": torch.zeros(COUNT, 16, 4, 4).half(),
                }
            },
            "expected finite numbers",
        ),
    ],
)
def test_a_site_refuses_gradients_of_something_else(changes: dict[str, Any], message: str) -> None:
    sites, _, _ = tuned()
    images, masks = batches()[0]
    sites[0].tune(images, masks, 0)
    with pytest.raises(WireError, match=message):
        sites[0].descend_from(reply_for(sites[0], **changes), 0)
    assert not gradients(sites[0])
    sites[0].descend_from(reply_for(sites[0]), 0)
    assert gradients(sites[0]) and images.shape[2] == SIZE


def settings(data: Path, *more: str) -> RunConfig:
    small = (
        "size=32",
        "threads=1",
        "codec.scales=[4,8]",
        "codec.channels=[8,16]",
        "folds=[1,1]",
        "codec.width=8",
        "codec.blocks=1",
        "codec.rounds=2",
        "codec.local_steps=2",
        "codec.batch=4",
        "mapper.width=8",
        "mapper.steps=6",
        "mapper.batch=4",
        "mapper.views=1",
        "baselines.methods=[]",
        "tuning.rounds=4",
        "tuning.local_steps=2",
        "tuning.batch=3",
    )
    return RunConfig.build({"data": str(data)}, [*small, *more])


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuning") / "p"
    return write_phantom("cardiac", out, sites=2, subjects=4, slices=2, size=32)


def weights(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*_tuned.safetensors")}


def test_a_run_tunes_and_says_what_it_took(phantoms: Path, tmp_path: Path) -> None:
    metrics = federate(settings(phantoms), tmp_path / "run")
    assert set(metrics["methods"]) == {"ppcmi", "ppcmi_one_shot", "ppcmi_float32"}
    ours, before = metrics["methods"]["ppcmi"], metrics["methods"]["ppcmi_one_shot"]
    assert ours["images_seen"] - before["images_seen"] == 4 * 2 * 3 * 2
    assert ours["seconds"] > before["seconds"]
    stage = read_json(tmp_path / "run" / "stages.json")["tuning"]
    assert stage["traffic"]["gradient"] > 0 and stage["traffic"]["codec_relay"] > 0
    assert metrics["payload_bytes"]["tuning_total"] == sum(stage["traffic"].values())
    assert ours["bytes_sent"]["tune"] == stage["traffic"]["tune"] and "tune" not in before["bytes_sent"]
    curve = stage["history"]
    assert [entry["step"] for entry in curve] == [0, 1, 2, 3, 4] and curve[-1]["bytes"] > curve[1][
        "bytes"
    ] > 0
    assert "val" in curve[0] and "val" in curve[-1]
    # Without any gain the networks from before the first round are kept.
    assert stage["best"] == max(entry["val"] for entry in curve if "val" in entry)
    one, two = (tmp_path / "run" / "sites" / n / "encoder_tuned.safetensors" for n in ("site-0", "site-1"))
    assert one.read_bytes() == two.read_bytes()
    image = next((phantoms / "images").iterdir())
    pixels = segment_image(tmp_path / "run", "site-0", image, tmp_path / "mask.png")
    assert sum(pixels.values()) == 32 * 32


@pytest.mark.parametrize(
    "more", [("trust=sites", "codec.sharing=local"), ("trust=server", "bits_up=32")], ids=str
)
def test_other_modes_tune(phantoms: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    metrics = federate(settings(phantoms, *more), tmp_path / "run")
    assert 0 <= metrics["methods"]["ppcmi"]["dice"]["mean"] <= 1
    traffic = metrics["methods"]["ppcmi"]["bytes_sent"]
    assert (traffic["codec_relay"] == 0) == ("codec.sharing=local" in more)


def test_an_interrupted_tuning_goes_on_to_the_same_networks(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(phantoms, "tuning.learning_rate=0.003")
    monkeypatch.setattr("ppcmi_fast.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "VALIDATE_ROUNDS", 1)
    same_keys(monkeypatch)
    federate(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MapperTuning, "_make_step", interrupting(MapperTuning._make_step, at=6))
        federate(config, tmp_path / "parts")
    assert not weights(tmp_path / "parts")
    federate(config, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts") != {}
    bytes_of = [
        read_json(tmp_path / name / "stages.json")["tuning"]["traffic"] for name in ("whole", "parts")
    ]
    assert bytes_of[0] == bytes_of[1]
