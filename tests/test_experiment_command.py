"""The commands that list, run and table experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from experiment_runs import plan
from typer.testing import CliRunner

from ppcmi_fast.cli import experiment
from ppcmi_fast.cli.app import app
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.experiments import runner


def write_plan(root: Path, name: str, **changes: Any) -> None:
    """A plan of one tiny run on a phantom, in the folder of experiments; `changes` replace what it says."""
    (root / "experiments").mkdir(exist_ok=True)
    values = {"title": "T", "question": "Q?", "rows": "data" not in changes, **changes}
    made = plan(**values).model_dump(mode="json", exclude_none=True)
    (root / "experiments" / f"{name}.toml").write_text(tomli_w.dumps(made))


def test_the_command_runs_lists_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = CliRunner().invoke
    assert call(app, ["experiment", "list"]).exit_code != 0
    write_plan(tmp_path, "small")
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


def test_several_experiments_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[tuple[str, float]] = []

    def made(plan: Any, folder: Path, *, max_minutes: float, **options: Any) -> bool:
        given.append((folder.name, max_minutes))
        clock[0] += 240.0
        return True

    clock = [0.0]
    monkeypatch.setattr(runner, "run_experiment", made)
    monkeypatch.setattr("ppcmi_fast.cli.experiment.time.monotonic", lambda: clock[0])
    for name in ("small", "other", "third"):
        write_plan(tmp_path, name)
    run = ["experiment", "run", "small", "other", "third", "--out", "runs"]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.output
    assert given == [("small", 0.0), ("other", 0.0), ("third", 0.0)]
    # Together they take no longer than was said: four minutes each of seven.
    given.clear()
    result = CliRunner().invoke(app, [*run, "--max-minutes", "7"])
    assert given == [("small", 7.0), ("other", 3.0)]
    said = [line for line in result.output.splitlines() if "runs/" in line]
    assert said == ["done: runs/small", "done: runs/other", "not begun: runs/third"]


def test_what_is_wrong_with_one_of_several_is_said_before_any_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run_experiment", lambda *_, **__: pytest.fail("an experiment was run"))
    for name in ("small", "other"):
        write_plan(tmp_path, name)
    for name, changes in (("nowhere", {"data": "$NOWHERE/x"}), ("wrong", {"settings": {"codec.round": 1}})):
        write_plan(tmp_path, name, **changes)
    for options, message in (
        (["nothing"], "expected an experiment file, found none"),
        (["nowhere"], "data: expected a data set's folder"),
        (["wrong"], "codec.round"),
        (
            ["experiments/small.toml"],
            "expected experiments of different names, got experiments/small.toml, exp",
        ),
        (["other", "--only", "one"], "--only: expected one experiment with it, got 2"),
        (["other", "--seed", "0"], "--seed: expected one experiment with it, got 2"),
    ):
        result = CliRunner().invoke(experiment.app, ["run", "small", *options])
        assert isinstance(result.exception, ConfigError) and message in str(result.exception)
