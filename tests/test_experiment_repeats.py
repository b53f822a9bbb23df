"""What was trained anew is compared with its record; what was taken over is no repetition."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from experiment_runs import BUDGET, PIECES, SHIFTS, in_pieces, plan, quiet, write_run
from typer.testing import CliRunner

from ppcmi_fast.cli import experiment
from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.plan import Plan, planned_runs
from ppcmi_fast.experiments.records import REPEATED, read_records, write_records
from ppcmi_fast.experiments.repeats import OTHER_RULE, compare_repeats
from ppcmi_fast.federation.calibration import RULE, RULE_OF_IMAGES

ALONE = "unet_local"


def kept_runs(made: Plan, tmp_path: Path) -> list[dict[str, Any]]:
    write_run(made, tmp_path / "old", SHIFTS, variant="main")
    runs: list[dict[str, Any]] = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    return runs


def train_again(
    made: Plan,
    out: Path,
    shift: float,
    *,
    seconds: float = 70.0,
    variant: str = "local",
    method: str = ALONE,
    **options: Any,
) -> None:
    folder = out / "other" / variant / "seed-0"
    others = {} if method == "ppcmi" else {"ppcmi": -0.3, "fedavg": 0.0}
    write_run(made, out / "other", others | {method: shift}, variant=variant, **options)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["methods"][method] |= {"seconds": seconds, "learning_rate": None}
    metrics["environment"]["cpu"] = "y"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    run = next(r for r in planned_runs(made, Path("data")) if r.variant == variant)
    (folder / "config.toml").write_text(run.config.to_toml())


def train_in_place(made: Plan, out: Path, shift: float, *, variant: str = "local", **options: Any) -> None:
    """A piece in the experiment's own folder."""
    train_again(made, out, shift, variant=variant, **options)
    shutil.move(out / "other" / variant, out / variant)


def test_the_same_scores_are_called_the_same(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    train_again(made, tmp_path / "new", SHIFTS[ALONE])
    assert compare_repeats(made, runs, tmp_path / "new") == ["unet_local, seed 0: the same"]
    (entry,) = runs[0]["methods"][ALONE][REPEATED]
    assert entry["largest_difference"] == 0 and entry["seconds"] == 70
    assert REPEATED not in runs[0]["methods"]["ppcmi"] | runs[0]["methods"]["unet_centralised"]
    line = "Other trainings at the same settings came to the same Dice of every held-out subject: U-Net, each"
    page = tables.page([collect("name", made, tmp_path / "none", runs, quiet)])
    assert f"{line} site alone (seed 0).\n" in page and "another Dice" not in page


def test_a_table_keeps_what_is_known_of_repetitions(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    train_again(made, tmp_path / "new", -0.1)
    compare_repeats(made, runs, tmp_path / "new")
    # The run is still there, and read again.
    (again,) = collect("name", made, tmp_path / "old", runs, quiet)["runs"]
    assert again["methods"][ALONE][REPEATED] == runs[0]["methods"][ALONE][REPEATED]


def test_ours_is_compared_with_what_it_came_to_under_other_keys(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    train_again(made, tmp_path / "new", SHIFTS["ppcmi"] - 0.02, variant="ours", method="ppcmi")
    (line,) = compare_repeats(made, runs, tmp_path / "new")
    (entry,) = runs[0]["methods"]["ppcmi"][REPEATED]
    assert line == f"ppcmi, seed 0: Dice {entry['dice']:.3f}, a subject's differs by up to 0.0200"
    assert entry["largest_difference"] == pytest.approx(0.02, abs=1e-6)


def test_what_is_trained_anew_takes_the_place_of_what_was_kept_which_stays_beside_it(tmp_path: Path) -> None:
    # What the piece has of ours is of fewer rounds.
    made = in_pieces(**{"codec.rounds": 9})
    runs = kept_runs(made, tmp_path)
    before = runs[0]["methods"][ALONE]
    before[REPEATED] = [{"seconds": 50.0, "dice": 0.61, "largest_difference": 0.1, "environment": {}}]
    train_in_place(made, tmp_path / "new", SHIFTS[ALONE] + 0.02)
    lines: list[str] = []
    (record,) = collect("name", made, tmp_path / "new", runs, lines.append)["runs"]
    assert lines == [f"replaced: main, seed 0, {ALONE}"]
    alone = record["methods"][ALONE]
    assert alone["seconds"] == 70
    first, replaced = alone[REPEATED]
    # Of the repetition no scores are kept that would say how far from the new one it is.
    assert first == before[REPEATED][0] | {"largest_difference": None}
    assert replaced["seconds"] == before["seconds"] and replaced["environment"] == runs[0]["environment"]
    assert replaced["largest_difference"] == pytest.approx(0.02, abs=1e-6)
    text = f"came to another Dice: U-Net, each site alone (seed 0) 0.610, {replaced['dice']:.3f}."
    assert text in tables.page([collect("name", made, tmp_path / "none", [record], quiet)])
    # Read again, it says nothing more.
    assert collect("name", made, tmp_path / "new", [record], quiet)["runs"] == [record]


def test_ours_trained_anew_takes_its_place_in_every_variant_that_shares_it(tmp_path: Path) -> None:
    others = {"name": "others", "settings": {"baselines.methods": ["fedavg"]}}
    made = plan(seeds=[0, 1], settings=BUDGET | {"codec.rounds": 9}, variants=[*PIECES, others])
    for seed in (0, 1):
        write_run(made, tmp_path / "old", SHIFTS, variant="main", seed=seed)
        write_run(made, tmp_path / "old", {"ppcmi": 0.0, "fedavg": 0.1}, variant="others", seed=seed)
    runs = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    train_in_place(made, tmp_path / "new", 0.03, variant="ours", method="ppcmi")
    lines: list[str] = []
    result = collect("name", made, tmp_path / "new", runs, lines.append)
    assert lines == ["replaced: main, seed 0, ppcmi", "replaced: others, seed 0, ppcmi"]
    main, later, also, also_later = result["runs"]
    assert (later, also_later) == (runs[1], runs[3])
    for record, before in ((main, runs[0]), (also, runs[2])):
        assert record["methods"]["ppcmi"]["seconds"] == 70 and record["environment"]["cpu"] == "y"
        (entry,) = record["methods"]["ppcmi"][REPEATED]
        assert entry["seconds"] == 60 and entry["environment"]["cpu"] == "x"
        others_of = [name for name in before["methods"] if name != "ppcmi"]
        for name in others_of:
            assert record["methods"][name] == before["methods"][name] | {"environment": before["environment"]}
    # Of what variants share one is told, and of which variant the rest is.
    also["methods"]["fedavg"][REPEATED] = [{"seconds": 50.0, "dice": 0.61, "largest_difference": 0.1}]
    listed = f"PPCMI (ours) (seed 0) {entry['dice']:.3f}; FedAvg of the U-Net of `others` (seed 0) 0.610."
    assert f"Other trainings at the same settings came to another Dice: {listed}" in tables.page([result])


def test_a_variant_keeps_the_training_of_ours_that_it_had(tmp_path: Path) -> None:
    others = {"name": "others", "settings": {"baselines.methods": [ALONE]}}
    made = plan(settings=BUDGET | {"codec.rounds": 9}, variants=[*PIECES, others])
    write_run(made, tmp_path / "old", SHIFTS, variant="main")
    write_run(made, tmp_path / "old", {"ppcmi": 0.01, ALONE: 0.0}, variant="others")
    runs = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    train_in_place(made, tmp_path / "new", 0.02)
    lines: list[str] = []
    result = collect("name", made, tmp_path / "new", runs, lines.append)
    assert lines == [f"replaced: {name}, seed 0, {ALONE}" for name in ("main", "others")]
    for record, before in zip(result["runs"], runs, strict=True):
        assert record["methods"]["ppcmi"] == before["methods"]["ppcmi"]


def test_a_run_of_other_held_out_subjects_is_no_other_training(tmp_path: Path) -> None:
    made = plan()
    write_run(made, tmp_path / "old", {"ppcmi": 0.0})
    runs = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    train_again(made, tmp_path, 0.02, variant="one", method="ppcmi", subjects=range(1, 7))
    lines: list[str] = []
    (record,) = collect("name", made, tmp_path / "other", runs, lines.append)["runs"]
    assert lines == ["replaced: one, seed 0, ppcmi"] and REPEATED not in record["methods"]["ppcmi"]


def test_a_piece_of_other_held_out_subjects_takes_no_place(tmp_path: Path) -> None:
    made = in_pieces(**{"codec.rounds": 9})
    runs = kept_runs(made, tmp_path)
    train_in_place(made, tmp_path / "new", 0.03, variant="ours", method="ppcmi", subjects=range(1, 7))
    assert collect("name", made, tmp_path / "new", runs, quiet)["runs"] == runs


def test_runs_of_other_held_out_subjects_make_no_page(tmp_path: Path) -> None:
    two = plan(variants=[{"name": "one"}, {"name": "two", "settings": {"codec.rounds": 2}}], seeds=[0, 1])
    for seed in (0, 1):
        write_run(two, tmp_path, SHIFTS, variant="one", seed=seed)
    write_run(two, tmp_path, SHIFTS, variant="two", seed=0)
    kept = collect("name", two, tmp_path, [], quiet)["runs"]
    # Another seed may hold out others; of the same seed neither a run nor what is kept may.
    write_run(two, tmp_path / "new", SHIFTS, variant="two", seed=1, subjects=range(1, 7))
    named = r"by one \(seed 1\), but others by two \(seed 1\); run those of before again with --overwrite"
    with pytest.raises(RunError, match=named):
        collect("name", two, tmp_path / "new", kept, quiet)
    # Nor do sites that were divided otherwise.
    iid = plan(variants=[{"name": "one"}, {"name": "two", "settings": {"reading.partition": "iid"}}])
    write_run(iid, tmp_path / "iid", SHIFTS, variant="one")
    write_run(iid, tmp_path / "iid", SHIFTS, variant="two", subjects=range(1, 7))
    assert len(collect("name", iid, tmp_path / "iid", [], quiet)["runs"]) == 2


@pytest.mark.parametrize(
    ("shift", "known", "dice", "noted"),
    [(0.0, 0.1, 0.61, 0.1), (0.02, 0.0, 0.61, 0.02), (0.02, 0.02, None, 0.0), (0.02, None, 0.61, None)],
    ids=[
        "kept is the new one",
        "repetition is the kept one",
        "repetition is the new one",
        "nothing is known of it",
    ],
)
def test_a_repetition_of_what_is_replaced_says_how_far_it_is_from_the_new(
    tmp_path: Path, shift: float, known: float | None, dice: float | None, noted: float | None
) -> None:
    made = in_pieces(**{"codec.rounds": 9})
    runs = kept_runs(made, tmp_path)
    alone = runs[0]["methods"][ALONE]
    before = np.mean(
        [np.mean([row[3][0] for row in alone["scores"] if row[0] == site]) for site in ("a", "b")]
    )
    entry: dict[str, Any] = {
        "dice": dice or round(float(before) + shift, 7),
        "largest_difference": known,
        "environment": {},
    }
    # The repetition of 70 s is what takes the place.
    alone[REPEATED] = [entry | {"seconds": 50.0}, entry | {"seconds": 70.0}]
    train_in_place(made, tmp_path / "new", SHIFTS[ALONE] + shift)
    (record,) = collect("name", made, tmp_path / "new", runs, lambda line: None)["runs"]
    first, replaced = record["methods"][ALONE][REPEATED]
    expected = None if noted is None else pytest.approx(noted, abs=1e-6)
    assert first["largest_difference"] == expected and first["seconds"] == 50
    assert replaced["largest_difference"] == pytest.approx(shift, abs=1e-6) and replaced["seconds"] == 60


def test_networks_that_are_scored_otherwise_are_no_other_training(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    runs[0]["methods"][ALONE]["scores"][0][3] = [0.5]
    runs[0]["methods"][ALONE][REPEATED] = [{"seconds": 50.0, "dice": 0.6, "largest_difference": 0.0}]
    lines: list[str] = []
    (again,) = collect("name", made, tmp_path / "old", runs, lines.append)["runs"]
    assert REPEATED not in again["methods"][ALONE] and lines == [f"replaced: main, seed 0, {ALONE}"]


def test_ours_of_other_settings_is_no_other_training_of_the_same(tmp_path: Path) -> None:
    made = in_pieces(**{"codec.rounds": 9})
    write_run(made, tmp_path / "old", SHIFTS, variant="main")
    runs = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    runs[0]["settings"]["codec"]["rounds"] = 8
    train_in_place(made, tmp_path / "new", 0.03, variant="ours", method="ppcmi")
    (record,) = collect("name", made, tmp_path / "new", runs, lambda line: None)["runs"]
    assert record["methods"]["ppcmi"]["seconds"] == 70 and REPEATED not in record["methods"]["ppcmi"]
    assert compare_repeats(made, runs, tmp_path / "new") == []


def test_ours_at_thresholds_of_another_rule_says_so(tmp_path: Path) -> None:
    made = in_pieces(**{"codec.rounds": 9})
    write_run(made, tmp_path / "old", SHIFTS, variant="main")
    runs = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    known = {"seconds": 50.0, "dice": 0.61, "largest_difference": 0.1, "environment": {}}
    runs[0]["methods"]["ppcmi"][REPEATED] = [known, known | {"seconds": 51.0, "dice": 0.62, "rule": RULE}]
    runs[0]["calibration"] = RULE_OF_IMAGES
    listed = f"PPCMI (ours) (seed 0) 0.610, and {OTHER_RULE} 0.620."
    assert listed in tables.page([collect("name", made, tmp_path / "none", runs, quiet)])
    train_in_place(made, tmp_path / "new", 0.03, variant="ours", method="ppcmi")
    result = collect("name", made, tmp_path / "new", runs, lambda line: None)
    first, second, replaced = result["runs"][0]["methods"]["ppcmi"][REPEATED]
    assert [entry["rule"] for entry in (first, second, replaced)] == [RULE_OF_IMAGES, RULE, RULE_OF_IMAGES]
    assert f"0.620, and {OTHER_RULE} 0.610, {replaced['dice']:.3f}." in tables.page([result])
    del result["runs"][0]["methods"]["ppcmi"][REPEATED][1]
    assert f"(seed 0) {OTHER_RULE} 0.610, {replaced['dice']:.3f}." in tables.page([result])
    train_again(made, tmp_path / "again", 0.03, variant="ours", method="ppcmi")
    (line,) = compare_repeats(made, runs, tmp_path / "again")
    assert line.startswith(f"ppcmi, seed 0: {OTHER_RULE}, Dice 0.8")
    assert runs[0]["methods"]["ppcmi"][REPEATED][-1]["rule"] == RULE


def test_networks_that_are_scored_by_another_rule_keep_what_is_known_of_other_trainings(
    tmp_path: Path,
) -> None:
    made = plan()
    write_run(made, tmp_path / "old", {"ppcmi": 0.0})
    runs = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    known = {"seconds": 50.0, "dice": 0.61, "largest_difference": 0.1, "environment": {}}
    runs[0]["methods"]["ppcmi"][REPEATED] = [known]
    runs[0]["calibration"] = RULE_OF_IMAGES
    write_run(made, tmp_path / "new", {"ppcmi": 0.03})
    lines: list[str] = []
    (record,) = collect("name", made, tmp_path / "new", runs, lines.append)["runs"]
    assert lines == ["replaced: one, seed 0, ppcmi"]
    # How far the other training is from today's scores, nothing says; and the same training is no other one.
    entry = known | {"rule": RULE_OF_IMAGES, "largest_difference": None}
    assert record["methods"]["ppcmi"][REPEATED] == [entry]
    # The other training at today's rule stands beside it, once however often it is compared.
    train_again(made, tmp_path / "again", 0.05, seconds=50.0, variant="one", method="ppcmi")
    for _ in range(2):
        compare_repeats(made, [record], tmp_path / "again")
    assert [entry["rule"] for entry in record["methods"]["ppcmi"][REPEATED]] == [RULE_OF_IMAGES, RULE]


def test_a_variant_that_answers_otherwise_tells_its_own_repetitions(tmp_path: Path) -> None:
    coarse = {"name": "coarse", "settings": {"bits_up": 2}, "networks_from": "one"}
    made = plan(variants=[{"name": "one"}, coarse, coarse | {"name": "again"}])
    for variant, dice in (("one", 0.61), ("coarse", 0.58), ("again", 0.58)):
        write_run(made, tmp_path, {"ppcmi": dice - 0.8}, variant=variant)
    result = collect("name", made, tmp_path, [], quiet)
    for record, dice in zip(result["runs"], (0.62, 0.57, 0.57), strict=True):
        record["methods"]["ppcmi"][REPEATED] = [{"seconds": 50.0, "dice": dice, "largest_difference": None}]
    listed = "another Dice: PPCMI (ours) (seed 0) 0.620; PPCMI (ours) of `coarse` (seed 0) 0.570.\n"
    assert listed in tables.page([result])
    # So do the lines of the command.
    train_again(made, tmp_path / "again", -0.2, variant="one", method="ppcmi")
    lines = compare_repeats(made, result["runs"], tmp_path / "again")
    assert [line.split(":")[0] for line in lines] == ["ppcmi, seed 0"]
    train_again(made, tmp_path / "again", -0.3, variant="coarse", method="ppcmi")
    lines = compare_repeats(made, result["runs"], tmp_path / "again")
    assert [line.split(":")[0] for line in lines] == ["ppcmi, seed 0", "ppcmi of coarse, seed 0"]


def test_a_record_that_is_no_longer_planned_is_passed_over(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    train_again(made, tmp_path / "new", -0.1)
    runs.insert(0, runs[0] | {"variant": "gone"})
    assert len(compare_repeats(made, runs, tmp_path / "new")) == 1


def test_other_scores_are_told_and_added_to_those_of_before(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    train_again(made, tmp_path / "one", -0.1)
    train_again(made, tmp_path / "two", SHIFTS[ALONE] + 0.02, seconds=80.0)
    for folder in ("one", "two", "two"):
        (line,) = compare_repeats(made, runs, tmp_path / folder)
    first, second = runs[0]["methods"][ALONE][REPEATED]
    rows = runs[0]["methods"][ALONE]["scores"]
    assert second["largest_difference"] == pytest.approx(0.02, abs=1e-6)
    before = np.mean([np.mean([row[3][0] for row in rows if row[0] == site]) for site in ("a", "b")])
    assert second["dice"] == pytest.approx(before + 0.02, abs=1e-6)
    assert line == f"unet_local, seed 0: Dice {second['dice']:.3f}, a subject's differs by up to 0.0200"
    text = f"another Dice: U-Net, each site alone (seed 0) {first['dice']:.3f}, {second['dice']:.3f}."
    assert text in tables.page([collect("name", made, tmp_path / "none", runs, quiet)])


@pytest.mark.parametrize("reason", ["taken over", "other settings", "other plan", "other data"])
def test_what_is_no_repetition_is_left_aside(tmp_path: Path, reason: str) -> None:
    made, faster = in_pieces(), in_pieces(**{"baselines.learning_rate": 0.003})
    runs = kept_runs(made, tmp_path)
    trained = faster if reason in ("other settings", "other plan") else made
    train_again(trained, tmp_path / "new", 0.0, seconds=60.0 if reason == "taken over" else 70.0)
    if reason == "other data":
        runs[0]["dataset"]["name"] = "another"
    # A kept record of before the plan was changed is none of the plan.
    planned = faster if reason == "other plan" else made
    assert compare_repeats(planned, runs, tmp_path / "new") == []
    assert REPEATED not in runs[0]["methods"][ALONE]


def test_other_held_out_subjects_are_an_error(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    train_again(made, tmp_path / "new", 0.0, subjects=range(1, 7))
    folder = tmp_path / "new" / "other" / "local" / "seed-0"
    with pytest.raises(
        RunError, match=rf"{re.escape(str(folder))}: expected {ALONE} scored on the record's held-out images"
    ):
        compare_repeats(made, runs, tmp_path / "new")


def test_the_command_notes_it_and_says_what_is_missing(tmp_path: Path) -> None:
    made = in_pieces()
    file = tmp_path / "name.toml"
    file.write_text(tomli_w.dumps(made.model_dump(mode="json", exclude_none=True)))
    record = tmp_path / "docs" / "results" / "experiments" / "name.json"
    write_run(made, tmp_path / "old", SHIFTS, variant="main")
    write_records(record, collect("name", made, tmp_path / "old", [], quiet))
    command = ["compare", str(file), "--docs", str(tmp_path / "docs"), "--out", str(tmp_path / "new")]
    nothing = CliRunner().invoke(experiment.app, command)
    assert isinstance(nothing.exception, RunError)
    assert "expected a finished run that has trained anew what name has" in str(nothing.exception)
    train_again(made, tmp_path / "new", SHIFTS[ALONE])
    done = CliRunner().invoke(experiment.app, command)
    assert done.exit_code == 0 and "unet_local, seed 0: the same" in done.output
    assert read_records(record)["runs"][0]["methods"][ALONE][REPEATED]
    assert "Other trainings" in (tmp_path / "docs" / "experiments_results.md").read_text()
