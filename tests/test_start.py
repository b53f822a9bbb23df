"""What networks start from: weights that only the sites can draw, and the sites' head in the server's frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federation_parties import FEDERATION_SECRET, NAMES, SIZE, connect, data, make_site
from safetensors.torch import load_file
from test_federation_leaks import leaks, secrets_of, tensor_patterns
from tiny_runs import interrupting, same_keys, tiny_config
from torch import Tensor, nn

from ppcmi_fast import FederationKey, wire
from ppcmi_fast.data.arrays import load_arrays
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import ConfigError, RunError, WireError
from ppcmi_fast.federation.build import Federation, build_federation, draw_keys, start_mapper
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.dataset import read_dataset
from ppcmi_fast.federation.evaluate import answers_through_wire
from ppcmi_fast.federation.registration import Trust
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import RunFolder, read_json
from ppcmi_fast.federation.site import Site
from ppcmi_fast.federation.start import head_in_frame
from ppcmi_fast.key_schedule import KeyStream, derive
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.training import optimizer_step


def make_head(width: int = 8, *, attention: bool = False) -> LatentMapper:
    torch.manual_seed(3)
    head = LatentMapper({4: (8, 4), 8: (16, 8)}, {8: (16, 8)}, width, 1, attention=attention)
    # Running statistics that are not those of a fresh network.
    with torch.no_grad():
        head({4: torch.randn(4, 8, 8, 8), 8: torch.randn(4, 16, 4, 4)})
    return head.eval()


def started(
    trust: Trust = "federation", *, attention: bool = False, **settings: Any
) -> tuple[list[Site], Channel, LatentMapper]:
    sites = [make_site(name, trust=trust, bits_up=32, bits_down=32, **settings) for name in NAMES]
    channel = connect(sites, trust)
    torch.manual_seed(4)
    mapper = LatentMapper({4: (8, 4), 8: (16, 8)}, {8: (16, 8)}, 8, 1, attention=attention).eval()
    channel.server.mapper = channel.server.starting = mapper
    return sites, channel, mapper


@pytest.mark.parametrize("trust", ["server", "federation"])
@pytest.mark.parametrize(("mixing", "attention"), [("haar", False), ("hadamard", False), ("haar", True)])
def test_the_server_answers_as_the_head_does_without_it(trust: Trust, mixing: str, attention: bool) -> None:
    sites, channel, mapper = started(trust, mixing=mixing, attention=attention)
    head = make_head(attention=attention)
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
        ("shape", r"expected read.4.weight \[8, 8, 1, 1\], got \[8, 9, 1, 1\]"),
        (
            "nan",
            "expected finite read.4.weight, got NaN or infinity; the training of the sites' codec has diverged",
        ),
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
    learnt: LatentMapper, public: LatentMapper, site: Site, layer: str
) -> float:
    """How much of the frame the server finds: it turns the first weights of a public seed onto what it was sent.

    The mean cosine between rows of the orthogonal matrix that does so best (Procrustes) and the frame's; 1 is all.
    """
    kind, scale = layer.split(".")
    sent = head_in_frame(learnt, site._frames, site._weights)[f"{layer}.weight"].flatten(1).double()
    first = dict(public.named_parameters())[f"{layer}.weight"].detach().flatten(1).double()
    if kind == "write":
        # The weights of mask codes are no secret.
        first = first * site._weights[int(scale)].double().view(-1, 1)
    u, _, v = torch.linalg.svd(sent.T @ first if kind == "read" else sent @ first.T)
    frame = site._frames["image" if kind == "read" else "mask", int(scale)]
    assert frame is not None
    return float((u @ v * frame.dense()).sum(1).mean())


@pytest.mark.parametrize("layer", ["read.4", "read.8", "write.8"])
def test_a_head_that_started_from_a_public_seed_would_give_the_frame_away(layer: str) -> None:
    site, public = make_site("a"), make_head(48)

    def trained(head: LatentMapper) -> LatentMapper:
        """Moved by half of its spread, which is what training of a real codec moves the last convolution by."""
        generator = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for parameter in head.parameters():
                step = torch.randn(parameter.shape, generator=generator) * parameter.std(unbiased=False)
                parameter.add_(0.5 * step)
        return head

    secret = make_head(48)
    site.draw_weights(secret)
    assert frame_guessed_from_public_weights(trained(make_head(48)), public, site, layer) > 0.9
    assert abs(frame_guessed_from_public_weights(trained(secret), public, site, layer)) < 0.4


@pytest.mark.parametrize("settings", [{"trust": "sites"}, {"folds": {4: 2}}])
def test_a_site_without_a_common_frame_or_with_folds_sends_no_head(settings: dict[str, Any]) -> None:
    site = make_site("a", bits_up=32, **settings)
    with pytest.raises(ConfigError, match="expected a common frame and no folds"):
        site.start_mapper(make_head())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trust=sites", 'got trust="sites", which has no common frame'),
        ('codec.sharing="phantom"', 'got codec.sharing="phantom", whose head has seen no real image'),
        ("folds=[2,1,1]", r"got folds=\[2, 1, 1\], which the head does not read"),
        ("mapper.width=64", "got mapper.width=64, mapper.blocks=1, where the head has 48 and 1"),
        ("mapper.blocks=2", "got mapper.width=48, mapper.blocks=2, where the head has 48 and 1"),
        ("mapper.attention=true", "got mapper.attention=true, codec.head_attention=false, which differ"),
    ],
)
def test_settings_under_which_there_is_no_head_are_named(line: str, message: str, tmp_path: Path) -> None:
    values = {"data": str(tmp_path)}
    assert not RunConfig.build(values, [line]).starts_from_head
    with pytest.raises(ConfigError, match=message):
        RunConfig.build(values, [line, "mapper.start=head"])
    obstacle = message.removeprefix("got ")
    with pytest.raises(ConfigError, match=rf"at least 1 without a head to start from \({obstacle}\), got 0"):
        RunConfig.build(values, [line, "mapper.steps=0"])


@pytest.mark.parametrize(
    ("line", "start", "steps"),
    [
        ("mapper.width=48", "head", 300),
        ("mapper.start=head", "head", 300),
        ("mapper.start=nothing", "nothing", 1500),
        ("trust=sites", "nothing", 1500),
        ("mapper.steps=0", "head", 0),
        ("mapper.steps=7", "head", 7),
    ],
)
def test_what_is_left_to_auto_is_decided_and_written(
    line: str, start: str, steps: int, tmp_path: Path
) -> None:
    config = RunConfig.build({"data": str(tmp_path)}, [line])
    assert (config.mapper.start, config.mapper.steps, config.mapper_steps) == (start, steps, steps)
    assert config.starts_from_head == (start == "head")
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert RunConfig.load(tmp_path / "config.toml") == config


def test_a_run_of_a_version_without_a_start_is_not_resumed_before_it_is_trained(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {})
    folder = RunFolder.open(tmp_path / "run", config, resume=False, overwrite=False)
    written = folder.config_path.read_text()
    assert 'start = "head"' in written
    folder.config_path.write_text(written.replace('start = "head"\n', ""))
    with pytest.raises(
        RunError, match="begun by a version that had fewer settings, and its networks are not trained"
    ):
        RunFolder.open(tmp_path / "run", config, resume=True, overwrite=False)
    # Once it is trained it is a run whose mapper started from nothing, as all did then.
    folder.finish("mapper", {})
    RunFolder.open(
        tmp_path / "run", tiny_config(tmp_path, {"mapper.start": "nothing"}), resume=True, overwrite=False
    )
    with pytest.raises(RunError, match="was started with other settings than these"):
        RunFolder.open(tmp_path / "run", config, resume=True, overwrite=False)


def correlation(one: nn.Module, two: nn.Module) -> float:
    """Of all weights and biases that training would move from a random start."""

    def drawn(module: nn.Module) -> Tensor:
        convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        return torch.cat([p.detach().flatten() for conv in convs for p in conv.parameters()]).double()

    a, b = drawn(one), drawn(two)
    return float((a * b).sum() / a.norm() / b.norm())


def test_first_weights_are_those_that_the_page_of_keys_specifies(tmp_path: Path) -> None:
    learner = make_learner(tiny_config(tmp_path, {"codec.mask": "autoencoder"}), 2, 0)
    make_site("a", epoch=3).draw_weights(learner)
    stream = KeyStream(derive(FEDERATION_SECRET, "fed", "ppcmi-fast/start/1|3"))
    drawn = 0
    for module in learner.modules():
        parameters = list(module.parameters(recurse=False))
        if isinstance(module, nn.Conv2d):
            _, inputs, height, width = module.weight.shape
            for parameter in parameters:
                wanted = stream.gaussians(parameter.numel()) / (3 * inputs * height * width) ** 0.5
                assert torch.equal(parameter.flatten(), torch.from_numpy(wanted).float())
                drawn += 1
        else:
            assert not parameters or isinstance(module, nn.BatchNorm2d)
    assert drawn > 50


def test_first_weights_are_the_sites_own_secret(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {})
    public, one, same, other, later = (make_learner(config, 2, config.seed) for _ in range(5))
    make_site("a").draw_weights(one)
    make_site("b").draw_weights(same)
    make_site("a", federation_key=FederationKey(FEDERATION_SECRET[::-1], "fed")).draw_weights(other)
    make_site("a", epoch=1).draw_weights(later)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    # About 3 million weights: chance correlates them by less than 0.001.
    for learner in (public, other, later):
        assert abs(correlation(one, learner)) < 0.01


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


def two_sites(config: RunConfig, out: Path) -> Federation:
    """A federation with keys of its own and networks that nothing was trained on."""
    folder = RunFolder.open(out / "run", config, resume=False, overwrite=False)
    dataset = read_dataset(config)
    data = {
        name: load_arrays(dataset, config.size, [r for r in dataset.records if r.site == name])
        for name in ("site-0", "site-1")
    }
    draw_keys(config, folder, list(data))
    return build_federation(config, folder, data, data, dataset.classes)


def test_a_federation_of_one_process_starts_from_its_keys(phantoms: Path, tmp_path: Path) -> None:
    config = tiny_config(phantoms, {})
    one, two = (two_sites(config, tmp_path / name).participants for name in ("one", "two"))
    assert correlation(one[0].learner, one[1].learner) == pytest.approx(1)
    assert abs(correlation(one[0].learner, two[0].learner)) < 0.01


def test_local_codecs_of_one_process_start_apart(phantoms: Path, tmp_path: Path) -> None:
    config = tiny_config(phantoms, {"trust": "sites", "codec.sharing": "local"})
    one, two = two_sites(config, tmp_path).participants
    assert abs(correlation(one.learner, two.learner)) < 0.01


def test_a_run_that_starts_from_the_head_may_leave_it_there(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppcmi_fast.federation.run.upload_training_latents", None)
    metrics = federate(tiny_config(phantoms, {"mapper.steps": 0, "tuning.rounds": 1}), tmp_path / "run")
    stages = read_json(tmp_path / "run" / "stages.json")
    assert set(stages["mapper"]["traffic"]) == {"mapper_start"}
    assert stages["mapper"]["steps"] == 0 and stages["mapper"]["best"] is None
    assert metrics["payload_bytes"]["train_upload_total"] == 0
    ours, before = metrics["methods"]["ppcmi"], metrics["methods"]["ppcmi_one_shot"]
    assert before["bytes_sent"]["mapper_start"] == ours["bytes_sent"]["mapper_start"] > 0
    # A codec round of one step of 8 at two sites, and nothing for the mapper.
    assert before["images_seen"] == 2 * 8
    again = federate(
        tiny_config(phantoms, {"mapper.steps": 0, "tuning.rounds": 1}), tmp_path / "run", resume=True
    )
    assert again["methods"]["ppcmi"]["dice"] == ours["dice"]


def test_a_head_is_the_first_candidate_and_the_door_is_shut_behind_it(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = []

    def noted(federation: Federation) -> None:
        start_mapper(federation)
        servers.append(federation.server)

    monkeypatch.setattr("ppcmi_fast.federation.run.start_mapper", noted)
    # A rate at which the first steps do nothing but harm.
    harmful = {"mapper.learning_rate": 30.0, "mapper.steps": 3}
    metrics = federate(tiny_config(phantoms, harmful), tmp_path / "run")
    assert servers[0].starting is None
    stage = read_json(tmp_path / "run" / "stages.json")["mapper"]
    assert stage["history"][0]["step"] == 0 and stage["best"] == stage["history"][0]["val"]
    sent = metrics["methods"]["ppcmi"]["bytes_sent"]
    assert sent["mapper_start"] > 0 and sent["upload"] == metrics["payload_bytes"]["train_upload_total"] > 0
    nothing = federate(tiny_config(phantoms, {"mapper.start": "nothing"}), tmp_path / "nothing")
    assert "mapper_start" not in nothing["methods"]["ppcmi"]["bytes_sent"] and len(servers) == 1
    assert read_json(tmp_path / "nothing" / "stages.json")["mapper"]["history"][0]["step"] > 0


def test_the_door_is_shut_after_a_refusal_too(phantoms: Path, tmp_path: Path) -> None:
    config = tiny_config(phantoms, {})
    federation = two_sites(config, tmp_path)
    federation.mapper.write["8"] = nn.Conv2d(3, 3, 1)
    with pytest.raises(WireError, match="mapper_start: expected"):
        start_mapper(federation)
    assert federation.server.starting is None


def test_an_interrupted_training_goes_on_from_the_head_to_the_same_mapper(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_keys(monkeypatch)
    config = tiny_config(phantoms, {"mapper.steps": 6})
    federate(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ppcmi_fast.training.optimizer_step", interrupting(optimizer_step, at=4))
        federate(config, tmp_path / "parts")
    federate(config, tmp_path / "parts", resume=True)
    whole, parts = (
        load_file(tmp_path / name / "server" / "mapper.safetensors") for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("settings", [{"codec.mask": "autoencoder"}, {"trust": "server"}], ids=str)
def test_the_head_answers_at_the_server_as_at_the_site(
    phantoms: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    exact = {"bits_up": 32, "bits_down": 32}
    federation = two_sites(tiny_config(phantoms, settings | exact), tmp_path)
    first = federation.participants[0]
    first.learner.eval()
    federation.mapper.eval()
    start_mapper(federation)
    federation.server.mapper = federation.mapper
    (scores,) = answers_through_wire(first.site, federation.channel, first.val.images)
    torch.testing.assert_close(scores, first.learner.predict(first.val.images), atol=1e-5, rtol=1e-4)
