"""Intervals and tests over subjects: against plain loops, SciPy and cases worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import numpy as np
import pytest

from ppcmi_fast.metrics import MEASURES, Cohort, ImageScores, compare_methods, holm, summarise
from ppcmi_fast.metrics.statistics import image_means, signed_rank

SITES = ["a"] * 6 + ["b"] * 5
SUBJECTS = ["1", "1", "1", "2", "3", "3", "1", "2", "2", "3", "3"]


def scores_of(dice: list[float]) -> list[ImageScores]:
    """Images of one class whose measures are all the given value."""
    return [ImageScores(*([value] for _ in MEASURES)) for value in dice]


def values(seed: int = 0, count: int = len(SITES)) -> list[float]:
    found: list[float] = np.random.default_rng(seed).uniform(0.5, 1.0, count).tolist()
    return found


def many(subjects: int) -> tuple[list[str], list[str]]:
    """Two sites with `subjects` subjects together, two images each."""
    names = [str(number) for number in range(subjects) for _ in range(2)]
    return ["a" if int(name) % 2 else "b" for name in names], names


def test_the_bootstrap_is_the_mean_over_sites_of_the_drawn_subjects_images() -> None:
    column = np.array(values())[:, None]
    cohort = Cohort.of(SITES, SUBJECTS)
    drawn = cohort.resample(column, seed=3, resamples=400)[:, 0]
    # Every draw must be one of the means that some choice of three subjects a site gives.
    possible = []
    for site in ("a", "b"):
        images = {
            subject: [
                v for v, s, p in zip(values(), SITES, SUBJECTS, strict=True) if (s, p) == (site, subject)
            ]
            for subject in ("1", "2", "3")
        }
        possible.append(
            [
                np.mean(np.concatenate([images[subject] for subject in chosen]))
                for chosen in itertools.product("123", repeat=3)
            ]
        )
    means = np.array([(a + b) / 2 for a, b in itertools.product(*possible)])
    assert max(np.abs(means - value).min() for value in drawn) < 1e-12
    assert len(np.unique(drawn.round(12))) > 50
    # All 27 x 27 choices are equally likely.
    assert np.mean(drawn) == pytest.approx(means.mean(), abs=4 * means.std() / 20)
    assert np.std(drawn) == pytest.approx(means.std(), rel=0.15)


def test_the_mean_of_a_cohort_is_the_reported_mean() -> None:
    scores = scores_of(values())
    summary = summarise(scores, SITES, SUBJECTS)
    mean = Cohort.of(SITES, SUBJECTS).mean(image_means(scores))
    for column, measure in enumerate(MEASURES):
        assert mean[column] == pytest.approx(summary[measure]["mean"], abs=1e-12)
        low, high = summary[measure]["ci95"]
        assert low < summary[measure]["mean"] < high


def test_intervals_come_out_the_same_for_one_seed_only() -> None:
    cohort, column = Cohort.of(SITES, SUBJECTS), np.array(values())[:, None]
    assert cohort.intervals(column, 1) == cohort.intervals(column, 1) != cohort.intervals(column, 2)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    sites, names = many(40)
    cohort, covered = Cohort.of(sites, names), 0
    for trial in range(200):
        # Images of one subject are alike: an interval over images would be too narrow.
        column = np.repeat(rng.normal(size=40), 2)[:, None]
        ((low, high),) = [pair for pair in cohort.intervals(column, trial, 300) if pair is not None]
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.98


def test_a_site_with_one_subject_has_no_interval() -> None:
    summary = summarise(scores_of([0.5, 0.6, 0.7]), ["a", "a", "b"], ["1", "2", "1"])
    assert all(summary[measure]["ci95"] is None for measure in MEASURES)
    assert summary["dice"]["mean"] == pytest.approx(0.625)


def test_subjects_of_one_name_at_two_sites_are_two() -> None:
    cohort = Cohort.of(["a", "b", "a"], ["1", "1", "1"])
    assert len(cohort.site) == 2 and cohort.subject.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="subjects: expected one per image, got 1 for 2"):
        Cohort.of(["a", "b"], ["1"])


def test_signed_rank_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="the extra `train` is not installed")
    differences = np.random.default_rng(4).normal(0.3, 1, 12)
    assert signed_rank(differences)[0] == pytest.approx(float(stats.wilcoxon(differences).pvalue))
    # Six subjects, all better: 2 of the 2^6 signs are as extreme.
    assert signed_rank(np.arange(1.0, 7.0))[0] == pytest.approx(2 / 64)


def test_signed_rank_without_enough_subjects_says_so() -> None:
    p, reason = signed_rank(np.arange(1.0, 6.0))
    assert p is None and reason.startswith("5 subjects")


def test_no_difference_at_all_is_no_evidence() -> None:
    assert signed_rank(np.zeros(8)) == (1.0, "")
    assert signed_rank(np.full(8, 1e-17)) == (1.0, "")


def test_ties_and_zeros_make_no_noise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p, _ = signed_rank(np.array([0.0, 0.0, 0.0, 0.1, 0.1, 0.1, -0.1, 0.2]))
    assert p is not None and 0 < p <= 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.02, None, 0.9]) == [pytest.approx(0.04), None, pytest.approx(0.9)]
    assert holm([0.8, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_method_that_is_better_in_every_subject_is_found_better() -> None:
    sites, names = many(12)
    ours = np.array(values(1, len(names)))
    gain = np.random.default_rng(2).uniform(0.05, 0.1, len(names))
    methods = {
        "ours": scores_of(ours.tolist()),
        "worse": scores_of((ours - gain).tolist()),
        "same": scores_of(ours.tolist()),
    }
    rows = compare_methods("ours", methods, sites, names)
    assert len(rows) == 2 * len(MEASURES)
    worse, same = (row for row in rows if row["measure"] == "dice")
    assert (worse["a"], worse["b"], worse["subjects"]) == ("ours", "worse", 12)
    by_site = [np.mean([g for g, s in zip(gain, sites, strict=True) if s == site]) for site in ("a", "b")]
    assert worse["difference"] == pytest.approx(np.mean(by_site))
    assert worse["ci95"][0] > 0 and worse["p"] == pytest.approx(2 / 2**12)
    assert worse["p_holm"] == pytest.approx(2 * worse["p"])
    # Paired: the interval of the difference is far narrower than those of the two means.
    assert worse["ci95"][1] - worse["ci95"][0] < 0.05
    assert (same["difference"], same["p"], same["ci95"]) == (0.0, 1.0, [0.0, 0.0])


def test_few_subjects_get_a_difference_and_a_reason() -> None:
    methods = {"ours": scores_of([0.9, 0.8, 0.7]), "other": scores_of([0.8, 0.8, 0.8])}
    row = compare_methods("ours", methods, ["a", "a", "b"], ["1", "2", "1"])[0]
    assert (row["p"], row["p_holm"], row["ci95"]) == (None, None, None)
    assert row["difference"] == pytest.approx(-0.025) and row["reason"].startswith("3 subjects")
    with pytest.raises(ValueError, match=r"scores\['other'\]: expected 3 images, got 2"):
        compare_methods("ours", methods | {"other": methods["other"][:2]}, ["a", "a", "b"], ["1", "2", "1"])


def test_classes_and_sites_are_told_apart() -> None:
    scores = [
        dataclasses.replace(scores_of([0.0])[0], dice=pair) for pair in ([0.2, 0.4], [0.6, 0.8], [1.0, 0.0])
    ]
    summary = summarise(scores, ["a", "a", "b"])
    assert summary["dice"]["site_class"] == {
        "a": {"1": pytest.approx(0.4), "2": pytest.approx(0.6)},
        "b": {"1": 1.0, "2": 0.0},
    }
    assert "ci95" not in summary["dice"]
