"""What networks start from: weights that only the sites can draw, and the sites' head in the server's frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federation_parties import FEDERATION_SECRET, NAMES, SIZE, connect, data, make_site
from test_federation_leaks import leaks, secrets_of, tensor_patterns
from tiny_runs import tiny_config
from torch import Tensor, nn

from ppcmi_fast import FederationKey, wire
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import ConfigError, WireError
from ppcmi_fast.federation import build
from ppcmi_fast.federation.build import build_federation, draw_keys
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import RunFolder, read_json
from ppcmi_fast.federation.server import Trust
from ppcmi_fast.federation.site import Site
from ppcmi_fast.federation.start import head_in_frame
from ppcmi_fast.mapper import LatentMapper


def make_head(width: int = 8) -> LatentMapper:
    torch.manual_seed(3)
    head = LatentMapper({4: (8, 4), 8: (16, 8)}, {8: (16, 8)}, width, 1)
    # Running statistics that are not those of a fresh network.
    with torch.no_grad():
        head({4: torch.randn(4, 8, 8, 8), 8: torch.randn(4, 16, 4, 4)})
    return head.eval()


def started(trust: Trust = "federation", **settings: Any) -> tuple[list[Site], Channel, LatentMapper]:
    sites = [make_site(name, trust=trust, bits_up=32, bits_down=32, **settings) for name in NAMES]
    channel = connect(sites, trust)
    torch.manual_seed(4)
    mapper = LatentMapper({4: (8, 4), 8: (16, 8)}, {8: (16, 8)}, 8, 1).eval()
    channel.server.mapper = channel.server.starting = mapper
    return sites, channel, mapper


@pytest.mark.parametrize("trust", ["server", "federation"])
@pytest.mark.parametrize("mixing", ["haar", "hadamard"])
def test_the_server_answers_as_the_head_does_without_it(trust: Trust, mixing: str) -> None:
    sites, channel, mapper = started(trust, mixing=mixing)
    head = make_head()
    channel.send(sites[0].start_mapper(head))
    images, _ = data()
    for site in sites:
        reply = channel.send(site.query(images))
        assert reply is not None
        with torch.no_grad():
            wanted = site.mask_codec.decode(head(site.image_codec.encode(images)))
        torch.testing.assert_close(site.open_reply(reply), wanted, atol=1e-4, rtol=1e-4)
    moved = (mapper.read["8"].weight - head.read["8"].weight).abs().max()  # type: ignore[operator]
    assert (moved > 0.01) == (trust == "federation")


def test_the_head_itself_is_left_as_it_was() -> None:
    sites, channel, _ = started()
    head = make_head()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    channel.send(sites[0].start_mapper(head))
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


def test_neither_keys_nor_codec_nor_what_reads_plain_latents_reach_the_server() -> None:
    sites, channel, _ = started(mixing="haar")
    head = make_head()
    secrets = secrets_of(sites, *data())
    for scale, conv in [*head.read.items(), *head.write.items()]:
        assert isinstance(conv, nn.Conv2d)
        secrets[f"head {scale}"] = tensor_patterns(conv.weight)
    channel.send(sites[0].start_mapper(head))
    assert leaks(channel, secrets) == set()
    # The same search finds a head that was not turned.
    _, plain, _ = started()
    turned = {k: v for k, v in head.state_dict().items() if v.is_floating_point()}
    plain.send(sites[0]._encode("mapper_start", {}, {f"weights/{k}": v for k, v in turned.items()}))
    assert {"head 4", "head 8"} <= leaks(plain, secrets)


def test_a_start_at_any_other_time_is_refused() -> None:
    sites, channel, mapper = started()
    before = {k: v.clone() for k, v in mapper.state_dict().items()}
    channel.server.starting = None
    with pytest.raises(WireError, match="no mapper is about to be trained"):
        channel.send(sites[0].start_mapper(make_head()))
    assert all(torch.equal(v, before[k]) for k, v in mapper.state_dict().items())


def test_a_start_from_an_unregistered_site_is_refused() -> None:
    *members, stranger = [make_site(name, bits_up=32, bits_down=32) for name in NAMES]
    channel = connect(members)
    channel.server.starting = make_head()
    with pytest.raises(WireError, match="expected a registered site, got 'c'"):
        channel.send(stranger.start_mapper(make_head()))


def damaged(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = "weights/read.4.weight"
    if how == "missing":
        return {k: v for k, v in weights.items() if k != name}
    if how == "more":
        return weights | {"weights/other.weight": torch.zeros(3)}
    if how == "shape":
        return weights | {name: torch.zeros(8, 9, 1, 1)}
    return weights | {name: torch.full_like(weights[name], float("nan"))}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"expected the \d+ weights of the mapper, got \d+, 'read.4.weight' among those"),
        ("more", "'other.weight' among those that only one has"),
        ("shape", r"expected finite read.4.weight \[8, 8, 1, 1\], got \[8, 9, 1, 1\]"),
        ("nan", r"expected finite read.4.weight \[8, 8, 1, 1\], got \[8, 8, 1, 1\]"),
    ],
)
def test_a_start_that_does_not_fit_changes_nothing(how: str, message: str) -> None:
    sites, channel, mapper = started()
    before = {k: v.clone() for k, v in mapper.state_dict().items()}
    sent = wire.decode(sites[0].start_mapper(make_head()), "fed", 0)
    with pytest.raises(WireError, match=message):
        channel.send(sites[0]._encode("mapper_start", {}, damaged(sent.tensors, how)))
    assert all(torch.equal(v, before[k]) for k, v in mapper.state_dict().items())


def frame_guessed_from_public_weights(
    learnt: LatentMapper, public: LatentMapper, site: Site, scale: int
) -> float:
    """How much of the frame the server finds: it turns the first weights of a public seed onto what it was sent.

    The mean cosine between rows of the orthogonal matrix that does so best (Procrustes) and the frame's; 1 is all.
    """
    sent = head_in_frame(learnt, site._frames)[f"read.{scale}.weight"].flatten(1).double()
    first = dict(public.named_parameters())[f"read.{scale}.weight"].detach().flatten(1).double()
    u, _, v = torch.linalg.svd(sent.T @ first)
    frame = site._frames["image", scale]
    assert frame is not None
    return float((u @ v * frame.dense()).sum(1).mean())


@pytest.mark.parametrize("scale", [4, 8])
def test_a_head_that_started_from_a_public_seed_would_give_the_frame_away(scale: int) -> None:
    site, public = make_site("a"), make_head(48)

    def trained(head: LatentMapper) -> LatentMapper:
        """Moved somewhat further than training moves these convolutions."""
        generator = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for parameter in head.parameters():
                step = torch.randn(parameter.shape, generator=generator) * parameter.std(unbiased=False)
                parameter.add_(0.25 * step)
        return head

    secret = make_head(48)
    site.draw_weights(secret)
    assert frame_guessed_from_public_weights(trained(make_head(48)), public, site, scale) > 0.95
    assert abs(frame_guessed_from_public_weights(trained(secret), public, site, scale)) < 0.4


@pytest.mark.parametrize("settings", [{"trust": "sites"}, {"folds": {4: 2}}])
def test_a_site_without_a_common_frame_or_with_folds_sends_no_head(settings: dict[str, Any]) -> None:
    site = make_site("a", bits_up=32, **settings)
    with pytest.raises(ConfigError, match="expected a common frame and no folds"):
        site.start_mapper(make_head())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trust=sites", 'got trust="sites", which has no common frame'),
        ("folds=[2,1,1]", r"got folds=\[2, 1, 1\], which the head does not read"),
        ("mapper.width=64", "got mapper.width=64, mapper.blocks=1, where the head has 48 and 1"),
        ("mapper.blocks=2", "got mapper.width=48, mapper.blocks=2, where the head has 48 and 1"),
    ],
)
def test_settings_under_which_there_is_no_head_are_named(line: str, message: str, tmp_path: Path) -> None:
    values = {"data": str(tmp_path)}
    assert not RunConfig.build(values, [line]).starts_from_head
    with pytest.raises(ConfigError, match=message):
        RunConfig.build(values, [line, "mapper.start=head"])
    with pytest.raises(ConfigError, match="at least 1 for a mapper that starts from nothing, got 0"):
        RunConfig.build(values, [line, "mapper.steps=0"])


def test_the_start_is_a_setting(tmp_path: Path) -> None:
    values = {"data": str(tmp_path)}
    assert RunConfig.build(values).starts_from_head
    assert RunConfig.build(values, ["mapper.start=head", "mapper.steps=0"]).starts_from_head
    assert not RunConfig.build(values, ["mapper.start=nothing"]).starts_from_head


def test_a_head_needs_fewer_steps_and_what_is_set_is_done(tmp_path: Path) -> None:
    values = {"data": str(tmp_path)}
    found = {
        line: RunConfig.build(values, [line]).mapper_steps
        for line in ("mapper.start=auto", "mapper.start=nothing", "trust=sites", "mapper.steps=7")
    }
    assert list(found.values()) == [300, 1500, 1500, 7]


def correlation(one: nn.Module, two: nn.Module) -> float:
    """Of all weights that training would move from a random start."""
    a, b = (
        torch.cat([p.detach().flatten() for p in module.parameters() if p.ndim > 1]) for module in (one, two)
    )
    return float((a * b).sum() / a.norm() / b.norm())


def test_first_weights_are_the_sites_own_secret(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {})
    public = make_learner(config, 2, config.seed)
    one, same, other = (make_learner(config, 2, config.seed) for _ in range(3))
    make_site("a").draw_weights(one)
    make_site("b").draw_weights(same)
    stranger = FederationKey(FEDERATION_SECRET[::-1], "fed")
    make_site("a", federation_key=stranger).draw_weights(other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    # About 3 million weights: chance correlates them by less than 0.001.
    for learner in (other, public):
        assert abs(correlation(one, learner)) < 0.01
    for drawn, before in zip(one.parameters(), public.parameters(), strict=True):
        spread = before.std(unbiased=False)
        assert torch.equal(drawn, before) if not spread else drawn.numel() > 0
        if before.numel() > 1000:
            assert abs(drawn.std(unbiased=False) / spread - 1) < 0.1
    later = make_learner(config, 2, config.seed)
    make_site("a", epoch=1).draw_weights(later)
    assert abs(correlation(one, later)) < 0.01


def test_sites_that_share_no_codec_start_apart(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {})
    learners = [make_learner(config, 2, config.seed) for _ in range(2)]
    for name, learner in zip("ab", learners, strict=True):
        make_site(name, trust="sites", federation_key=None).draw_weights(learner)
    assert abs(correlation(*learners)) < 0.01


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "p"
    return write_phantom("cardiac", out, sites=2, subjects=3, slices=2, size=SIZE)


def test_a_federation_of_one_process_starts_from_its_keys(phantoms: Path, tmp_path: Path) -> None:
    config = tiny_config(phantoms, {})
    weights = []
    for name in ("one", "two"):
        folder = RunFolder.open(tmp_path / name, config, resume=False, overwrite=False)
        draw_keys(config, folder, ["site-0", "site-1"])
        federation = build_federation(config, folder, {"site-0": None}, {"site-0": None}, 2)  # type: ignore[dict-item]
        weights.append(federation.participants[0].learner)
    assert abs(correlation(*weights)) < 0.01


def test_a_run_that_starts_from_the_head_may_leave_it_there(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "upload_training_latents", None)
    metrics = federate(tiny_config(phantoms, {"mapper.steps": 0, "tuning.rounds": 1}), tmp_path / "run")
    assert metrics["mapper_start"] == "head"
    stages = read_json(tmp_path / "run" / "stages.json")
    assert set(stages["mapper"]["traffic"]) == {"mapper_start"} and stages["mapper"]["steps"] == 0
    assert metrics["payload_bytes"]["train_upload_total"] == 0
    ours, before = metrics["methods"]["ppcmi"], metrics["methods"]["ppcmi_one_shot"]
    assert before["bytes_sent"]["mapper_start"] == ours["bytes_sent"]["mapper_start"] > 0
    # A codec round of one step of 8 at two sites, and nothing for the mapper.
    assert before["images_seen"] == 2 * 8
    again = federate(
        tiny_config(phantoms, {"mapper.steps": 0, "tuning.rounds": 1}), tmp_path / "run", resume=True
    )
    assert again["methods"]["ppcmi"]["dice"] == ours["dice"]


@pytest.mark.parametrize(("line", "start"), [({}, "head"), ({"mapper.start": "nothing"}, "nothing")])
def test_metrics_say_what_the_mapper_started_from(
    phantoms: Path, tmp_path: Path, line: dict[str, Any], start: str
) -> None:
    metrics = federate(tiny_config(phantoms, line), tmp_path / "run")
    assert metrics["mapper_start"] == start
    assert ("mapper_start" in metrics["methods"]["ppcmi"]["bytes_sent"]) == (start == "head")
    assert (
        metrics["payload_bytes"]["train_upload_total"]
        == metrics["methods"]["ppcmi"]["bytes_sent"]["upload"]
        > 0
    )
