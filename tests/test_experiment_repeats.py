"""What was trained anew is compared with its record; what was taken over is no repetition."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from test_experiment_pieces import in_pieces
from test_experiment_tables import SHIFTS, quiet, write_run
from typer.testing import CliRunner

from ppcmi_fast.cli import experiment
from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.plan import Plan, planned_runs
from ppcmi_fast.experiments.records import REPEATED, read_records, write_records
from ppcmi_fast.experiments.repeats import compare_repeats

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
    write_run(made, out / "other", {"ppcmi": -0.3, "fedavg": 0.0, method: shift}, variant=variant, **options)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["methods"][method] |= {"seconds": seconds, "learning_rate": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    run = next(r for r in planned_runs(made, Path("data")) if r.variant == variant)
    (folder / "config.toml").write_text(run.config.to_toml())


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
    train_again(made, tmp_path / "new", SHIFTS[ALONE] + 0.02)
    shutil.move(tmp_path / "new" / "other" / "local", tmp_path / "new" / "local")
    (record,) = collect("name", made, tmp_path / "new", runs, quiet)["runs"]
    ours, alone = record["methods"]["ppcmi"], record["methods"][ALONE]
    assert ours == runs[0]["methods"]["ppcmi"] and alone["seconds"] == 70
    first, replaced = alone[REPEATED]
    # Of the repetition no scores are kept that would say how far from the new one it is.
    assert first == before[REPEATED][0] | {"largest_difference": None}
    assert replaced["seconds"] == before["seconds"] and replaced["environment"] == record["environment"]
    assert replaced["largest_difference"] == pytest.approx(0.02, abs=1e-6)
    text = f"came to another Dice: U-Net, each site alone (seed 0) 0.610, {replaced['dice']:.3f}."
    assert text in tables.page([collect("name", made, tmp_path / "none", [record], quiet)])
    # Read again, it says nothing more.
    assert collect("name", made, tmp_path / "new", [record], quiet)["runs"] == [record]


@pytest.mark.parametrize(
    ("shift", "known", "noted"), [(0.0, 0.1, 0.1), (0.02, 0.0, 0.02)], ids=["same as new", "same as kept"]
)
def test_a_repetition_that_is_known_to_differ_by_as_much_says_so(
    tmp_path: Path, shift: float, known: float, noted: float
) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    entries = [
        {"seconds": s, "dice": 0.61, "largest_difference": known, "environment": {}} for s in (50.0, 70.0)
    ]
    runs[0]["methods"][ALONE][REPEATED] = entries
    train_again(made, tmp_path / "new", SHIFTS[ALONE] + shift)
    shutil.move(tmp_path / "new" / "other" / "local", tmp_path / "new" / "local")
    (record,) = collect("name", made, tmp_path / "new", runs, quiet)["runs"]
    # The repetition of 70 s is what has taken the place.
    first, replaced = record["methods"][ALONE][REPEATED]
    assert first["largest_difference"] == pytest.approx(noted, abs=1e-6) and first["seconds"] == 50
    assert replaced["largest_difference"] == pytest.approx(shift, abs=1e-6) and replaced["seconds"] == 60


def test_networks_that_are_scored_otherwise_are_no_other_training(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    runs[0]["methods"][ALONE]["scores"][0][3] = [0.5]
    runs[0]["methods"][ALONE][REPEATED] = [{"seconds": 50.0, "dice": 0.6, "largest_difference": 0.0}]
    (again,) = collect("name", made, tmp_path / "old", runs, quiet)["runs"]
    assert REPEATED not in again["methods"][ALONE]


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
    with pytest.raises(RunError, match="expected scores of the record's held-out images, got others"):
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
