"""Estimates, intervals and ties of an experiment are those of its scores; a subject counts once."""

from __future__ import annotations

import copy
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from experiment_runs import SHIFTS, dice_of, plan, quiet, write_run
from scipy.stats import wilcoxon

from ppcmi_fast.errors import ConfigError
from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.figures import curves_of, draw
from ppcmi_fast.experiments.statistics import Held, differences
from ppcmi_fast.experiments.variants import DICE, LEVEL, variants_of
from ppcmi_fast.metrics import summarise


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


def test_parts_of_subjects_sum_to_the_mean_over_seeds() -> None:
    # A subject under two seeds, a site without images under one of them.
    rows = {0: [["a", "x", 3], ["a", "y", 1], ["b", "x", 2]], 1: [["a", "x", 2]]}
    held, values = Held.of(rows), np.array([0.4, 0.8, 0.1, 0.6])
    parts = held.parts(values)
    assert held.names == ["x", "y", "x"]
    assert parts.tolist() == pytest.approx([(0.3 + 0.6) / 4, 0.2 / 4, 0.1 / 2])
    assert parts.sum() == pytest.approx(held.mean(values[:, None])[0])


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
    sites["figure"]["split"] = "bits_up"
    # As it was before there was such a setting.
    del sites["runs"][0]["settings"]["bits_up"]
    curves = curves_of(variants_of(sites), "ppcmi", "bits_up")
    assert list(curves) == ["PPCMI (ours), bits_up 4", "PPCMI (ours), bits_up 2"]
    draw(sites, tmp_path / "split.png")
    assert (tmp_path / "split.png").read_bytes() != (tmp_path / "sites.png").read_bytes()
    sites["runs"][0]["settings"]["no_setting"] = 1
    with pytest.raises(ConfigError, match="one: expected a record of settings that this version takes"):
        draw(sites, tmp_path / "split.png")


def test_a_setting_splits_the_variants_into_curves(tmp_path: Path) -> None:
    changes = {"one": {}, "few": {"bits_up": 2}, "other": {"codec.channels": [8, 8, 8]}}
    made = plan(variants=[{"name": name, "settings": settings} for name, settings in changes.items()])
    for name in changes:
        write_run(made, tmp_path, {"ppcmi": 0.0} | ({"fedavg": 0.1} if name == "few" else {}), variant=name)
    variants = variants_of(collect("name", made, tmp_path, [], quiet))

    def names(method: str, split: str) -> dict[str, list[str]]:
        curves = curves_of(variants, method, split)
        return {title: [variant.name for variant in found] for title, found in curves.items()}

    assert names("ppcmi", "") == {"PPCMI (ours)": ["one", "few", "other"]}
    assert names("ppcmi", "codec.channels") == {
        "PPCMI (ours), codec.channels 16, 32, 64": ["one", "few"],
        "PPCMI (ours), codec.channels 8, 8, 8": ["other"],
    }
    assert names("fedavg", "bits_up") == {"FedAvg of the U-Net, bits_up 2": ["few"]}
    assert names("fedprox", "bits_up") == {}
