"""Records merge, statistics count a subject once, the page and its pictures come from records alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon
from test_experiments import plan
from tiny_runs import TINY

from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.effort import Effort, comparison_of
from ppcmi_fast.experiments.figures import draw, draw_rows
from ppcmi_fast.experiments.plan import Plan, planned_runs
from ppcmi_fast.experiments.records import read_records, threshold_rule, write_records
from ppcmi_fast.experiments.statistics import Held, differences
from ppcmi_fast.experiments.variants import DICE, LEVEL, variants_of
from ppcmi_fast.federation.calibration import RULE, RULE_OF_IMAGES, RULE_OF_SUMS
from ppcmi_fast.metrics import MEASURES, ImageScores, ScoreRow, summarise, write_scores

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 2
POOLED = "unet_centralised"


def scores(dice: list[float]) -> ImageScores:
    values = {measure: [1.0] * len(dice) for measure in MEASURES} | {"dice": dice}
    return ImageScores(**values)


def made_up(shift: float, subjects: range, seed: int, classes: int = 1) -> list[ScoreRow]:
    rng = np.random.default_rng(seed)
    rows = []
    for site in ("a", "b"):
        for subject in subjects:
            for image in range(IMAGES):
                dice = np.clip(0.8 + shift + 0.05 * rng.normal(size=classes), 0, 1).tolist()
                rows.append(ScoreRow(site, f"s{subject}", f"{image}.png", "", scores(dice)))
            # A whole volume is another measure, and in no table here.
            rows.append(ScoreRow(site, f"s{subject}", "v", "all", scores([0.0] * classes)))
    return rows


def write_run(
    made: Plan,
    out: Path,
    shifts: dict[str, float],
    *,
    variant: str = "one",
    seed: int = 0,
    subjects: range = range(6),
    classes: int = 1,
    device: str = "cpu",
    seconds: dict[str, float] | None = None,
) -> dict[str, list[ScoreRow]]:
    run = next(r for r in planned_runs(made, Path("data")) if (r.variant, r.seed) == (variant, seed))
    folder = out / run.folder
    folder.mkdir(parents=True)
    rows = {
        name: made_up(shift, subjects, 10 * seed + n % 2, classes)
        for n, (name, shift) in enumerate(shifts.items())
    }
    write_scores(folder / "scores.csv", rows)
    methods = {
        name: {"images_seen": 10 + seed, "seconds": 60.0, "bytes_sent": {"x": 2000}, "parameters": 5_000_000}
        for name in rows
    }
    sites = {site: {"subjects": 9, "train": 4, "val": 2, "test": 12} for site in ("a", "b")}
    names = ["cavity", "wall"] if classes == 2 else []
    metrics = {
        "methods": methods,
        "seconds": seconds or {},
        "payload_bytes": {"up": 100, "down": 20, "train_upload_total": 1},
        "thresholds": {"a": 0.4, "b": 0.5},
        "calibration": RULE,
        "config": run.config.model_dump(mode="json", exclude={"data": True, "reading": {"cache"}}),
        "dataset": {
            "name": "d",
            "size": 32,
            "classes": classes + 1,
            "class_names": names,
            "sites": sites,
            "spacing_unit": "px",
        },
        "environment": {
            "cpu": "x",
            "cores": 2,
            "torch_threads": 1,
            "training_device": device,
            "training_precision": "bfloat16 autocast",
            "cuda": {"devices": ["H200"]},
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return {name: [row for row in found if not row.is_volume] for name, found in rows.items()}


def quiet(line: str) -> None:
    raise AssertionError(f"nothing is to be dropped, but {line}")


def dice_of(row: ScoreRow) -> float:
    return float(np.mean(row.scores.dice))


SHIFTS = {"ppcmi": 0.0, "unet_centralised": 0.08, "unet_local": -0.2}


def test_estimates_are_those_of_the_scores(tmp_path: Path) -> None:
    made = plan(notes="What this\n means.")
    rows = write_run(made, tmp_path, SHIFTS, classes=2)
    result = collect("name", made, tmp_path, [], quiet)
    variant = variants_of(result)[0]
    for name, found in rows.items():
        summary = summarise([r.scores for r in found], [r.site for r in found])
        assert variant.mean(name)[DICE] == pytest.approx(summary["dice"]["mean"], abs=1e-5)
        by_site = variant.held.site_means(variant.dice(name)[:, None])[:, 0]
        assert dict(zip(variant.held.sites, by_site, strict=True)) == pytest.approx(
            summary["dice"]["site"], abs=1e-5
        )
        by_class = variant.held.mean(variant.scores(name)[:, DICE])
        assert list(by_class) == pytest.approx(list(summary["dice"]["class"].values()), abs=1e-5)
    text = tables.page([result])
    assert "\nWhat this means.\n" in text
    assert "| Dice | cavity | wall |" in text and "| Dice | a | b |" in text


def test_a_subject_under_two_seeds_is_one(tmp_path: Path) -> None:
    made = plan(seeds=[0, 1])
    # Subjects 3 to 5 are held out under both seeds.
    rows = {
        seed: write_run(made, tmp_path, SHIFTS, seed=seed, subjects=subjects)
        for seed, subjects in ((0, range(6)), (1, range(3, 9)))
    }
    variant = variants_of(collect("name", made, tmp_path, [], quiet))[0]
    assert variant.seeds == [0, 1] and len(variant.held.site_of) == 18
    means = [
        np.mean([dice_of(r) for r in rows[seed]["ppcmi"] if r.site == site])
        for seed in (0, 1)
        for site in ("a", "b")
    ]
    assert variant.mean("ppcmi")[DICE] == pytest.approx(np.mean(means), abs=1e-5)
    of_subject = {
        name: np.array(
            [
                np.mean(
                    [
                        dice_of(r)
                        for seed in (0, 1)
                        for r in rows[seed][name]
                        if (r.site, r.subject) == (site, f"s{n}")
                    ]
                )
                for site in ("a", "b")
                for n in range(9)
            ]
        )
        for name in SHIFTS
    }
    gaps = variant.against("unet_centralised")
    for name, found in gaps.items():
        p = wilcoxon(of_subject["unet_centralised"] - of_subject[name]).pvalue
        assert found.p is not None and p <= found.p <= 2 * p + 1e-9
        assert found.interval is not None and found.interval[0] < found.value < found.interval[1]
    assert variant.best == {"unet_centralised"}


def test_the_interval_is_that_of_a_bootstrap_drawn_by_hand() -> None:
    rng = np.random.default_rng(3)
    rows = {
        seed: [[site, f"s{n}", 1 + n % 3] for site in ("a", "b") for n in range(seed, seed + 8)]
        for seed in (0, 4)
    }
    held = Held.of(rows)
    values = rng.normal(size=len(held.seed))
    entries = list(zip(held.seed, held.site, held.subject, held.images, values, strict=True))
    means = []
    for _ in range(4000):
        weight = np.zeros(len(held.site_of))
        for site in (0, 1):
            own = np.flatnonzero(held.site_of == site)
            for subject in rng.choice(own, len(own)):
                weight[subject] += 1
        by_site: dict[int, list[float]] = {0: [], 1: []}
        for seed in rng.choice([0, 1], 2):
            for site in (0, 1):
                some = [
                    (weight[k] * n, v)
                    for s, where, k, n, v in entries
                    if (s, where) == (seed, site) and weight[k]
                ]
                if some:
                    by_site[site].append(sum(w * v for w, v in some) / sum(w for w, _ in some))
        means.append(np.mean([np.mean(found) for found in by_site.values() if found]))
    low, high = np.percentile(means, [2.5, 97.5])
    found = held.interval(values)
    assert found is not None and found == pytest.approx([low, high], abs=0.05 * (high - low) + 0.02)
    alone = Held.of({0: [["a", "s0", 2], ["b", "s1", 2], ["b", "s2", 2]]})
    assert alone.interval(np.array([0.1, 0.2, 0.3])) is None
    few = differences(alone, np.array([0.1, 0.2, 0.3]), {"x": np.array([0.0, 0.0, 0.0])})["x"]
    assert few.p is None and few.interval is None


def test_methods_that_cannot_be_told_apart_are_tied(tmp_path: Path) -> None:
    made = plan()
    write_run(made, tmp_path, {"ppcmi": 0.0, "unet_centralised": 0.001, "unet_local": -0.2})
    result = collect("name", made, tmp_path, [], quiet)
    assert variants_of(result)[0].best == {"ppcmi", "unet_centralised"}
    text = tables.page([result])
    assert text.count("| **0.") == 2 and "`ppcmi experiment run name`" in text and "; seed 0;" in text


def test_too_few_subjects_for_the_test_leave_it_to_the_interval(tmp_path: Path) -> None:
    made = plan()
    write_run(made, tmp_path, SHIFTS | {"ppcmi": 0.079}, subjects=range(3))
    variant = variants_of(collect("name", made, tmp_path, [], quiet))[0]
    # Six subjects: p is at least 1/32, times two methods.
    assert all(gap.p is not None and gap.p >= LEVEL for gap in variant.against("unet_centralised").values())
    assert variant.best == {"unet_centralised", "ppcmi"}


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


def test_ours_is_compared_among_variants_where_it_is_another(tmp_path: Path) -> None:
    names = ("one", "same", "better", "elsewhere")
    settings = {"elsewhere": {"reading.partition": "iid"}}
    four = plan(variants=[{"name": name, "settings": settings.get(name, {})} for name in names])
    for name, shift in zip(names, (0.0, 0.0, 0.1, 0.1), strict=True):
        subjects = range(7) if name == "elsewhere" else range(6)
        write_run(four, tmp_path, {"ppcmi": shift}, variant=name, subjects=subjects)
    lines = tables.page([collect("name", four, tmp_path, [], quiet)]).splitlines()
    start = lines.index("| ours less ours in one | points | 95 % | p |")
    compared = takewhile(bool, lines[start + 2 :])
    assert [line.split(" | ")[0] for line in compared] == ["| better"]


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


def test_parts_of_subjects_sum_to_the_mean_over_seeds() -> None:
    # A subject under two seeds, a site without images under one of them.
    rows = {0: [["a", "x", 3], ["a", "y", 1], ["b", "x", 2]], 1: [["a", "x", 2]]}
    held, values = Held.of(rows), np.array([0.4, 0.8, 0.1, 0.6])
    parts = held.parts(values)
    assert held.names == ["x", "y", "x"]
    assert parts.tolist() == pytest.approx([(0.3 + 0.6) / 4, 0.2 / 4, 0.1 / 2])
    assert parts.sum() == pytest.approx(held.mean(values[:, None])[0])


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


def test_variants_are_compared_with_the_first(tmp_path: Path) -> None:
    two = plan(
        variants=[{"name": "one"}, {"name": "two", "settings": {"bits_up": 2}}],
        figure={"x": "payload", "label": "bytes", "methods": ["ppcmi"]},
    )
    one = write_run(two, tmp_path, {"ppcmi": 0.0})["ppcmi"]
    other = write_run(two, tmp_path, {"ppcmi": -0.1}, variant="two")["ppcmi"]
    result = collect("name", two, tmp_path, [], quiet)
    gap = 100 * (np.mean([dice_of(r) for r in other]) - np.mean([dice_of(r) for r in one]))
    line = next(line for line in tables.page([result]).splitlines() if line.startswith("| two | -"))
    assert float(line.split("|")[2]) == pytest.approx(gap, abs=0.06)
    late = copy.deepcopy(result)
    late["runs"][0]["late_sites"] = {"c": 0.5}
    assert "c joined late in `one`: Dice 0.500." in tables.page([late])
    late["runs"][0]["late_sites"] = {"b": 0.5}
    at_b = (
        np.mean([dice_of(r) for r in one if r.site == "b"]),
        np.mean([dice_of(r) for r in other if r.site == "b"]),
    )
    took_part = f"{at_b[0]:.3f} in `one`, {at_b[1]:.3f} in `two`"
    assert f"b joined late in `one`: Dice 0.500; having taken part: {took_part}." in tables.page([late])
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert "![A title](figures/experiment_name.png)" in tables.page([result])
    sites = copy.deepcopy(result)
    sites["figure"]["x"] = "reading.sites"
    draw(sites, tmp_path / "sites.png")


def test_what_trained_all_of_it_counts_shared_networks_once(tmp_path: Path) -> None:
    two = plan(variants=[{"name": "one"}, {"name": "two"}])
    methods = {"ppcmi": 0.0, "ppcmi_one_shot": 0.0, "ppcmi_float32": 0.0, "unet_centralised": 0.0}
    for variant in ("one", "two"):
        write_run(two, tmp_path, methods, variant=variant)
    result = collect("name", two, tmp_path, [], quiet)
    # Ours and the pooled network, a minute each, of one seed; the same under a second name.
    assert Effort.of([result, result]) == Effort(training=120.0, trials=0.0, untold=0)
    other = copy.deepcopy(result)
    other["runs"][0]["methods"]["ppcmi"]["seconds"] = 7080.0
    assert Effort.of([result, other]).training == 7200.0
    assert "took 2.0 hours of one run at a time. 0.0 of them were for" in tables.page([result, other])


def test_what_the_comparison_itself_took_is_told_apart(tmp_path: Path) -> None:
    two = plan(variants=[{"name": "all"}, {"name": "wider"}])
    for variant in ("all", "wider"):
        write_run(two, tmp_path, {"ppcmi": 0.0}, variant=variant)
    result = collect("name", two, tmp_path, [], quiet)
    hours = {"all": 1.0, "wider": 2.0}
    for record in result["runs"]:
        record["methods"]["ppcmi"]["seconds"] = 3600 * hours[record["variant"]]
    named = {name: result | {"experiment": name} for name in ("phantom_x", "comparison_x", "rate_accuracy")}
    for name in ("phantom_x", "comparison_x"):
        assert [record["variant"] for record in comparison_of([named[name]])[0]["runs"]] == ["all"]
    assert comparison_of([named["rate_accuracy"], result]) == [named["rate_accuracy"]]
    page = tables.page([result, named["phantom_x"]])
    assert "took 3.0 hours of one run at a time. 1.0 of them were for" in page
    assert "on each phantom (`main`, `other-methods`, `all`), ours at 256 x 256" in page


def test_trials_of_rates_are_counted_where_records_tell_of_them(tmp_path: Path) -> None:
    made = plan(settings=TINY | {"baselines.methods": [POOLED], "baselines.learning_rates": [0.001, 0.002]})
    write_run(made, tmp_path, {"ppcmi": 0.0, POOLED: 0.0}, seconds={f"{POOLED} (rates tried)": 5400.0})
    result = collect("name", made, tmp_path, [], quiet)
    result["runs"][0]["methods"][POOLED]["learning_rate"] = 0.001
    assert Effort.of([result, result]) == Effort(training=120.0, trials=5400.0, untold=0)
    assert "other variants, took 1.5 hours. Two cores" in tables.page([result])
    # Who took the network over at the rate that it chose has nothing to tell of trials.
    given = copy.deepcopy(result)
    given["runs"][0]["settings"]["baselines"]["learning_rates"] = []
    given["runs"][0]["methods"][POOLED]["trial_seconds"] = 0.0
    assert Effort.of([given, result]).trials == 5400.0
    older = copy.deepcopy(result)
    for facts in older["runs"][0]["methods"].values():
        del facts["trial_seconds"]
    for known in ([older], [older, given], [given, older]):
        assert Effort.of(known) == Effort(training=120.0, trials=0.0, untold=1)
    assert "took 0.0 hours; of 1 with trials the records do not have it. Two cores" in tables.page([older])
    assert Effort.of([older, result]).untold == 0


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
