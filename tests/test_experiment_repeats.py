"""Baselines that were trained anew are compared with their records; what was taken over is no repetition."""

from __future__ import annotations

import json
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
from ppcmi_fast.experiments.plan import Plan, planned_runs
from ppcmi_fast.experiments.records import REPEATED, collect, read_records, write_records
from ppcmi_fast.experiments.repeats import compare_repeats

ALONE = "unet_local"


def kept_runs(made: Plan, tmp_path: Path) -> list[dict[str, Any]]:
    write_run(made, tmp_path / "old", SHIFTS, variant="main")
    runs: list[dict[str, Any]] = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    return runs


def train_again(
    made: Plan, out: Path, shift: float, *, seconds: float = 70.0, variant: str = "local", **options: Any
) -> None:
    folder = out / "other" / variant / "seed-0"
    write_run(made, out / "other", {"ppcmi": -0.3, "fedavg": 0.0, ALONE: shift}, variant=variant, **options)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["methods"][ALONE] |= {"seconds": seconds, "learning_rate": None}
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
    line = "Trained anew, as `ppcmi experiment compare` found, the same Dice of every held-out subject: U-Net, each"
    page = tables.page([collect("name", made, tmp_path / "none", runs, quiet)])
    assert f"{line} site alone (seed 0).\n" in page and "another Dice" not in page


def test_a_table_keeps_what_is_known_of_repetitions_until_the_run_is_another(tmp_path: Path) -> None:
    made = in_pieces()
    runs = kept_runs(made, tmp_path)
    train_again(made, tmp_path / "new", -0.1)
    compare_repeats(made, runs, tmp_path / "new")
    # The run is still there, and read again.
    (again,) = collect("name", made, tmp_path / "old", runs, quiet)["runs"]
    assert again["methods"][ALONE][REPEATED] == runs[0]["methods"][ALONE][REPEATED]
    runs[0]["methods"][ALONE]["seconds"] = 50.0
    (other,) = collect("name", made, tmp_path / "old", runs, quiet)["runs"]
    assert REPEATED not in other["methods"][ALONE]


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
    assert "expected a finished run with a baseline of name that was trained anew" in str(nothing.exception)
    train_again(made, tmp_path / "new", SHIFTS[ALONE])
    done = CliRunner().invoke(experiment.app, command)
    assert done.exit_code == 0 and "unet_local, seed 0: the same" in done.output
    assert read_records(record)["runs"][0]["methods"][ALONE][REPEATED]
    assert "Trained anew" in (tmp_path / "docs" / "experiments_results.md").read_text()
