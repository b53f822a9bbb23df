"""Records are made of what is there: ours of a piece, baselines of other pieces and of earlier records."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiment_runs import BOTH, BUDGET, PIECES, SHIFTS, in_pieces, plan, quiet, write_run
from pydantic import ValidationError
from tiny_runs import TINY

from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.plan import planned_runs
from ppcmi_fast.experiments.records import REPEATED, record_of


def test_the_table_brings_pieces_together_that_no_run_has_in_one(tmp_path: Path) -> None:
    made = in_pieces(**{"codec.rounds": 9})
    write_run(made, tmp_path, {"ppcmi": 0.0, "ppcmi_float32": 0.1}, variant="ours")
    # What a piece has of ours is worth nothing.
    write_run(made, tmp_path, {"ppcmi": -0.7, "unet_centralised": 0.05}, variant="pooled")
    lines: list[str] = []
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", made, tmp_path, [], lines.append)
    assert lines == ["not yet: main, seed 0, which wants unet_local"]
    write_run(made, tmp_path, {"ppcmi": -0.7, "unet_local": -0.2}, variant="local")
    (record,) = collect("name", made, tmp_path, [], quiet)["runs"]
    assert record["variant"] == "main" and record["settings"]["baselines"]["methods"] == BOTH
    assert list(record["methods"]) == ["ppcmi", "ppcmi_float32", *BOTH]
    ours, pooled = (record_of(tmp_path / name / "seed-0", name, 0) for name in ("ours", "pooled"))
    assert record["methods"]["ppcmi"] == ours["methods"]["ppcmi"]
    assert record["methods"]["unet_centralised"] == pooled["methods"]["unet_centralised"]
    assert record["thresholds"] == ours["thresholds"] and record["settings"]["codec"]["rounds"] == 9
    # A run that has all of it goes before its parts.
    write_run(made, tmp_path, SHIFTS, variant="main")
    lines.clear()
    (whole,) = collect("name", made, tmp_path, [record], lines.append)["runs"]
    assert list(whole["methods"]) == list(SHIFTS)
    assert lines == ["replaced: main, seed 0, unet_centralised, unet_local"]


def test_ours_of_one_variant_serves_another_that_differs_in_baselines(tmp_path: Path) -> None:
    other = {"name": "others", "settings": {"baselines.methods": ["fedavg"]}}
    piece = {**PIECES[1], "name": "averaged", "settings": other["settings"]}
    made = plan(settings=BUDGET | {"codec.rounds": 9}, variants=[*PIECES, piece, other])
    write_run(made, tmp_path / "old", SHIFTS, variant="main")
    kept = collect("name", made, tmp_path / "old", [], quiet)["runs"]
    write_run(made, tmp_path / "new", {"ppcmi": -0.7, "fedavg": 0.0}, variant="averaged")
    result = collect("name", made, tmp_path / "new", kept, quiet)
    assert [list(r["methods"]) for r in result["runs"]] == [list(SHIFTS), ["ppcmi", "fedavg"]]
    assert result["runs"][1]["methods"]["ppcmi"] == kept[0]["methods"]["ppcmi"]


def test_baselines_outlive_other_settings_of_ours(tmp_path: Path) -> None:
    write_run(in_pieces(), tmp_path / "old", SHIFTS, variant="main")
    kept = collect("name", in_pieces(), tmp_path / "old", [], quiet)["runs"]
    better = in_pieces(**{"codec.rounds": 7})
    write_run(better, tmp_path / "new", {"ppcmi": -0.1}, variant="ours")
    lines: list[str] = []
    (record,) = collect("name", better, tmp_path / "new", kept, lines.append)["runs"]
    assert lines == ["replaced: main, seed 0, ppcmi"]
    # Under other settings it is no other training of the same.
    assert REPEATED not in record["methods"]["ppcmi"]
    assert record["settings"]["codec"]["rounds"] == 7 and list(record["methods"]) == list(SHIFTS)
    assert record["methods"]["ppcmi"] != kept[0]["methods"]["ppcmi"]
    assert [record["methods"][name] for name in BOTH] == [kept[0]["methods"][name] for name in BOTH]
    # Kept as it is now, and as long as the plan is.
    assert collect("name", better, tmp_path / "none", [record], quiet)["runs"] == [record]
    kept[0]["environment"] = kept[0]["environment"] | {"cpu": "another"}
    mixed = collect("name", better, tmp_path / "new", kept, lines.append)
    assert mixed["runs"][0]["methods"]["unet_local"]["environment"]["cpu"] == "another"
    assert "1 thread of x, or 1 thread of another" in tables.page([mixed])


@pytest.mark.parametrize(
    "settings",
    [{"baselines.rounds": 3}, {"baselines.images": 200}, {"reading.drop_empty": True}],
    ids=["settings", "budget", "data"],
)
def test_baselines_of_another_comparison_are_not_taken(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_run(in_pieces(), tmp_path / "old", SHIFTS, variant="main")
    kept = collect("name", in_pieces(), tmp_path / "old", [], quiet)["runs"]
    other = in_pieces(**({"codec.rounds": 7} | settings))
    write_run(other, tmp_path / "new", {"ppcmi": 0.2}, variant="ours")
    lines: list[str] = []
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", other, tmp_path / "new", kept, lines.append)
    assert len(lines) == 1 and lines[0].startswith("dropped: main, seed 0, of other settings (")


def test_baselines_of_other_subjects_are_not_taken(tmp_path: Path) -> None:
    write_run(in_pieces(), tmp_path / "old", SHIFTS, variant="main", subjects=range(1, 7))
    kept = collect("name", in_pieces(), tmp_path / "old", [], quiet)["runs"]
    better = in_pieces(**{"codec.rounds": 7})
    write_run(better, tmp_path / "new", {"ppcmi": 0.2}, variant="ours")
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", better, tmp_path / "new", kept, lambda line: None)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ({"hidden": False}, "expected hidden = true and no networks_from"),
        ({"networks_from": "ours"}, r"got hidden = true, networks_from = 'ours'"),
    ],
)
def test_baselines_alone_are_a_hidden_piece_of_its_own(piece: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan(settings=BUDGET, variants=[PIECES[0], {**PIECES[1], **piece}])


def test_baselines_alone_need_a_budget(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"variants.pooled.baselines_only: expected baselines.images, .* got 0"
    ):
        planned_runs(in_pieces(**{"baselines.images": 0}), tmp_path)


@pytest.mark.parametrize("chosen", [0.004, 0.001])
def test_a_piece_that_chose_its_rate_serves_a_plan_that_gives_it(tmp_path: Path, chosen: float) -> None:
    tried = in_pieces(**{"baselines.learning_rates": [0.001, 0.004]})
    write_run(tried, tmp_path, SHIFTS, variant="pooled")
    path = tmp_path / "pooled" / "seed-0" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["methods"]["unet_centralised"]["learning_rate"] = chosen
    path.write_text(json.dumps(metrics))
    given = in_pieces(**{"baselines.method_rates": {"unet_centralised": 0.004}})
    for variant in ("ours", "local"):
        write_run(given, tmp_path, SHIFTS, variant=variant)
    if chosen == 0.004:
        (record,) = collect("name", given, tmp_path, [], lambda line: None)["runs"]
        assert record["methods"]["unet_centralised"]["learning_rate"] == chosen
        return
    lines: list[str] = []
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", given, tmp_path, [], lines.append)
    assert lines[-1] == "not yet: main, seed 0, which wants unet_centralised"


def test_of_pieces_of_an_earlier_plan_baselines_are_taken_and_nothing_else(tmp_path: Path) -> None:
    for variant, shifts in (("ours", {"ppcmi": 0.0}), ("pooled", SHIFTS), ("local", SHIFTS)):
        write_run(in_pieces(), tmp_path, shifts, variant=variant)
    other = in_pieces(mask_mixing="hadamard")
    lines: list[str] = []
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", other, tmp_path, [], lines.append)
    reason = "seed 0, of other settings (mask_mixing: haar -> hadamard)"
    good = ("left aside", *(f"good for {method} alone" for method in BOTH))
    assert lines == [
        f"{use}: {name}, {reason}" for use, name in zip(good, ("ours", "pooled", "local"), strict=True)
    ]
    shutil.rmtree(tmp_path / "ours")
    write_run(other, tmp_path, {"ppcmi": -0.1}, variant="ours")
    (record,) = collect("name", other, tmp_path, [], lambda line: None)["runs"]
    assert record["settings"]["mask_mixing"] == "hadamard" and list(record["methods"]) == list(SHIFTS)


@pytest.mark.parametrize(
    ("section", "name", "then", "now"),
    [
        ("mapper", "start", "nothing", "head"),
        ("codec", "work", "equal", "images"),
        ("baselines", "work", "equal", "images"),
        ("", "mask_mixing", "hadamard", "haar"),
        ("", "mask_weights", [1.0, 1.0], [0.7, 1.75]),
    ],
)
def test_records_from_before_a_setting_was_there_did_as_was_done_then(
    tmp_path: Path, section: str, name: str, then: Any, now: Any
) -> None:
    settings = TINY | {"baselines.methods": ["fedavg"]}
    setting = f"{section}.{name}".removeprefix(".")
    made = plan(settings=settings | {setting: then})
    write_run(made, tmp_path, {"ppcmi": 0.0, "fedavg": 0.1})
    kept = collect("name", made, tmp_path, [], quiet)["runs"]
    del (kept[0]["settings"][section] if section else kept[0]["settings"])[name]
    assert collect("name", made, tmp_path / "none", copy.deepcopy(kept), quiet)["runs"] == kept
    lines: list[str] = []
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", plan(settings=settings), tmp_path / "none", kept, lines.append)
    assert lines == [f"dropped: one, seed 0, of other settings ({setting}: {then} -> {now})"]
