"""Experiments: plans are checked, nothing runs twice, what was begun goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, get_args

import pytest
from experiment_runs import PHANTOM, finished, fixed_split, plan
from tiny_runs import TINY

from ppcmi_fast.baselines import METHODS
from ppcmi_fast.baselines.published import PROFILES
from ppcmi_fast.errors import ConfigError, DataError, RunError
from ppcmi_fast.experiments import runner
from ppcmi_fast.experiments.draws import Draws
from ppcmi_fast.experiments.plan import data_folder, load_plan, planned_runs
from ppcmi_fast.experiments.reuse import begin_with_known
from ppcmi_fast.experiments.runner import run_experiment
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.dataset import read_dataset
from ppcmi_fast.federation.run import draw_split
from ppcmi_fast.federation.sections import FEDERATED, UNET_METHODS, Method

ROOT = Path(__file__).resolve().parents[1]
OTHER_PARTS = {"train": {"a": ["s3"]}, "val": {"a": ["s2"]}, "test": {"a": ["s1"]}}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[str]]]:
    return fixed_split(monkeypatch)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.stem)
def test_every_experiment_file_is_planned(path: Path, tmp_path: Path) -> None:
    found = load_plan(path)
    runs = planned_runs(found, tmp_path)
    assert len(runs) == sum(len(variant.seeds or found.seeds) for variant in found.variants)
    tiny = planned_runs(found, tmp_path, smoke=True)
    assert len(tiny) == sum(not variant.hidden for variant in found.variants)
    assert all(run.config.size == 32 for run in tiny)
    whole = {run.variant: run.config for run in runs}
    for run in tiny:
        given = whole[run.variant]
        assert (run.config.tuning.rounds == 0) == (given.tuning.rounds == 0), run.variant
        assert (run.config.mapper_steps == 0) == (given.mapper_steps == 0), run.variant
    # Work that counts is of a size that a smoke run does not have.
    alone = {variant.name for variant in found.variants if variant.baselines_only}
    assert all(run.config.codec.rounds > 2 for run in runs if run.variant not in alone)
    assert all(run.config.baselines.images > 10_000 for run in runs if run.variant in alone)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 1", "question: Field required"),
        ("title = ", "expected TOML"),
        (
            'title = "t"\nquestion = "q"\ndata = "d"\nseeds = []\n[[variants]]\nname = "a"',
            "seeds: Tuple should have at least 1",
        ),
        (
            'title = "t"\nquestion = "q"\ndata = "d"\n[[variants]]\nname = "a"\n[[variants]]\nname = "a"',
            "each once, got 'a'",
        ),
        ('title = "t"\nquestion = "q"\ndata = "d"\n[[variants]]\nname = "A b"', "expected names of a-z"),
        (
            '[figure]\nx = "sites"\nlabel = "l"',
            "figure.x: Value error, expected the dotted name of a setting .* got 'sites'",
        ),
        (
            '[figure]\nx = "codec.channels"\nlabel = "l"',
            r"figure.x: Value error, expected a setting whose value is a number, got 'codec.channels', which is \[",
        ),
        (
            '[figure]\nx = "payload"\nlabel = "l"\nsplit = "payload"',
            "figure.split: Value error, expected .* got 'payload'",
        ),
        (
            'title = "t"\nquestion = "q"\ndata = "d"\n[[variants]]\nname = "a"\nnetworks_from = "b"',
            "expected a variant before it, got 'b'",
        ),
        (
            'title = "t"\nquestion = "q"\ndata = "d"\n[[variants]]\nname = "a"\n'
            '[[variants]]\nname = "b"\nnetworks_from = "a"\nseeds = [0, 3]',
            "variants.b.seeds: expected seeds that 'a' has, got 3",
        ),
        (
            'title = "t"\nquestion = "q"\ndata = "d"\n[[variants]]\nname = "a"\nhidden = true\n'
            '[[variants]]\nname = "b"\nnetworks_from = "a"',
            "variants.b.networks_from: expected a variant of the tables, got 'a', which is hidden",
        ),
        (
            'title = "t"\nquestion = "q"\ndata = "d"\nrows = true\n[[variants]]\nname = "a"',
            "rows: expected true of phantoms only",
        ),
        ('title = "t"\nquestion = "q"\ndata = "d"\nodd = 1\n[[variants]]\nname = "a"', "odd: Extra inputs"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "p.toml")
    with pytest.raises(ConfigError, match="expected an experiment file, found none"):
        load_plan(tmp_path / "none.toml")


def test_bad_settings_data_and_networks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="codec.round"):
        planned_runs(plan(settings={"codec.round": 3}), tmp_path)
    with pytest.raises(ConfigError, match="got size: 32 -> 64; train it by itself"):
        planned_runs(
            plan(variants=[{"name": "a"}, {"name": "b", "settings": {"size": 64}, "networks_from": "a"}]),
            tmp_path,
        )
    monkeypatch.delenv("PPCMI_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"data: expected a data set's folder, \$PPCMI_DATA/x is none here"):
        data_folder(plan(data="$PPCMI_DATA/x"), tmp_path, smoke=False)
    monkeypatch.setenv("PPCMI_DATA", str(tmp_path))
    (tmp_path / "x").mkdir()
    assert data_folder(plan(data="$PPCMI_DATA/x"), tmp_path, smoke=False) == (tmp_path / "x").resolve()
    with pytest.raises(ConfigError, match="expected phantom: and one of cardiac"):
        data_folder(plan(data="phantom:brain"), tmp_path, smoke=False)
    for kind, names in (
        ("cardiac", "sites, subjects, slices, size, seed"),
        ("psfh", "subjects, sites, seed, size"),
    ):
        wrong = plan(data=f"phantom:{kind}", phantom={"subject": 3})
        with pytest.raises(ConfigError, match=f"phantom: expected some of {names} for {kind}, got 'subject'"):
            data_folder(wrong, tmp_path / "out", smoke=False)
    with pytest.raises(RunError, match="--only: expected one of one, got 'two'"):
        run_experiment(plan(), tmp_path / "out", only=["two"], tell=lambda _: None)
    with pytest.raises(RunError, match="--seed: expected one of 0, got 4"):
        run_experiment(plan(), tmp_path / "out", seeds=[4], tell=lambda _: None)


@pytest.mark.usefixtures("drawn")
def test_nothing_runs_twice_and_what_was_begun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool]] = []

    def fake(config: Any, out: Path, *, resume: bool, console: Any) -> None:
        calls.append((out.relative_to(tmp_path / "out").as_posix(), resume))
        if len(calls) == 2:
            out.mkdir(parents=True)
            (out / "config.toml").write_text(config.to_toml())
            raise KeyboardInterrupt
        finished(out, config)

    monkeypatch.setattr(runner, "federate", fake)
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    both = plan(variants=[{"name": "one"}, {"name": "two", "settings": {"codec.rounds": 2}}], seeds=[0, 1])
    with pytest.raises(KeyboardInterrupt):
        run_experiment(both, tmp_path / "out", tell=lambda _: None)
    lines: list[str] = []
    assert run_experiment(both, tmp_path / "out", tell=lines.append)
    assert lines[0] == "4 runs, 4 of them asked for, 3 to do"
    assert calls == [
        ("one/seed-0", False),
        ("one/seed-1", False),
        ("one/seed-1", True),
        ("two/seed-0", False),
        ("two/seed-1", False),
    ]
    assert run_experiment(both, tmp_path / "out", tell=lines.append) and len(calls) == 5
    changed = plan(variants=[{"name": "one", "settings": {"size": 64}}])
    with pytest.raises(
        RunError, match=r"holds a run of other settings .*\(size: 32 -> 64\); replace it with"
    ):
        run_experiment(changed, tmp_path / "out", tell=lambda _: None)
    folder = tmp_path / "out" / "one" / "seed-0"
    (folder / "scores.csv").write_text("of the settings of before")
    (folder / "config.toml").write_text(
        (folder / "config.toml").read_text().replace("calibrate = true\n", "")
    )
    with pytest.raises(RunError, match=r"has now \(of a version that had fewer\); replace it"):
        run_experiment(both, tmp_path / "out", tell=lambda _: None)
    (folder / "config.toml").write_text('no_setting = 1\ndata = "."\n')
    with pytest.raises(RunError, match=r"has now \(which this version does not take: no_setting: Extra"):
        run_experiment(both, tmp_path / "out", tell=lambda _: None)
    assert run_experiment(changed, tmp_path / "out", overwrite=True, tell=lambda _: None)
    assert calls[5:] == [("one/seed-0", False)]
    assert not (folder / "scores.csv").exists()
    assert not (tmp_path / "out" / "one" / "seed-0.replaced").exists()


def test_runs_of_other_subjects_are_neither_made_already_nor_give_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: dict[str, dict[str, list[str]]]
) -> None:
    made: list[Path] = []

    def fake(config: Any, out: Path, *, resume: bool, console: Any) -> None:
        finished(out, config)
        (out / "split.json").write_text(json.dumps(drawn))
        made.append(out)

    monkeypatch.setattr(runner, "federate", fake)
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    one, out = plan(), tmp_path / "out" / "x"
    assert run_experiment(one, out, tell=lambda _: None) and run_experiment(one, out, tell=lambda _: None)
    assert len(made) == 1
    drawn.update(OTHER_PARTS)
    moved = r"\(a/s1 from train to test, a/s3 from test to train\)"
    with pytest.raises(RunError, match=f"of other subjects than the data has now, or .* {moved}; replace it"):
        run_experiment(one, out, tell=lambda _: None)
    # Of the same settings, but a subject that it trained on would be tested on.
    (planned,) = planned_runs(one, data_folder(one, tmp_path / "out", smoke=False))
    config = planned.config
    target = tmp_path / "out" / "y" / "one" / "seed-0"
    assert begin_with_known(config, target, tmp_path / "out", None, drawn) == []
    with pytest.raises(
        RunError, match="in the same parts, to take networks from, got one on others; run its"
    ):
        begin_with_known(config, target, tmp_path / "out", made[0], drawn)
    assert not target.exists()
    assert run_experiment(one, out, overwrite=True, tell=lambda _: None)
    assert len(made) == 2 and json.loads((made[1] / "split.json").read_text()) == OTHER_PARTS
    assert run_experiment(one, out, tell=lambda _: None) and len(made) == 2
    for text in ("", None):
        note = made[1] / "split.json"
        if text is None:
            note.unlink()
        else:
            note.write_text(text)
        with pytest.raises(RunError, match="holds a run of subjects that it has no note of; replace it with"):
            run_experiment(one, out, tell=lambda _: None)
        assert run_experiment(one, out, overwrite=True, tell=lambda _: None)
    assert len(made) == 4


def test_a_run_is_replaced_only_where_the_new_one_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(config: Any, out: Path, *, resume: bool, console: Any) -> None:
        finished(out, config)
        (out / "split.json").write_text(json.dumps(Draws().of(config)))

    monkeypatch.setattr(runner, "federate", fake)
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    three = PHANTOM | {"subjects": 9, "sites": 3}
    assert run_experiment(plan(phantom=three), tmp_path / "out", tell=lambda _: None)
    done = tmp_path / "out" / "one" / "seed-0"
    # The same data divided alike, for which another variant has been drawn already.
    wrong = [
        {"name": "other", "settings": {"codec.rounds": 5}},
        {"name": "one", "settings": {"late_sites": ["nowhere"]}},
    ]
    with pytest.raises(DataError, match="late_sites: expected sites of the data .* got 'nowhere'"):
        run_experiment(
            plan(phantom=three, variants=wrong), tmp_path / "out", overwrite=True, tell=lambda _: None
        )
    assert (done / "metrics.json").is_file() and not done.with_name("seed-0.replaced").exists()


def test_draws_are_those_of_runs_and_read_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants: list[dict[str, Any]] = [
        {"name": "one"},
        {"name": "two", "settings": {"codec.rounds": 2}},
        {"name": "few", "settings": {"reading.train_images": 1}, "seeds": [0]},
        {"name": "three", "settings": {"reading.partition": "iid", "reading.sites": 2}, "seeds": [0]},
    ]
    many = plan(variants=variants, seeds=[0, 1], phantom=PHANTOM | {"subjects": 8})
    runs = planned_runs(many, data_folder(many, tmp_path, smoke=False))
    read: list[int] = []

    def counted(config: RunConfig) -> Any:
        read.append(config.seed)
        return read_dataset(config)

    monkeypatch.setattr("ppcmi_fast.experiments.draws.read_dataset", counted)
    draws = Draws()
    found = [draws.of(run.config) for run in runs]
    assert sorted(read) == [0, 0, 0, 1]
    assert found[0] == found[2] and found[4] != found[5] != found[0]
    assert found == [draw_split(run.config, read_dataset(run.config)).to_json() for run in runs]


@pytest.mark.usefixtures("drawn")
def test_variants_and_seeds_are_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake(config: Any, out: Path, *, resume: bool, console: Any) -> None:
        calls.append(out.relative_to(tmp_path / "out").as_posix())
        finished(out, config)

    monkeypatch.setattr(runner, "federate", fake)
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    some = plan(
        variants=[
            {"name": "bits-2", "settings": {"codec.rounds": 3}},
            {"name": "bits-4"},
            {"name": "all", "settings": {"codec.rounds": 2}, "seeds": [1]},
        ],
        seeds=[0, 1],
    )
    lines: list[str] = []
    assert run_experiment(some, tmp_path / "out", only=["bits-*"], seeds=[1], tell=lines.append)
    assert calls == ["bits-2/seed-1", "bits-4/seed-1"]
    assert lines[0] == "5 runs, 2 of them asked for, 2 to do"
    assert run_experiment(some, tmp_path / "out", only=["all"], tell=lines.append)
    assert calls[2:] == ["all/seed-1"]


def test_time_that_is_up_ends_with_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(config: Any, out: Path, *, resume: bool, console: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # as the deadline does
        raise AssertionError("the signal was lost")

    monkeypatch.setattr(runner, "federate", slow)
    monkeypatch.setattr(runner._Deadline, "passed", property(lambda self: bool(self)))
    lines: list[str] = []
    assert not run_experiment(plan(), tmp_path / "out", max_minutes=10, tell=lines.append)
    assert "time is up" in lines[-1]


def test_time_is_up_where_a_shell_ignores_the_signal() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        deadline = runner._Deadline(10)
        deadline.cancel()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_rates_of_one_variant_are_not_the_next_ones(tmp_path: Path) -> None:
    made = plan(
        settings=TINY
        | {"baselines.methods": ["fedavg", "fedbn"], "baselines.method_rates": {"fedavg": 0.004}},
        variants=[
            {"name": "more", "settings": {"baselines.method_rates.fedbn": 0.001}},
            {"name": "as-given"},
        ],
    )
    rates = [run.config.baselines.method_rates for run in planned_runs(made, tmp_path)]
    assert rates == [{"fedavg": 0.004, "fedbn": 0.001}, {"fedavg": 0.004}]


def test_methods_are_known_by_the_same_names_everywhere() -> None:
    assert set(METHODS) == set(get_args(Method)) and set(UNET_METHODS) == set(METHODS) - set(PROFILES)
    assert set(FEDERATED) < set(UNET_METHODS)
