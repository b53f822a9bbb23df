"""The published profile: shapes, sizes and bytes of the paper, keys that change nothing but what travels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_baselines import MemoryStages, arrays
from tiny_runs import tiny_config
from torch import nn
from typer.testing import CliRunner

from ppcmi_fast import ops
from ppcmi_fast.baselines import METHODS, SiteData, Workbench, published
from ppcmi_fast.baselines.published import PROFILES, Member, Profile, bce_dice, measure_published, run_profile
from ppcmi_fast.baselines.published_networks import Autoencoder, Mapping, PyramidPooling
from ppcmi_fast.cli.app import app
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.run import federate


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    sites = {
        name: SiteData(arrays(3 * n, 4), arrays(3 * n + 1, 2), arrays(3 * n + 2, 3))
        for n, name in enumerate(("north", "south"))
    }
    return Workbench(sites, 2, 140, 4, 1e-3, 0, MemoryStages(tmp_path), published_width=0.125)


def test_latents_parameters_and_bytes_are_the_papers() -> None:
    net = Autoencoder(1, 1.0)
    with torch.no_grad():
        latents = net.eval().encode(torch.rand(1, 1, 256, 256))
    assert {s: tuple(z.shape[1:]) for s, z in latents.items()} == {
        8: (64, 32, 32),
        16: (128, 16, 16),
        32: (256, 8, 8),
    }
    assert net.latent_dims == {8: 64, 16: 128, 32: 256}
    found = measure_published(repeats=1)
    # 114,688 values each way: 0.88 MB an image.
    assert found["payload_bytes"] == {"up": 4 * 114688, "down": 4 * 114688}
    assert sum(found["payload_bytes"].values()) / 2**20 == pytest.approx(0.875)
    # The paper gives 59 million for the whole; it does not say how its pyramid is joined.
    assert 53e6 < sum(found["parameters"].values()) < 62e6
    assert found["latency_ms"]["total"] == pytest.approx(
        sum(found["latency_ms"][k] for k in ("encode", "map", "decode")), abs=0.05
    )


def test_decoders_take_their_skips_and_can_do_without() -> None:
    for skips in (True, False):
        net = Autoencoder(2, 0.125, skips=skips).eval()
        x = torch.rand(2, 2, 64, 64)
        latents = net.encode(x)
        assert set(latents) == ({8, 16, 32} if skips else {32}) and net(x).shape == x.shape
        for scale in latents:
            changed = {**latents, scale: latents[scale] + 1}
            assert not torch.equal(net.decode(changed), net.decode(latents)), scale


def test_the_pyramid_sees_the_whole_grid() -> None:
    torch.manual_seed(0)
    pool = PyramidPooling(16)
    x = torch.rand(1, 16, 9, 9, requires_grad=True)
    pool(x)[0, 0, 0, 0].backward()
    assert x.grad is not None and (x.grad.abs().sum((0, 1)) > 0).all()
    assert {branch.out_channels for branch in pool.branches if isinstance(branch, nn.Conv2d)} == {4}
    assert pool(torch.rand(1, 16, 1, 1)).shape == (1, 16, 1, 1)


def test_mapping_takes_grids_that_cannot_be_halved_thrice() -> None:
    mapping = Mapping({8: 8, 32: 16}, {8: 8, 32: 16}, 0.125).eval()
    out = mapping({8: torch.rand(1, 8, 4, 4), 32: torch.rand(1, 16, 1, 1)})
    assert out[8].shape == (1, 8, 4, 4) and out[32].shape == (1, 16, 1, 1)
    assert not any(
        isinstance(m, PyramidPooling) for m in Mapping({8: 8}, {8: 8}, 0.125, pyramid=False).modules()
    )


def test_the_loss_is_half_cross_entropy_half_dice() -> None:
    target = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    perfect = (target * 2 - 1) * 20
    assert bce_dice(perfect, target) < 1e-6
    even = torch.zeros(1, 1, 2, 2)
    dice = 1 - (2 * 1.0 + 1) / (2 + 2 + 1)
    assert float(bce_dice(even, target)) == pytest.approx(0.5 * 0.6931472 + 0.5 * dice)


def test_what_travels_is_keyed_and_comes_back(bench: Workbench) -> None:
    member: Member = published._member(bench, PROFILES["published"], "north")
    latents = member.image.eval().encode(torch.rand(2, 1, 64, 64))
    sent = member.protect("image", latents)
    back = member.recover("image", sent)
    for scale, z in latents.items():
        assert (sent[scale] - z).abs().max() > 0.1
        torch.testing.assert_close(back[scale], z, rtol=0, atol=2e-5)
    assert {p.mixing for p in member.params.values()} == {"haar"}
    assert all(isinstance(p, ops.KltParams) and p.offset is not None for p in member.params.values())
    assert published._member(bench, PROFILES["published_no_klt"], "north").params == {}


def test_with_the_servers_inverses_keys_change_no_answer(bench: Workbench, tmp_path: Path) -> None:
    one = run_profile(bench, Profile("a"))
    other = run_profile(replace(bench, stages=MemoryStages(tmp_path)), Profile("a", keys=False))
    same = torch.cat([(one.maps[n] == other.maps[n]).float().flatten() for n in bench.sites]).mean()
    assert same > 0.98
    assert one.bytes_sent == other.bytes_sent


def test_budget_and_bytes_are_counted(bench: Workbench) -> None:
    outcome = METHODS["published"](bench)
    # 140 images: 40 a role and 60 for the mapper, in batches of 4 at each of 2 sites.
    stages = bench.stages
    assert isinstance(stages, MemoryStages)
    assert (
        stages.facts["published.north.image"]["steps"] == stages.facts["published.south.mask"]["steps"] == 5
    )
    assert stages.facts["published.mapper"]["steps"] == 15 and outcome.images_seen == 140
    latent_values = 8 * 4 * 4 + 16 * 2 * 2 + 32
    assert outcome.bytes_sent == {"latents": 4 * 2 * latent_values * published.VIEWS * 8}
    assert METHODS["privacy_sf"](bench).bytes_sent["latents"] == 4 * 2 * 32 * published.VIEWS * 8


def test_sizes_that_the_networks_do_not_take_are_named(bench: Workbench) -> None:
    small = {n: SiteData(d.train, d.val, d.test) for n, d in bench.sites.items()}
    for data in small.values():
        data.train.images = data.train.images[..., :24, :24]
    with pytest.raises(
        ConfigError, match="size: expected a multiple of 32 for the published profile, got 24"
    ):
        METHODS["published"](replace(bench, sites=small))


def test_every_profile_stands_in_a_run(tmp_path: Path) -> None:
    data = write_phantom("ultrasound", tmp_path / "p", sites=2, subjects=3, slices=2, size=32)
    chosen = {
        "baselines.methods": list(PROFILES),
        "baselines.images": 64,
        "baselines.batch": 4,
        "baselines.published_width": 0.125,
    }
    config = tiny_config(data, chosen)
    metrics = federate(config, tmp_path / "run")
    for name in PROFILES:
        assert 0 <= metrics["methods"][name]["dice"]["mean"] <= 1
    again = federate(config, tmp_path / "run", resume=True)
    assert again["methods"]["published_no_klt"]["dice"] == metrics["methods"]["published_no_klt"]["dice"]


def test_the_command_says_what_it_costs(tmp_path: Path) -> None:
    out = tmp_path / "published.json"
    result = CliRunner().invoke(
        app, ["bench", "published", "--size", "64", "--threads", "1", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["size"] == 64 and found["command"].endswith("--threads 1") and found["threads"] == 1
