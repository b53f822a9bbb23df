"""Experiments: plans are checked, nothing runs twice, tables say what scores say, pages come from JSON alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_runs import TINY
from typer.testing import CliRunner

from ppcmi_fast.baselines import METHODS, Outcome
from ppcmi_fast.baselines.published import PROFILES
from ppcmi_fast.cli.app import app
from ppcmi_fast.codec import MASK_WEIGHTS
from ppcmi_fast.errors import ConfigError, DataError, RunError
from ppcmi_fast.experiments import runner
from ppcmi_fast.experiments.draws import Draws
from ppcmi_fast.experiments.plan import Plan, data_folder, load_plan, planned_runs
from ppcmi_fast.experiments.reuse import (
    baseline_training,
    begin_with_known,
    codec_training,
    finished_runs,
    our_training,
    same_baseline,
)
from ppcmi_fast.experiments.runner import run_experiment
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.dataset import read_dataset
from ppcmi_fast.federation.run import draw_split
from ppcmi_fast.federation.runfolder import RunFolder
from ppcmi_fast.federation.sections import FEDERATED, UNET_METHODS, Method

ROOT = Path(__file__).resolve().parents[1]


PHANTOM = {"subjects": 3, "sites": 2, "slices": 1, "size": 32}


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "title": "A title",
        "question": "A question?",
        "data": "phantom:cardiac",
        "phantom": PHANTOM,
        "settings": TINY,
        "variants": [{"name": "one"}],
    }
    return Plan.model_validate(values | changes)


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


PARTS = {"train": {"a": ["s1"]}, "val": {"a": ["s2"]}, "test": {"a": ["s3"]}}
OTHER_PARTS = {"train": {"a": ["s3"]}, "val": {"a": ["s2"]}, "test": {"a": ["s1"]}}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[str]]]:
    """The split of whatever data, as a test may change it."""
    parts = dict(PARTS)
    monkeypatch.setattr(Draws, "of", lambda self, config: parts)
    return parts


def finished(folder: Path, config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "split.json").write_text(json.dumps(PARTS))
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "metrics.json").write_text("{}")
    (folder / "stages.json").write_text('{"codec": {}, "mapper": {}}')


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


def test_networks_are_taken_over_and_only_evaluated(tmp_path: Path) -> None:
    bits = plan(
        variants=[
            {"name": "exact", "settings": {"bits_up": 32, "bits_down": 32}},
            {"name": "few", "settings": {"bits_up": 2, "bits_down": 2}, "networks_from": "exact"},
        ]
    )
    out = tmp_path / "out"
    assert run_experiment(bits, out, tell=lambda _: None)
    exact, few = (
        json.loads((out / name / "seed-0" / "metrics.json").read_text()) for name in ("exact", "few")
    )
    # The same networks: without quantization they answer the same.
    assert few["methods"]["ppcmi_float32"]["dice"] == exact["methods"]["ppcmi"]["dice"]
    assert few["payload_bytes"]["up"] < exact["payload_bytes"]["up"] / 8
    assert few["seconds"]["codec"] == exact["seconds"]["codec"]
    assert (out / "few" / "seed-0" / "report.html").is_file()
    # With "few" alone to take from, what it holds was trained at 32 bits and not at its own.
    (out / "exact" / "seed-0" / "metrics.json").unlink()
    for bits_up, bits_down, taken in ((2, 2, []), (8, 8, ["our codecs"]), (32, 32, ["ours"])):
        settings = {"bits_up": bits_up, "bits_down": bits_down}
        alone = plan(variants=[{"name": "alone", "settings": settings}])
        lines: list[str] = []
        assert run_experiment(alone, tmp_path / f"alone-{bits_up}", tell=lines.append)
        assert [line for line in lines if "taken" in line] == [f"  taken over: {name}" for name in taken]
        shutil.rmtree(tmp_path / f"alone-{bits_up}")
    (out / "few" / "seed-0" / "metrics.json").unlink()
    (out / "few" / "seed-0" / "stages.json").unlink()
    with pytest.raises(RunError, match="run its variant first"):
        run_experiment(bits, out, only=["few"], tell=lambda _: None)


def test_what_was_trained_in_pieces_stands_in_one_run(tmp_path: Path) -> None:
    small = {"baselines.images": 32, "baselines.batch": 4, "baselines.rounds": 1}
    pieces = plan(
        settings=TINY | small,
        variants=[
            {"name": "ours"},
            {"name": "pooled", "settings": {"baselines.methods": ["unet_centralised"]}},
            {"name": "fedavg", "settings": {"baselines.methods": ["fedavg"]}},
            {"name": "all", "settings": {"baselines.methods": ["unet_centralised", "fedavg"]}},
        ],
    )
    lines: list[str] = []
    assert run_experiment(pieces, tmp_path / "out", tell=lines.append)
    assert [line for line in lines if "taken" in line] == [
        "  taken over: ours",
        "  taken over: ours",
        "  taken over: ours, unet_centralised, fedavg",
    ]
    found = {
        name: json.loads((tmp_path / "out" / name / "seed-0" / "metrics.json").read_text())["methods"]
        for name in ("ours", "pooled", "fedavg", "all")
    }
    assert found["all"]["ppcmi"]["dice"] == found["ours"]["ppcmi"]["dice"]
    for method, name in (("unet_centralised", "pooled"), ("fedavg", "fedavg")):
        assert found["all"][method]["dice"] == found[name][method]["dice"]
        assert found["all"][method]["seconds"] == found[name][method]["seconds"]
    # Where only the mapper differs, the codecs are the same.
    wider = plan(settings=TINY | small, variants=[{"name": "wider", "settings": {"mapper.width": 16}}])
    lines.clear()
    assert run_experiment(wider, tmp_path / "wider", tell=lines.append)
    assert [line for line in lines if "taken" in line] == ["  taken over: our codecs"]
    stages = json.loads((tmp_path / "wider" / "wider" / "seed-0" / "stages.json").read_text())
    known = json.loads((tmp_path / "out" / "ours" / "seed-0" / "stages.json").read_text())
    assert stages["codec"] == known["codec"] and stages["mapper"] != known["mapper"]
    # Another experiment beside it finds the same networks, those of other settings are trained.
    other = pieces.model_copy(update={"variants": pieces.variants[3:]})
    lines.clear()
    assert run_experiment(other, tmp_path / "beside", tell=lines.append)
    assert [line for line in lines if "taken" in line] == ["  taken over: ours, unet_centralised, fedavg"]
    # Baselines do not hang on ours: with other codecs, too, they are the same.
    longer = plan(settings=other.settings | {"codec.rounds": 2}, variants=other.variants)
    lines.clear()
    assert run_experiment(longer, tmp_path / "longer", tell=lines.append)
    assert [line for line in lines if "taken" in line] == ["  taken over: unet_centralised, fedavg"]
    metrics = json.loads((tmp_path / "longer" / "all" / "seed-0" / "metrics.json").read_text())["methods"]
    assert metrics["fedavg"]["dice"] == found["fedavg"]["fedavg"]["dice"]
    assert metrics["ppcmi"]["images_seen"] > found["all"]["ppcmi"]["images_seen"]


def test_what_is_replaced_gives_what_its_settings_leave_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_experiment(plan(), out, tell=lambda _: None)
    likeliest = plan(settings=TINY | {"calibrate": False})
    with pytest.raises(RunError, match=r"calibrate: True -> False\); replace it with --overwrite"):
        run_experiment(likeliest, out, tell=lambda _: None)
    before = json.loads((out / "one" / "seed-0" / "stages.json").read_text())
    lines: list[str] = []
    assert run_experiment(likeliest, out, overwrite=True, tell=lines.append)
    assert [line for line in lines if "taken" in line] == ["  taken over: ours"]
    assert json.loads((out / "one" / "seed-0" / "stages.json").read_text()) == before
    assert [path.name for path in (out / "one").iterdir()] == ["seed-0"]


def test_a_run_that_lacks_a_setting_of_today_gives_nothing(tmp_path: Path) -> None:
    config = RunConfig.build({"data": str(tmp_path)})
    path = tmp_path / "out" / "x" / "one" / "seed-0" / "config.toml"
    finished(path.parent, config)
    assert [run.config for run in finished_runs(tmp_path / "out")] == [config]
    whole = path.read_text()
    for line in ("calibrate = true\n", "balance = 0.3\n"):
        assert whole.count(line) == 1
        path.write_text(whole.replace(line, ""))
        assert RunConfig.load(path) == config and not list(finished_runs(tmp_path / "out"))


@pytest.mark.usefixtures("drawn")
def test_a_run_of_before_a_setting_gives_what_it_did_then(tmp_path: Path) -> None:
    then = [
        "mask_mixing=hadamard",
        "mask_weights=[1.0,1.0]",
        "baselines.work=equal",
        'baselines.methods=["fedavg"]',
    ]
    config = RunConfig.build({"data": str(tmp_path)}, then)
    path = tmp_path / "out" / "x" / "one" / "seed-0" / "config.toml"
    finished(path.parent, config)
    text = path.read_text()
    since = (
        'mask_mixing = "hadamard"\n',
        "mask_weights = [\n    1.0,\n    1.0,\n]\n",
        "query_views = 1\n",
        'dice = "batch"\n',
        "head_attention = false\n",
        "attention = false\n",
        'work = "equal"\n',
        "[baselines.method_rates]\n",
    )
    for setting in since:
        assert text.count(setting) == 1
        text = text.replace(setting, "")
    path.write_text(text)
    assert RunConfig.load(path) == config
    assert [run.config for run in finished_runs(tmp_path / "out")] == [config]
    # The same run is not made twice, and replaced only when it is asked for.
    assert runner.is_finished(path.parent, config, Draws())
    with pytest.raises(RunError, match=r"mask_mixing: hadamard -> haar"):
        runner.is_finished(path.parent, RunConfig.build({"data": str(tmp_path)}), Draws())
    # A file of settings that belongs to no run means what they mean now.
    (tmp_path / "mine.toml").write_text(text)
    assert RunConfig.load(tmp_path / "mine.toml").mask_weights == MASK_WEIGHTS


def test_what_was_begun_takes_nothing_over(tmp_path: Path) -> None:
    config = RunConfig.build({"data": str(tmp_path)})
    finished(tmp_path / "out" / "x" / "one" / "seed-0", config)
    begun = RunFolder.open(tmp_path / "out" / "y" / "one" / "seed-0", config, resume=False, overwrite=False)
    (begun.checkpoints / "codec.safetensors").write_bytes(b"under keys of its own")
    assert begin_with_known(config, begun.root, tmp_path / "out", None, PARTS) == []
    assert not (begun.root / "split.json").exists() and not begun.stages()


def test_what_depends_on_a_setting_is_trained_again(tmp_path: Path) -> None:
    values = {"data": str(tmp_path), "baselines": {"images": 32, "methods": ["fedavg"]}}

    def changed(*settings: str) -> RunConfig:
        return RunConfig.build(values, list(settings))

    config = changed()
    assert our_training(changed('mapper.start="head"', "mapper.steps=300")) == our_training(config)
    for same in (
        "calibrate=false",
        "query_views=2",
        "threads=2",
        "measures.nsd_tolerance=1.0",
        'baselines.methods=["fedbn"]',
    ):
        assert our_training(changed(same)) == our_training(config)
        assert baseline_training(changed(same), "fedavg") == baseline_training(config, "fedavg")
    later_ones = ("tuning.rounds=3", "mapper.width=7", "bits_up=8", "bits_down=2", 'trust="server"')
    for later in (*later_ones, "mixing=haar", "mask_mixing=hadamard", "mask_weights=[1,2]"):
        assert our_training(changed(later)) != our_training(config)
        assert codec_training(changed(later)) == codec_training(config)
    # Codecs bear the noise of fewer bits only when they are trained to.
    for codecs in ("codec.rounds=3", "bits_up=2"):
        assert codec_training(changed(codecs)) != codec_training(config)
    for ours_only in ("codec.rounds=3", "tuning.rounds=3", "bits_up=2", 'trust="server"'):
        assert our_training(changed(ours_only)) != our_training(config)
        assert baseline_training(changed(ours_only), "fedavg") == baseline_training(config, "fedavg")
    for both in ("seed=1", "size=64", 'reading.modality="mri"'):
        assert our_training(changed(both)) != our_training(config)
        assert baseline_training(changed(both), "fedavg") != baseline_training(config, "fedavg")
    assert baseline_training(changed("baselines.learning_rate=0.1"), "fedavg") != baseline_training(
        config, "fedavg"
    )
    # How sites divide a round is nothing to a method without rounds.
    equal = changed('baselines.work="equal"')
    assert baseline_training(equal, "fedavg") != baseline_training(config, "fedavg")
    assert baseline_training(equal, "unet_local") == baseline_training(config, "unet_local")
    unets = 'baselines.methods=["unet_local"]'
    assert changed('baselines.work="equal"', unets) == changed(unets)
    # As many images as ours saw: then ours decides.
    as_ours = baseline_training(changed("baselines.images=0"), "fedavg")
    for other in ("codec.rounds=3", 'trust="sites"'):
        assert baseline_training(changed("baselines.images=0", other), "fedavg") != as_ours
    assert baseline_training(changed("baselines.images=0", "codec.mask_rank=32"), "fedavg") == as_ours
    patient = [
        baseline_training(changed("baselines.images=0", "mapper.patience=2", other), "fedavg")
        for other in ("codec.mask_rank=16", "codec.mask_rank=32", "mask_weights=[1,1]", "bits_up=2")
    ]
    assert all(other != patient[0] for other in patient[1:])


def test_a_baseline_rests_on_the_rate_that_it_has_or_chose(tmp_path: Path) -> None:
    values = {"data": str(tmp_path), "baselines": {"methods": ["fedavg", "unet_local", "published"]}}

    def changed(*settings: str) -> RunConfig:
        return RunConfig.build(values, list(settings))

    config, faster = changed(), changed("baselines.method_rates.fedavg=0.004")
    for name in ("unet_local", "published"):
        assert same_baseline(config, faster, name, None) and same_baseline(faster, config, name, None)
    assert not same_baseline(config, faster, "fedavg", 0.002)
    assert same_baseline(changed("baselines.learning_rate=0.004"), faster, "fedavg", 0.004)
    tried = changed("baselines.learning_rates=[0.002,0.004]")
    assert same_baseline(tried, faster, "fedavg", 0.004) and not same_baseline(tried, faster, "fedavg", 0.002)
    assert same_baseline(tried, config, "published", 0.001)
    # Who wants trials is not content with their outcome.
    assert not same_baseline(faster, tried, "fedavg", 0.004) and same_baseline(tried, tried, "fedavg", 0.002)
    alone = 'baselines.methods=["unet_local"]'
    assert changed(alone, "baselines.method_rates.fedavg=0.004") == changed(alone)


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


def test_what_a_baseline_chose_serves_where_it_is_given(tmp_path: Path) -> None:
    tries = {"baselines.methods": ["fedavg"], "baselines.learning_rates": [0.001, 0.002]}
    assert run_experiment(plan(settings=TINY | tries), tmp_path / "tried", tell=lambda _: None)
    where = Path("one") / "seed-0" / "metrics.json"
    found = json.loads((tmp_path / "tried" / where).read_text())["methods"]["fedavg"]
    stages = RunFolder((tmp_path / "tried" / where).parent).stages()
    ends = {stage: facts["best"] for stage, facts in stages.items() if stage.startswith("fedavg=")}
    assert "fedavg=0.002" in ends and ends[f"fedavg={found['learning_rate']:g}"] == max(ends.values())
    given = {"baselines.methods": ["fedavg"], "baselines.method_rates": {"fedavg": found["learning_rate"]}}
    lines: list[str] = []
    assert run_experiment(plan(settings=TINY | given), tmp_path / "given", tell=lines.append)
    assert [line for line in lines if "taken" in line] == ["  taken over: ours, fedavg"]
    metrics = json.loads((tmp_path / "given" / where).read_text())
    assert metrics["methods"]["fedavg"] == found | {"trial_images": 0}
    assert "fedavg" in metrics["seconds"] and not any("tried" in name for name in metrics["seconds"])


def test_of_more_rates_only_the_new_ones_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, chosen = ["fedavg", "unet_local"], 0.0005

    def made(out: str, **settings: Any) -> tuple[dict[str, Any], str]:
        lines: list[str] = []
        changed = {f"baselines.{name}": value for name, value in settings.items()}
        made = plan(settings=TINY | {"baselines.methods": methods, "baselines.images": 32} | changed)
        assert run_experiment(made, tmp_path / "out" / out, tell=lines.append)
        folder = tmp_path / "out" / out / "one" / "seed-0"
        (taken,) = [line for line in lines if "taken" in line] or [""]
        return RunFolder(folder).stages(), taken

    def best_is(rate: float) -> None:
        def best(outcomes: list[Outcome], _: float) -> Outcome:
            return next(outcome for outcome in outcomes if outcome.learning_rate == rate)

        monkeypatch.setattr("ppcmi_fast.baselines._best", best)

    best_is(0.001)
    few, _ = made("few", learning_rates=[0.001])
    best_is(chosen)
    more, taken = made("more", learning_rates=[0.001, 0.0005])
    assert taken == "  taken over: ours, fedavg in part, unet_local in part"
    tried = {stage.split("@")[0] for stage in few if "@" in stage}
    assert len(tried) == 3
    for name in tried:
        assert more[f"{name}@0.001"] == few[f"{name}@0.001"] and f"{name}@0.0005" in more
        # What is known at a rate that is not chosen does no harm.
        assert more[f"{name}=0.001"] == few[f"{name}=0.001"] and f"{name}={chosen:g}" in more
    run = tmp_path / "out" / "more" / "one" / "seed-0"
    curves, metrics = (json.loads((run / name).read_text()) for name in ("history.json", "metrics.json"))
    assert tried < curves.keys() and not any(mark in name for name in curves for mark in "@=")
    assert curves["fedavg"] == more[f"fedavg={chosen:g}"]["history"]
    assert metrics["seconds"].keys() == curves.keys() | {f"{name} (rates tried)" for name in methods}
    assert metrics["seconds"]["fedavg"] == more[f"fedavg={chosen:g}"]["seconds"]
    tries = ["fedavg@0.001", "fedavg@0.0005", "fedavg=0.001"]
    total = sum(more[stage]["seconds"] for stage in tries)
    assert metrics["seconds"]["fedavg (rates tried)"] == pytest.approx(total)
    given, taken = made("given", learning_rate=chosen)
    assert taken == "  taken over: ours, fedavg, unet_local"
    assert not any(mark in name for name in given for mark in "@=")
    # Nor is that trained twice which was chosen once and is not the best of a longer list.
    shutil.rmtree(tmp_path / "out" / "few")
    other, taken = made("other", learning_rate=0.001)
    assert taken == "  taken over: ours, fedavg, unet_local"
    for name in tried:
        for out, made_at, rate in (("given", given, chosen), ("other", other, 0.001)):
            assert made_at[name] == more[f"{name}={rate:g}"]
            networks = tmp_path / "out" / out / "one" / "seed-0" / "baselines"
            known = run / "baselines" / f"{name}={rate:g}.safetensors"
            assert (networks / f"{name}.safetensors").read_bytes() == known.read_bytes()


def test_the_command_runs_lists_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = CliRunner().invoke
    assert call(app, ["experiment", "list"]).exit_code != 0
    (tmp_path / "experiments").mkdir()
    settings = "\n".join(f'"{k}" = {json.dumps(v)}' for k, v in TINY.items())
    (tmp_path / "experiments" / "small.toml").write_text(
        'title = "T"\nquestion = "Q?"\ndata = "phantom:cardiac"\nrows = true\n'
        "phantom = { subjects = 3, sites = 2, slices = 1, size = 32 }\n"
        f'[settings]\n{settings}\n[[variants]]\nname = "one"\n'
    )
    assert "small: Q? (1 runs on phantom:cardiac)" in call(app, ["experiment", "list"]).output
    result = call(app, ["experiment", "run", "small", "--out", "runs"])
    assert result.exit_code == 0 and "done: runs/small" in result.output
    assert (
        "1 runs, 1 of them asked for, 0 to do"
        in call(app, ["experiment", "run", "small", "--out", "runs"]).output
    )
    tabled = ["experiment", "table", "small", "--out", "runs", "--docs", "docs"]
    result = call(app, tabled)
    assert result.exit_code == 0, result.output
    page, rows = (
        tmp_path / "docs" / name for name in ("experiments_results.md", "figures/experiment_small_rows.png")
    )
    assert "## T" in page.read_text()
    picture, written = rows.read_bytes(), page.read_text()
    # As while it is run once more: what was kept of it stays, and its picture.
    for name in ("metrics.json", "examples.npz"):
        (tmp_path / "runs" / "small" / "one" / "seed-0" / name).unlink()
    result = call(app, tabled)
    assert result.exit_code == 0, result.output
    assert page.read_text() == written and rows.read_bytes() == picture
