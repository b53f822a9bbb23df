"""docs/make_results.py: the page says of every goal what the figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make_results
import pytest
from fabricated_run import make_metrics, make_run

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "make_results.py"


def sunnybrook(**changes: Any) -> dict[str, Any]:
    """Figures of a run that meets every goal, changed by `changes`."""
    metrics = make_metrics(classes=2)
    north = metrics["dataset"]["sites"]["north"]
    metrics["dataset"] |= {
        "name": "sunnybrook",
        "sites": dict.fromkeys(("HF-I", "HF-NI", "HYP", "N"), north),
    }
    return metrics | changes


def goal(text: str, runs: dict[str, Any], import_time: dict[str, float] | None = None) -> Any:
    """The one goal whose text contains `text`."""
    (found,) = [goal for goal in make_results.goals(runs, import_time) if text in goal.text]
    return found


def test_nothing_measured_says_so() -> None:
    lines = make_results.goals({}, None)
    assert len(lines) == 4
    assert all(line.met is None for line in lines)
    assert "not measured" in make_results.page({}, {}, None)


@pytest.mark.parametrize(("seconds", "met"), [(299, True), (300, False), (None, None)])
def test_demo_time(seconds: float | None, met: bool | None) -> None:
    run = make_metrics(seconds={"codec": 10.0} | ({"total": seconds} if seconds else {}))
    assert goal("ppcmi demo", {"demo": run}).met is met


@pytest.mark.parametrize(
    ("total", "memory", "met"), [(2399, 5999, (True, True)), (2400, 6000, (False, False))]
)
def test_sunnybrook_time_and_memory(total: float, memory: float, met: tuple[bool, bool]) -> None:
    runs = {"sunnybrook": sunnybrook(seconds={"total": total}, peak_rss_mb=memory)}
    assert (goal("40 minutes", runs).met, goal("6 GB", runs).met) == met


def test_a_smaller_run_says_nothing_about_the_time() -> None:
    run = sunnybrook()
    run["dataset"]["size"] = 64
    assert goal("40 minutes", {"sunnybrook": run}).met is None
    assert goal("6 GB", {"sunnybrook": run}).met is None


@pytest.mark.parametrize(("ours", "local", "met"), [(0.80, 0.80, True), (0.79, 0.80, False)])
def test_against_each_site_alone(ours: float, local: float, met: bool) -> None:
    run = sunnybrook()
    run["methods"]["ppcmi"]["dice"]["mean"] = ours
    run["methods"]["unet_local"]["dice"]["mean"] = local
    assert goal("per-site U-Nets", {"sunnybrook": run}).met is met


@pytest.mark.parametrize(("ours", "met"), [(0.82, True), (0.80, True), (0.799, False), (0.70, False)])
def test_against_the_pooled_unet(ours: float, met: bool) -> None:
    run = sunnybrook()
    run["methods"]["ppcmi"]["dice"]["mean"] = ours
    run["methods"]["unet_centralised"]["dice"]["mean"] = 0.83
    assert goal("within 3 points", {"sunnybrook": run}).met is met


def test_a_pooled_unet_that_saw_fewer_images_proves_nothing() -> None:
    run = sunnybrook()
    run["methods"]["unet_centralised"]["images_seen"] = 12000
    found = goal("within 3 points", {"sunnybrook": run})
    assert found.met is False
    assert "saw fewer" in found.measured


@pytest.mark.parametrize("change", [{"trust": "server"}, {"bits_up": 8}, {"bits_down": 32}])
def test_other_settings_say_nothing_about_the_accuracy_goals(change: dict[str, Any]) -> None:
    run = sunnybrook()
    run["config"] |= change
    assert goal("per-site U-Nets", {"sunnybrook": run}).met is None
    assert goal("within 3 points", {"sunnybrook": run}).met is None


@pytest.mark.parametrize(("added", "met"), [(0.29, True), (0.31, False)])
def test_import_time(added: float, met: bool) -> None:
    assert goal("import ppcmi_fast", {}, {"added_seconds": added}).met is met


def test_import_seconds_takes_medians_of_turns() -> None:
    times = iter([9.0, *([1.0, 1.2] * 3)])
    figures = make_results.import_seconds(lambda statement: next(times), repeats=3)
    assert figures["added_seconds"] == pytest.approx(0.2)


def test_page_shows_the_figures_with_units() -> None:
    text = make_results.page({"sunnybrook": sunnybrook()}, {"sunnybrook": "Tried: two things."}, None)
    for part in (
        "HD95 (mm)",
        "ASD (mm)",
        "Dice HYP",
        "12,544 + 2,304 bytes at 128 × 128",
        "9.70 ms",
        "2.10 GB",
    ):
        assert part in text, part
    assert "Tried: two things." in text
    assert "U-Net, all data pooled" in text
    assert "21 min 00 s" in text
    assert "HD95 (px)" in make_results.page({"x": make_metrics(unit="px")}, {}, None)


def test_rows_of_a_table_have_the_width_of_its_head() -> None:
    text = make_results.page({"demo": make_metrics(), "sunnybrook": sunnybrook()}, {}, {"added_seconds": 0.1})
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_add_write_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "demo", examples=False, command="ppcmi demo --out /home/someone/runs/demo")
    assert make_results.main(["--add", str(run)], docs=tmp_path) == 0
    kept = (tmp_path / "results" / "demo.json").read_text(encoding="utf-8")
    assert "/home" not in kept
    assert json.loads(kept)["config"]["data"] == "data"
    assert "## demo" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert make_results.main(["--check"], docs=tmp_path) == 0
    (tmp_path / "results.md").write_text("by hand", encoding="utf-8")
    assert make_results.main(["--check"], docs=tmp_path) == 1
    assert "out of date" in capsys.readouterr().err


def test_a_damaged_figure_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "bad.json").write_text("{", encoding="utf-8")
    assert make_results.main([], docs=tmp_path) == 2
    assert "bad.json" in capsys.readouterr().err
