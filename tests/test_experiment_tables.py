"""Records merge, the page and its pictures come from records alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_runs import POOLED, SHIFTS, plan, quiet, write_run
from tiny_runs import TINY

from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.figures import draw_rows
from ppcmi_fast.experiments.records import read_records, threshold_rule, write_records
from ppcmi_fast.federation.calibration import RULE_OF_IMAGES, RULE_OF_SUMS

ROOT = Path(__file__).resolve().parents[1]


def test_records_of_before_stay_until_the_plan_changes(tmp_path: Path) -> None:
    two = plan(seeds=[0, 1], variants=[{"name": "one"}, {"name": "piece", "hidden": True}])
    write_run(two, tmp_path / "here", SHIFTS, seed=0)
    write_run(two, tmp_path / "here", SHIFTS, seed=0, variant="piece")
    write_run(two, tmp_path / "there", SHIFTS, seed=1)
    first = collect("name", two, tmp_path / "here", [], quiet)
    assert [r["seed"] for r in first["runs"]] == [0] and first["planned"] == [["one", 0], ["one", 1]]
    assert "Not yet measured: one (seed 1)." in tables.page([first])
    write_records(tmp_path / "kept.json", first)
    kept = read_records(tmp_path / "kept.json")
    assert kept == first
    both = collect("name", two, tmp_path / "there", kept["runs"], quiet)
    assert [r["seed"] for r in both["runs"]] == [0, 1] and "Not yet" not in tables.page([both])
    # A setting that was not there yet counts as its default; others tell what changed.
    old = copy.deepcopy(both["runs"])
    del old[0]["settings"]["calibrate"]
    assert len(collect("name", two, tmp_path / "none", old, quiet)["runs"]) == 2
    lines: list[str] = []
    changed = plan(seeds=[0, 1], settings=TINY | {"codec.rounds": 7})
    write_run(changed, tmp_path / "new", SHIFTS, seed=0)
    assert len(collect("name", changed, tmp_path / "new", old, lines.append)["runs"]) == 1
    assert lines[0] == "dropped: one, seed 0, of other settings (codec.rounds: 1 -> 7)"
    lines.clear()
    renamed = plan(variants=[{"name": "another"}])
    write_run(renamed, tmp_path / "renamed", SHIFTS, variant="another")
    collect("name", renamed, tmp_path / "renamed", old[:1], lines.append)
    assert lines == ["dropped: one, seed 0, no longer planned"]
    old[0]["settings"]["gone"] = 1
    lines.clear()
    collect("name", two, tmp_path / "there", old, lines.append)
    assert lines == ["dropped: one, seed 0, of settings that this version does not take"]
    with pytest.raises(
        RunError, match=r"expected the run of the plan, got one of other settings \(codec.rounds"
    ):
        collect("name", changed, tmp_path / "here", [], quiet)
    with pytest.raises(RunError, match="expected finished runs, found none; ppcmi experiment run"):
        collect("name", two, tmp_path / "none", [], quiet)


def test_the_page_says_which_learning_rates_were_chosen(tmp_path: Path) -> None:
    tried = {
        "baselines.methods": ["unet_centralised", "published"],
        "baselines.learning_rates": [0.004, 0.0005],
    }
    two = plan(settings=TINY | tried, seeds=[0, 1])
    for seed in (0, 1):
        write_run(two, tmp_path, {"ppcmi": 0.0, "unet_centralised": 0.1, "published": -0.1}, seed=seed)
    both = collect("name", two, tmp_path, [], quiet)
    for record, rate in zip(both["runs"], (0.004, 0.0005), strict=True):
        record["methods"]["unet_centralised"]["learning_rate"] = rate
    said = "Learning rates that validation chose of 0.0005, 0.004: U-Net, all data pooled 0.0005, 0.004."
    assert said in tables.page([both])
    both["runs"][1]["methods"]["unet_centralised"]["learning_rate"] = 0.004
    assert "all data pooled 0.004." in tables.page([both])
    both["runs"][1]["settings"]["baselines"]["learning_rates"] = [0.004, 0.008]
    for rates in ("0.0005, 0.004", "0.004, 0.008"):
        said = f"Learning rates that validation chose of {rates}: U-Net, all data pooled 0.004."
        assert said in tables.page([both]).splitlines()
    for record in both["runs"]:
        record["settings"]["baselines"]["learning_rates"] = []
    assert "Learning rates" not in tables.page([both])


def test_the_page_names_other_networks_than_the_residual_one(tmp_path: Path) -> None:
    tried = {"baselines.methods": [POOLED, "published"], "baselines.learning_rates": [0.001, 0.002]}
    two = plan(
        settings=TINY | tried,
        variants=[{"name": "one"}, {"name": "two", "settings": {"baselines.architecture": "dynunet"}}],
    )
    for variant in ("one", "two"):
        shifts = {"ppcmi": 0.0, "ppcmi_float32": 0.0, POOLED: 0.1, "published": -0.1}
        write_run(two, tmp_path, shifts, variant=variant)
    both = collect("name", two, tmp_path, [], quiet)
    for record, rate in zip(both["runs"], (0.001, 0.002), strict=True):
        record["methods"][POOLED]["learning_rate"] = rate
    page = tables.page([both])
    for title in ("U-Net, all data pooled", "DynUNet, all data pooled"):
        assert page.count(f" | {title} | ") == 1  # of all methods
        assert page.count(f"\n| {title} | ") == 1  # by site
    assert page.count(" | PPCMI-SF as published | ") == 2
    chosen = "U-Net, all data pooled 0.001; DynUNet, all data pooled 0.002."
    assert f"Learning rates that validation chose of 0.001, 0.002: {chosen}" in page


def test_the_page_says_whose_the_points_are_that_ours_is_below(tmp_path: Path) -> None:
    one = plan(settings=TINY | {"baselines.methods": [POOLED, "fedavg"]})
    write_run(one, tmp_path, {"ppcmi": 0.0, "ppcmi_float32": 0.1, POOLED: 0.02, "fedavg": 0.02})
    result = collect("name", one, tmp_path, [], quiet)
    methods = result["runs"][0]["methods"]

    def above(gap: Callable[[str, str], float]) -> list[Any]:
        return [
            [site, subject, images, [dice[0] + gap(site, subject)], *others]
            for site, subject, images, dice, *others in methods["ppcmi"]["scores"]
        ]

    # Two sites of six subjects: a point and a half of each that is below, nine more of one.
    methods[POOLED]["scores"] = above(
        lambda site, subject: 0.0 if subject == "s5" else 0.015 + 0.09 * ((site, subject) == ("b", "s3"))
    )
    methods["fedavg"]["scores"] = above(lambda *_: 0.009)
    said = [line for line in tables.page([result]).splitlines() if line.startswith("Ours less")]
    assert said == [
        "Ours less U-Net, all data pooled in `one`: -2.0 points; one subject, s3 of b, adds -0.9, and ours is"
        " below it at 10 of 12 subjects."
    ]


def test_the_page_says_which_baselines_have_other_rates(tmp_path: Path) -> None:
    two = plan(seeds=[0, 1], settings=TINY | {"baselines.methods": ["unet_centralised", "fedavg"]})
    for seed in (0, 1):
        write_run(two, tmp_path, {"ppcmi": 0.0, "unet_centralised": 0.1, "fedavg": 0.0}, seed=seed)
    both = collect("name", two, tmp_path, [], quiet)
    for record in both["runs"]:
        for name in ("unet_centralised", "fedavg"):
            record["methods"][name]["learning_rate"] = 0.002
    assert "Learning rates" not in tables.page([both])
    both["runs"][1]["methods"]["fedavg"]["learning_rate"] = 0.004
    said = "Learning rates that were given: U-Net, all data pooled 0.002; FedAvg of the U-Net 0.002, 0.004."
    assert said in tables.page([both])


def test_the_page_names_what_trained(tmp_path: Path) -> None:
    two = plan(seeds=[0, 1])
    write_run(two, tmp_path, SHIFTS, seed=0)
    assert "1 thread of x, bfloat16 autocast." in tables.page([collect("name", two, tmp_path, [], quiet)])
    write_run(two, tmp_path, SHIFTS, seed=1, device="cuda")
    both = collect("name", two, tmp_path, [], quiet)
    assert "1 thread of x, or H200 and 1 thread of x, bfloat16 autocast." in tables.page([both])
    earlier = (
        "Thresholds of an earlier rule than today's (one standard error over subjects, a class against the"
        " background): "
    )
    assert earlier not in tables.page([both])
    del both["runs"][0]["calibration"]
    assert f"{earlier}`one` (seed 0)." in tables.page([both])
    for rule in (RULE_OF_SUMS, RULE_OF_IMAGES):
        both["runs"][0]["calibration"] = rule
        assert earlier in tables.page([both])
    # With two classes a class against the background is what is not the background.
    for classes, same in ((3, False), (2, True)):
        kept = both["runs"][0] | {"calibration": RULE_OF_SUMS, "dataset": {"classes": classes}}
        assert (threshold_rule(kept) == RULE_OF_IMAGES) == same
    for key in ("gpus", "training_precision"):
        del both["runs"][0]["environment"][key], both["runs"][1]["environment"][key]
    assert "; 1 thread of x.\n" in tables.page([both])


def test_a_record_is_a_line_a_subject_and_names_no_path(tmp_path: Path) -> None:
    made = plan()
    write_run(made, tmp_path, SHIFTS)
    write_records(tmp_path / "kept.json", collect("name", made, tmp_path, [], quiet))
    text = (tmp_path / "kept.json").read_text()
    assert sum('["a", "s0", 2, [' in line for line in text.splitlines()) == len(SHIFTS)
    assert str(tmp_path) not in text and '"data":' not in text
    (tmp_path / "kept.json").write_text('{"schema": 1}')
    with pytest.raises(RunError, match="expected schema 2, got 1"):
        read_records(tmp_path / "kept.json")


def test_a_small_network_is_counted_in_thousands(tmp_path: Path) -> None:
    write_run(plan(), tmp_path, SHIFTS)
    result = collect("name", plan(), tmp_path, [], quiet)
    result["runs"][0]["methods"]["unet_local"]["parameters"] = 3259
    page = tables.page([result])
    assert page.count("| 3.3 k |") == 1 and page.count("| 5.00 M |") == 2


def test_rows_show_every_method(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    truth = np.zeros((6, 16, 16), np.uint8)
    truth[:, 4:9, 5:12] = 1
    truth[5] = 0
    arrays: dict[str, Any] = {
        "images": rng.random((6, 16, 16), np.float32),
        "truth": truth,
        "site": np.array(["a", "a", "a", "b", "b", "b"]),
        "ppcmi": truth,
        "ppcmi_float32": truth,
    }
    np.savez(tmp_path / "examples.npz", **arrays)
    record = {"dataset": {"classes": 2}, "settings": {}}
    draw_rows(tmp_path, record, tmp_path / "one.png")
    np.savez(tmp_path / "examples.npz", **arrays, fedavg=np.roll(truth, 3, 2))
    draw_rows(tmp_path, record, tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.height == two.height and two.width > 1.3 * one.width


def test_the_committed_page_is_what_the_records_say() -> None:
    kept = sorted((ROOT / "docs" / "results" / "experiments").glob("*.json"))
    results = [read_records(path) for path in kept]
    assert (ROOT / "docs" / "experiments_results.md").read_text() == tables.page(results)
