"""What finished runs have trained is taken over where nothing that it rests on differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiment_runs import (
    PARTS,
    finished,
    fixed_split,
    plan,
)
from tiny_runs import TINY

from ppcmi_fast.baselines import Outcome
from ppcmi_fast.codec import MASK_WEIGHTS
from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments import runner
from ppcmi_fast.experiments.draws import Draws
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
from ppcmi_fast.federation.runfolder import RunFolder


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


def test_a_run_of_before_a_setting_gives_what_it_did_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_split(monkeypatch)
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
