"""Records are made of what is there: ours of a piece, baselines of other pieces and of earlier records."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from test_experiment_tables import SHIFTS, quiet, write_run
from test_experiments import plan
from tiny_runs import TINY

from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.plan import Plan
from ppcmi_fast.experiments.records import collect, record_of

BOTH = ["unet_centralised", "unet_local"]
PIECES: list[dict[str, Any]] = [
    {"name": "ours", "hidden": True},
    {"name": "pooled", "hidden": True, "settings": {"baselines.methods": BOTH[:1]}},
    {"name": "main", "settings": {"baselines.methods": BOTH}},
]
BUDGET = TINY | {"baselines.images": 100}


def in_pieces(**settings: Any) -> Plan:
    return plan(settings=BUDGET | settings, variants=PIECES)


def test_what_pieces_have_stands_in_the_table_before_one_run_has_all(tmp_path: Path) -> None:
    made = in_pieces()
    write_run(made, tmp_path, {"ppcmi": 0.0, "ppcmi_float32": 0.1}, variant="ours")
    write_run(made, tmp_path, {"ppcmi": 0.0, "unet_centralised": 0.05}, variant="pooled")
    result = collect("name", made, tmp_path, [], quiet)
    (record,) = result["runs"]
    assert record["variant"] == "main" and list(record["methods"]) == [
        "ppcmi",
        "ppcmi_float32",
        "unet_centralised",
    ]
    pooled = record_of(tmp_path / "pooled" / "seed-0", "pooled", 0)
    assert record["methods"]["unet_centralised"] == pooled["methods"]["unet_centralised"]
    assert "Not yet measured: U-Net, each site alone in main (seed 0)." in tables.page([result])
    # What was kept unfinished takes what is finished since; all of it goes before its parts.
    write_run(made, tmp_path / "later", SHIFTS, variant="main")
    later = collect("name", made, tmp_path / "later", result["runs"], quiet)
    assert list(later["runs"][0]["methods"]) == list(SHIFTS) and "Not yet" not in tables.page([later])
    without = [v for v in PIECES if v["name"] != "pooled"]
    local = plan(
        settings=BUDGET, variants=[*without, {**PIECES[1], "settings": {"baselines.methods": BOTH[1:]}}]
    )
    write_run(local, tmp_path / "local", {"ppcmi": 0.0, "unet_local": -0.2}, variant="pooled")
    filled = collect("name", local, tmp_path / "local", result["runs"], quiet)
    assert list(filled["runs"][0]["methods"]) == [*record["methods"], "unet_local"]


def test_baselines_outlive_other_settings_of_ours(tmp_path: Path) -> None:
    write_run(in_pieces(), tmp_path / "old", SHIFTS, variant="main")
    kept = collect("name", in_pieces(), tmp_path / "old", [], quiet)["runs"]
    better = in_pieces(**{"codec.rounds": 7})
    write_run(better, tmp_path / "new", {"ppcmi": -0.1}, variant="ours")
    (record,) = collect("name", better, tmp_path / "new", kept, quiet)["runs"]
    assert record["settings"]["codec"]["rounds"] == 7 and list(record["methods"]) == list(SHIFTS)
    assert record["methods"]["ppcmi"] != kept[0]["methods"]["ppcmi"]
    assert [record["methods"][name] for name in BOTH] == [kept[0]["methods"][name] for name in BOTH]
    # Kept as it is now, and as long as the plan is.
    assert collect("name", better, tmp_path / "none", [record], quiet)["runs"] == [record]
    kept[0]["environment"] = kept[0]["environment"] | {"cpu": "another"}
    mixed = collect("name", better, tmp_path / "new", kept, quiet)
    assert mixed["runs"][0]["methods"]["unet_local"]["environment"]["cpu"] == "another"
    assert "1 thread of x, or 1 thread of another" in tables.page([mixed])


@pytest.mark.parametrize(
    "settings",
    [{"baselines.rounds": 3}, {"baselines.images": 0}, {"reading.drop_empty": True}],
    ids=["budget", "as many as ours", "data"],
)
def test_baselines_of_another_comparison_are_not_taken(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_run(in_pieces(), tmp_path / "old", SHIFTS, variant="main")
    kept = collect("name", in_pieces(), tmp_path / "old", [], quiet)["runs"]
    other = in_pieces(**({"codec.rounds": 7} | settings))
    write_run(other, tmp_path / "new", {"ppcmi": 0.2}, variant="ours")
    (record,) = collect("name", other, tmp_path / "new", kept, quiet)["runs"]
    assert list(record["methods"]) == ["ppcmi"]


def test_baselines_of_other_subjects_are_not_taken(tmp_path: Path) -> None:
    write_run(in_pieces(), tmp_path / "old", SHIFTS, variant="main", subjects=range(1, 7))
    kept = collect("name", in_pieces(), tmp_path / "old", [], quiet)["runs"]
    better = in_pieces(**{"codec.rounds": 7})
    write_run(better, tmp_path / "new", {"ppcmi": 0.2}, variant="ours")
    assert list(collect("name", better, tmp_path / "new", kept, quiet)["runs"][0]["methods"]) == ["ppcmi"]


def test_pieces_of_an_earlier_plan_are_left_aside(tmp_path: Path) -> None:
    write_run(in_pieces(), tmp_path, {"ppcmi": 0.0}, variant="ours")
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", in_pieces(**{"codec.rounds": 7}), tmp_path, [], quiet)


def test_records_from_before_the_mapper_had_a_start_began_from_nothing(tmp_path: Path) -> None:
    made = plan(settings=TINY | {"mapper.start": "nothing"})
    write_run(made, tmp_path, SHIFTS)
    kept = collect("name", made, tmp_path, [], quiet)["runs"]
    del kept[0]["settings"]["mapper"]["start"]
    assert collect("name", made, tmp_path / "none", copy.deepcopy(kept), quiet)["runs"] == kept
    lines: list[str] = []
    with pytest.raises(RunError, match="expected finished runs, found none"):
        collect("name", plan(), tmp_path / "none", kept, lines.append)
    assert lines == ["dropped: one, seed 0, of other settings (mapper.start: nothing -> auto)"]
