"""Federated averaging, split learning and architectures: identities that must hold, bytes, resuming, bad settings."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny_runs import interrupting, tiny_config
from torch import nn

from ppcmi_fast.baselines import METHODS, Outcome, SiteData, Workbench, federated, run_method, split
from ppcmi_fast.baselines.architectures import ARCHITECTURES, make_network
from ppcmi_fast.baselines.base import Progress, method_of, split_stage
from ppcmi_fast.baselines.federated import Rounds, average, norm_keys, pull_back
from ppcmi_fast.baselines.published import PROFILES
from ppcmi_fast.baselines.split import cut, traffic, values_at_cuts
from ppcmi_fast.baselines.unet import batch_loss, make_criterion
from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.data.records import Record
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation import results
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.sections import Architecture
from ppcmi_fast.training import FitState, make_optimizer, optimizer_step, step_generator

TRIED = [name for name in METHODS if name not in PROFILES]  # the published profile has its own rate


@dataclass
class MemoryStages:
    """Stages that keep what they were given."""

    folder: Path
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def train(
        self, name: str, module: nn.Module, total: int, fit: Callable[[Path, Progress], FitState]
    ) -> dict[str, Any]:
        state = fit(self.folder / f"{name}.safetensors", lambda *_: None)
        self.facts[name] = {
            "seconds": state.seconds,
            "steps": state.step,
            "best": state.best_value,
            "history": state.history,
            "traffic": state.traffic,
            "total": total,
        }
        return self.facts[name]


def arrays(seed: int, count: int) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 32, 32, dtype=torch.int64)
    for index in range(count):
        y, x = torch.randint(2, 16, (2,), generator=generator).tolist()
        masks[index, y : y + 12, x : x + 12] = 1
    images = (
        masks.unsqueeze(1).float() * 0.6 + 0.2 + 0.05 * torch.randn(count, 1, 32, 32, generator=generator)
    )
    records = [Record(Path(f"{seed}-{i}"), Path("m"), f"s{seed}{i}", "x") for i in range(count)]
    return Arrays(images, masks, records, None)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    sites = {
        name: SiteData(arrays(3 * n, 4 + 2 * n), arrays(3 * n + 1, 2), arrays(3 * n + 2, 3))
        for n, name in enumerate(("north", "south.1"))
    }
    return Workbench(sites, 2, 96, 4, 1e-3, 0, MemoryStages(tmp_path), rounds=3)


def nets_of(bench: Workbench, architecture: str = "unet") -> dict[str, nn.Module]:
    return {name: make_network(architecture, 2, 0) for name in bench.sites}


def test_the_mean_is_weighted_by_images_and_counters_are_kept() -> None:
    states = {
        name: {"w": torch.tensor([value]), "n": torch.tensor(int(value))}
        for name, value in (("a", 1.0), ("b", 5.0))
    }
    mean = average(states, {"a": 0.75, "b": 0.25})
    assert mean["w"].item() == 2.0 and mean["n"].item() == 1


def test_rounds_of_one_site_are_plain_training(bench: Workbench, tmp_path: Path) -> None:
    one = replace(bench, sites={"north": bench.sites["north"]})
    rounds = Rounds(one, {"north": make_network("unet", 2, 0)}, 0.0, set(), tmp_path / "a")
    for _ in range(one.rounds):
        rounds._round()
    plain, settings = make_network("unet", 2, 0), rounds.settings["north"]
    optimizer = make_optimizer(plain, settings)
    for step in range(settings.steps):
        plain.train()
        generator = step_generator(1009 * one.seed, step)
        loss = batch_loss(plain, one.sites["north"].train, 4, make_criterion(), generator)
        optimizer_step(plain, optimizer, loss, settings, step)
    trained = rounds.nets["north"].state_dict()
    assert settings.steps == 24
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(trained[key], value)


def test_after_a_round_all_sites_have_the_mean_of_their_steps(bench: Workbench, tmp_path: Path) -> None:
    nets = nets_of(bench)
    rounds = Rounds(bench, nets, 0.0, set(), tmp_path / "a")
    alone = {}
    for number, name in enumerate(nets):
        other = Rounds(bench, nets_of(bench), 0.0, set(), tmp_path / "b")
        other._steps_at(number, name)
        alone[name] = other.nets[name].state_dict()
    rounds._round()
    wanted = average(alone, rounds.shares)
    assert rounds.shares == {"north": 0.4, "south.1": 0.6}
    for net in nets.values():
        for key, value in net.state_dict().items():
            torch.testing.assert_close(value, wanted[key])


def distance(bench: Workbench, tmp_path: Path, mu: float) -> float:
    nets = nets_of(bench)
    before = copy.deepcopy(nets["north"].state_dict())
    Rounds(bench, nets, mu, set(), tmp_path / f"{mu}")._round()
    after = nets["north"].state_dict()
    return float(sum((after[k] - v).float().square().sum() for k, v in before.items()))


def test_the_proximal_term_holds_the_steps_back(bench: Workbench, tmp_path: Path) -> None:
    bench = replace(bench, learning_rate=0.02, images=480)
    free, held, tied = (distance(bench, tmp_path, mu) for mu in (0.0, 1.0, 1e4))
    assert free > held > tied > 0


def test_the_pull_is_the_gradient_of_the_proximal_term(bench: Workbench) -> None:
    net, generator = bench.network(), torch.Generator().manual_seed(3)
    start = [torch.randn(p.shape, generator=generator) for p in net.parameters()]
    weights = list(net.parameters())
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    before = [torch.clone(weight.grad) for weight in weights if weight.grad is not None]
    pull_back(net, start, 0.3)
    squares = torch.stack([(w - s).square().sum() for w, s in zip(weights, start, strict=True)])
    wanted = torch.autograd.grad(0.15 * squares.sum(), weights)
    for weight, old, gradient in zip(weights, before, wanted, strict=True):
        torch.testing.assert_close(weight.grad, old + gradient)


def test_fedprox_without_weight_is_fedavg(bench: Workbench, tmp_path: Path) -> None:
    one = METHODS["fedavg"](bench)
    other = METHODS["fedprox"](replace(bench, mu=0.0, stages=MemoryStages(tmp_path / "other")))
    assert all(torch.equal(one.maps[name], other.maps[name]) for name in bench.sites)
    assert one.bytes_sent == other.bytes_sent


def test_fedbn_keeps_norms_apart_and_shares_the_rest(bench: Workbench, tmp_path: Path) -> None:
    nets = nets_of(bench, "unet_batch_norm")
    local = norm_keys(nets["north"])
    assert local and {key.rsplit(".", 1)[1] for key in local} == {
        *("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    }
    Rounds(bench, nets, 0.0, local, tmp_path / "a")._round()
    one, two = (net.state_dict() for net in nets.values())
    assert all(torch.equal(one[key], two[key]) for key in one.keys() - local)
    assert any(not torch.equal(one[key], two[key]) for key in local)
    shared = 4 * sum(v.numel() for key, v in one.items() if key not in local)
    assert METHODS["fedbn"](bench).bytes_sent == {"weights": 3 * 2 * 2 * shared}


def test_bytes_of_averaging_are_weights_up_and_down(bench: Workbench) -> None:
    values = sum(v.numel() for v in make_network("unet", 2, 0).state_dict().values())
    outcome = METHODS["fedavg"](bench)
    assert outcome.bytes_sent == {"weights": 3 * 2 * 2 * 4 * values}
    # 96 images over 3 rounds, 2 sites and batches of 4 are 8 steps a round.
    assert outcome.images_seen == 96 and set(outcome.maps) == set(bench.sites)


def test_sites_divide_a_round_in_proportion_to_their_images_or_alike(bench: Workbench) -> None:
    assert bench.steps_of_sites() == {"north": 3, "south.1": 5}
    assert replace(bench, work="equal").steps_of_sites() == {"north": 4, "south.1": 4}


@pytest.mark.parametrize("name", ["fedavg", "split_learning"])
@pytest.mark.parametrize(("work", "images"), [("images", [3, 5]), ("equal", [4, 4])])
def test_every_site_makes_the_steps_of_its_share(
    bench: Workbench, name: str, work: str, images: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = split if name == "split_learning" else federated
    drawn: Counter[int] = Counter()
    loss = module.batch_loss

    def counted(net: Any, data: Arrays, *rest: Any) -> Any:
        drawn[len(data.images)] += 1
        return loss(net, data, *rest)

    monkeypatch.setattr(module, "batch_loss", counted)
    METHODS[name](replace(bench, work=work))
    north, south = (len(data.train.images) for data in bench.sites.values())
    assert drawn == {north: 3 * images[0], south: 3 * images[1]}


def test_cutting_a_network_changes_no_gradient() -> None:
    whole = make_network("unet", 2, 0)
    parts = copy.deepcopy(whole)
    data, criterion = arrays(0, 3), make_criterion()
    target = data.masks.unsqueeze(1)
    criterion(whole(data.images), target).backward()

    head, body, tail = cut(parts)
    h = head(data.images)
    at_server = h.detach().requires_grad_()
    b = body(at_server)
    beside, back = h.detach().requires_grad_(), b.detach().requires_grad_()
    criterion(tail(torch.cat([beside, back], 1)), target).backward()
    assert back.grad is not None and beside.grad is not None
    b.backward(back.grad)
    assert at_server.grad is not None
    h.backward(beside.grad + at_server.grad)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_bytes_of_split_learning_are_what_crosses_the_cuts(bench: Workbench) -> None:
    net = make_network("unet", 2, 0)
    head, body, tail = cut(net)
    # 16 channels at half the edge up; of the body, as many as tail expects beside them, down.
    assert (
        values_at_cuts(net, torch.zeros(1, 1, 32, 32))
        == 16 * 16 * 16 + body(torch.zeros(1, 16, 16, 16)).numel()
    )
    outcome = METHODS["split_learning"](bench)
    ends = 4 * sum(v.numel() for part in (head, tail) for v in part.state_dict().values())
    steps = outcome.images_seen // bench.batch
    assert outcome.bytes_sent == traffic(bench, net, steps)
    assert outcome.bytes_sent["weights"] == 6 * ends
    assert outcome.parameters < METHODS["fedavg"](bench).parameters


def interrupted(bench: Workbench, name: str, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "batch_loss", interrupting(module.batch_loss, at=18))
        METHODS[name](bench)


@pytest.mark.parametrize("name", ["fedavg", "fedbn", "fedprox", "split_learning"])
def test_what_is_interrupted_goes_on_to_the_same_maps(
    bench: Workbench, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppcmi_fast.baselines import split

    monkeypatch.setattr("ppcmi_fast.training.CHECKPOINT_SECONDS", 0.0)
    whole = METHODS[name](bench)
    (tmp_path / "parts").mkdir()
    parts = replace(bench, stages=MemoryStages(tmp_path / "parts"))
    interrupted(parts, name, monkeypatch, split if name == "split_learning" else federated)
    assert list((tmp_path / "parts").iterdir()), "nothing was kept to go on from"
    again = METHODS[name](parts)
    assert all(torch.equal(whole.maps[site], again.maps[site]) for site in bench.sites)
    assert whole.bytes_sent == again.bytes_sent and whole.images_seen == again.images_seen


@pytest.mark.parametrize("name", TRIED)
def test_the_best_learning_rate_is_chosen_and_its_trials_are_counted(bench: Workbench, name: str) -> None:
    bench = replace(bench, images=240, rounds=3)
    outcome = run_method(name, bench, (1e-9, 3e-3))
    stages = bench.stages
    assert isinstance(stages, MemoryStages)
    trials = {
        rate: [f["best"] for stage, f in stages.facts.items() if stage.endswith(f"@{rate:g}")]
        for rate in (1e-9, 3e-3)
    }
    best = max(trials, key=lambda rate: sum(trials[rate]))
    assert outcome.learning_rate == best and 0 < outcome.trial_images <= 2 * 24
    plain = run_method(name, bench)
    assert plain.learning_rate == bench.learning_rate and plain.trial_images == 0


@pytest.mark.parametrize(
    ("validations", "chosen"),
    [((0.0, 0.0, 0.0), 3e-3), ((0.2, 0.1, 0.2), 3e-3), ((0.2, 0.1, 0.1), 1e-3), ((0.2, 0.2, 0.1), 1e-3)],
)
def test_of_rates_as_good_as_each_other_the_given_one_holds(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, validations: tuple[float, ...], chosen: float
) -> None:
    rates = (1e-3, 2e-3, 3e-3)
    known = dict(zip(rates, validations, strict=True))

    trained: list[str] = []

    def train(bench: Workbench) -> Outcome:
        trained.append(bench.suffix)
        return Outcome({}, 1, 0.0, 1, validation=known[bench.learning_rate])

    monkeypatch.setitem(METHODS, "fedavg", train)
    assert run_method("fedavg", replace(bench, learning_rate=3e-3), rates).learning_rate == chosen
    # Where trials choose the given rate nothing else is trained to the end.
    finals = [suffix for suffix in trained if suffix.startswith("=")]
    assert finals == list(dict.fromkeys(["=0.003", f"={chosen:g}"]))


def test_a_site_may_be_called_like_a_rate() -> None:
    stages = {f"unet_local.B0={n}": {"seconds": n, "history": [n]} for n in (1.5, 3.0)}
    stages |= {"fedavg@0.1": {"seconds": 5.0, "history": []}, "fedavg=0.1": {"seconds": 50.0, "history": [4]}}
    methods = {"unet_local": {"learning_rate": 0.002}, "fedavg": {"learning_rate": 0.1}}
    found = {"unet_local.B0=1.5": 1.5, "unet_local.B0=3.0": 3.0, "fedavg (rates tried)": 5.0, "fedavg": 50.0}
    assert results.seconds(stages, methods, {"fedavg"}) == found
    assert results.histories(stages, methods, {"fedavg"}) == {
        "unet_local.B0=1.5": [1.5],
        "unet_local.B0=3.0": [3.0],
        "fedavg": [4],
    }


@pytest.mark.parametrize(("ends", "answer"), [((0.7, 0.6), 3e-3), ((0.5, 0.6), 1e-3), ((0.6, 0.6), 3e-3)])
def test_what_trials_choose_has_to_be_better_in_the_end(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, ends: tuple[float, float], answer: float
) -> None:
    short, whole = {1e-3: 0.5, 2e-3: 0.1, 3e-3: 0.2}, dict(zip((3e-3, 1e-3), ends, strict=True))

    def train(bench: Workbench) -> Outcome:
        known = short if bench.suffix.startswith("@") else whole
        return Outcome({}, bench.images, 0.0, 1, validation=known[bench.learning_rate])

    monkeypatch.setitem(METHODS, "fedavg", train)
    found = run_method("fedavg", replace(bench, learning_rate=3e-3, images=100), tuple(short))
    assert found.learning_rate == answer and found.validation == whole[answer]
    assert found.images_seen == 100 and found.trial_images == 3 * 10 + 100


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("fedavg", ("fedavg", "", None)),
        ("fedavg@0.001", ("fedavg", "@", 0.001)),
        ("unet_local.a.b=1e-05", ("unet_local.a.b", "=", 1e-5)),
        ("unet_local.scanner=2024-01", ("unet_local.scanner=2024-01", "", None)),
        ("unet_local.x@e", ("unet_local.x@e", "", None)),
        ("unet_local.x=y@0.004", ("unet_local.x=y", "@", 0.004)),
    ],
)
def test_stages_are_split_into_name_and_rate(stage: str, parts: tuple[str, str, float | None]) -> None:
    assert split_stage(stage, TRIED) == parts
    assert split_stage(stage, ()) == (stage, "", None) and method_of(stage) == parts[0].split(".")[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_are_of_one_size_and_repeat(architecture: str) -> None:
    one, two = (make_network(architecture, 3, 0) for _ in range(2))
    assert 1e6 < sum(p.numel() for p in one.parameters()) < 2.1e6
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert one.eval()(x).shape == (2, 3, 64, 64)
        torch.testing.assert_close(one.eval()(x), two.eval()(x))


def test_settings_name_each_architecture() -> None:
    assert get_args(Architecture) == ARCHITECTURES


@pytest.mark.parametrize("kind", ["unet", "dynunet"])
def test_batch_norms_take_the_place_of_instance_norms(kind: str) -> None:
    one, other = make_network(kind, 2, 0), make_network(f"{kind}_batch_norm", 2, 0)
    weights = {name: list(w.shape) for name, w in one.named_parameters() if w.ndim > 1}
    assert {name: list(w.shape) for name, w in other.named_parameters() if w.ndim > 1} == weights
    assert not norm_keys(one)
    norms = [m for m in one.modules() if isinstance(m, nn.InstanceNorm2d)]
    batch_norms = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(batch_norms) > 0
    assert not any(isinstance(m, nn.InstanceNorm2d) for m in other.modules())


def test_other_architectures_are_refused_where_they_cannot_be(bench: Workbench) -> None:
    with pytest.raises(ValueError, match="architecture: expected one of unet, attention_unet"):
        make_network("vit", 2, 0)
    other = replace(bench, architecture="segresnet")
    for name in ("fedbn", "split_learning"):
        with pytest.raises(ConfigError, match='baselines.architecture: expected "unet" for'):
            METHODS[name](other)
    norms = RunConfig.build(
        {"data": ".", "baselines": {"architecture": "unet_batch_norm", "methods": ["fedbn"]}}
    )
    assert norms.baselines.architecture == "unet_batch_norm"
    with pytest.raises(ConfigError, match='expected "unet" for split_learning, got "unet_batch_norm"; leave'):
        RunConfig.build(
            {"data": ".", "baselines": norms.baselines.model_dump() | {"methods": ["split_learning"]}}
        )
    with pytest.raises(ConfigError, match='expected "unet" for fedbn, got "dynunet"; leave'):
        RunConfig.build(
            {"data": ".", "baselines": {"architecture": "dynunet", "methods": ["fedavg", "fedbn"]}}
        )


def test_all_of_them_stand_in_a_run(tmp_path: Path) -> None:
    data = write_phantom("cardiac", tmp_path / "p", sites=2, subjects=3, slices=2, size=32)
    small = {
        "baselines.methods": list(TRIED),
        "baselines.images": 64,
        "baselines.batch": 4,
        "baselines.rounds": 2,
        "baselines.learning_rates": [0.001],
    }
    metrics = federate(tiny_config(data, small), tmp_path / "run")
    for name in TRIED:
        found = metrics["methods"][name]
        assert (
            0 <= found["dice"]["mean"] <= 1 and found["learning_rate"] == 0.001 and found["trial_images"] > 0
        )
        assert bool(found["bytes_sent"]) == (name not in ("unet_centralised", "unet_local"))
