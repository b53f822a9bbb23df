"""The page begins with the comparisons side by side, and says where each question is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiment_runs import POOLED, SHIFTS, plan, quiet, write_run

from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.overview import anchor, overview


def comparison(folder: Path, name: str, variant: str, shifts: dict[str, float]) -> dict[str, Any]:
    made = plan(title=f"Title: {name}", variants=[{"name": variant}])
    write_run(made, folder / name, shifts, variant=variant)
    return collect(name, made, folder / name, [], quiet)


def test_comparisons_stand_side_by_side_as_in_their_sections(tmp_path: Path) -> None:
    results = [
        comparison(tmp_path, "comparison_x", "main", SHIFTS | {"ppcmi_float32": 0.0}),
        comparison(tmp_path, "phantom_y", "all", {"ppcmi": 0.0, POOLED: -0.3, "fedavg": -0.4}),
        # No comparison of methods, and one without a pooled network.
        comparison(tmp_path, "grids", "main", SHIFTS),
        comparison(tmp_path, "comparison_z", "main", {"ppcmi": 0.0, "fedavg": -0.4}),
    ]
    lines = overview(results)
    head, _, first, second = (line.split(" | ") for line in lines if line.startswith("|"))
    assert head[1:-3] == [
        "seeds",
        "PPCMI (ours)",
        "U-Net, all data pooled",
        "U-Net, each site alone",
        "FedAvg of the U-Net",
    ]
    assert first[0] == "| [Title: comparison_x](#title-comparison_x)"
    assert second[0].startswith("| [Title: phantom_y]")
    assert (first[5], second[4]) == ("–", "–")
    for row, result in ((first, results[0]), (second, results[1])):
        cells = [line.split(" | ") for line in tables.section(result).splitlines()]
        ours, pooled = (
            next(c for c in cells if c[0] == f"| {title}")
            for title in ("PPCMI (ours)", "U-Net, all data pooled")
        )
        assert (row[2], row[3]) == (ours[1], pooled[1]) and row[-3:-1] == pooled[3:5]
        assert row[-1].rstrip(" |") == pooled[5]
    assert first[3].startswith("**") and second[2].startswith("**") and not second[3].startswith("**")
    asked = [line for line in lines if line.startswith("- ")]
    assert asked[2] == "- [Title: grids](#title-grids): A question?"


def test_without_a_comparison_there_is_no_table(tmp_path: Path) -> None:
    lines = overview([comparison(tmp_path, "grids", "main", SHIFTS)])
    assert lines[:4] == ["## At a glance", "", "What is asked:", ""]
    assert lines[4:] == ["- [Title: grids](#title-grids): A question?", ""]


@pytest.mark.parametrize(
    ("title", "found"),
    [("Dice, of 4 bits: what?", "dice-of-4-bits-what"), ("A late-site_1 (of x)", "a-late-site_1-of-x")],
)
def test_anchors_are_those_of_headings(title: str, found: str) -> None:
    assert anchor(title) == found
