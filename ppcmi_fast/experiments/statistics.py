"""Estimates, intervals and tests over the runs of several seeds, each with its own split.

A subject may be held out under several seeds: it is one subject, not several. So subjects are drawn once for all seeds,
and a subject's differences are averaged before they are tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ppcmi_fast.metrics.statistics import CONFIDENCE, RESAMPLES, holm, signed_rank

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Held:
    """Who was held out, under which seed.

    Attributes:
        seed, site, subject: numbers, one an entry: a subject under a seed; two sites' subjects of one name are two.
        images: of each entry.
        site_of: site of each subject.
        names: of the subjects, unique within a site.
        sites: their names.
    """

    seed: Integers
    site: Integers
    subject: Integers
    images: Floats
    site_of: Integers
    names: list[str]
    sites: list[str]

    @classmethod
    def of(cls, rows: Mapping[int, Sequence[Sequence[Any]]]) -> Held:
        """From [site, subject, images, ...] of every seed."""
        keys = [(seed, row[0], row[1]) for seed, found in rows.items() for row in found]
        sites = sorted({site for _, site, _ in keys})
        subjects = sorted({(site, subject) for _, site, subject in keys})
        number = {pair: index for index, pair in enumerate(subjects)}
        seeds = list(rows)
        return cls(
            np.array([seeds.index(seed) for seed, _, _ in keys]),
            np.array([sites.index(site) for _, site, _ in keys]),
            np.array([number[site, subject] for _, site, subject in keys]),
            np.array([row[2] for found in rows.values() for row in found], dtype=np.float64),
            np.array([sites.index(site) for site, _ in subjects]),
            [name for _, name in subjects],
            sites,
        )

    def site_means(self, values: Floats) -> Floats:
        """Mean over seeds of each site's mean over its images; [E, M] to [sites, M]."""
        one = np.ones((1, len(self.site_of)))
        means: Floats = np.nanmean(self._means(values, one)[:, :, 0], axis=0)
        return means

    def mean(self, values: Floats) -> Floats:
        """Mean over seeds of the mean over sites of each site's mean over its images; [E, M] to [M]."""
        mean: Floats = self.site_means(values).mean(0)
        return mean

    def _means(self, values: Floats, weights: Floats) -> Floats:
        """Under weights of the subjects [R, K]: [seeds, sites, R, M], NaN where a site has none of a seed's."""
        seeds = int(self.seed.max()) + 1
        means = np.full((seeds, len(self.sites), len(weights), values.shape[1]), np.nan)
        for seed in range(seeds):
            for site in range(len(self.sites)):
                own = (self.seed == seed) & (self.site == site)
                weight = weights[:, self.subject[own]] * self.images[own]
                total = weight.sum(1, keepdims=True)
                some = total[:, 0] > 0
                means[seed, site, some] = (weight[some] @ values[own]) / total[some]
        return means

    def interval(self, values: Floats, seed: int = 0) -> list[float] | None:
        """95 % bootstrap percentile interval of the mean of [E], [low, high].

        Drawn with replacement are seeds and, within every site, subjects.

        None where a site has one subject only, which could not vary.
        """
        counts = np.bincount(self.site_of)
        if counts.min() < 2:
            return None
        rng = np.random.default_rng(seed)
        weights = np.zeros((RESAMPLES, len(self.site_of)))
        for site, count in enumerate(counts):
            weights[:, self.site_of == site] = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
        means = self._means(values[:, None], weights)[..., 0]
        seeds = len(means)
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES).T[:, None, :].astype(float)
        drawn = np.broadcast_to(drawn, means.shape) * ~np.isnan(means)
        sites = (np.nan_to_num(means) * drawn).sum(0) / np.maximum(drawn.sum(0), 1e-12)
        present = drawn.sum(0) > 0
        estimates = (sites * present).sum(0) / present.sum(0)
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(estimates, [tail, 100 - tail])
        return [float(low), float(high)]

    def parts(self, values: Floats) -> Floats:
        """What each subject adds to the mean of [E]: [K], which sum to it."""
        alone = np.eye(len(self.site_of))[self.subject] * values[:, None]
        parts: Floats = self.mean(alone)
        return parts

    def subject_means(self, values: Floats) -> Floats:
        """Mean over each subject's images under all seeds; [E] to [K]."""
        count = len(self.site_of)
        total = np.bincount(self.subject, self.images * values, count)
        means: Floats = total / np.bincount(self.subject, self.images, count)
        return means


@dataclass(frozen=True)
class Difference:
    """One method's Dice less another's: of the means, with its interval and the signed-rank test's p after Holm."""

    value: float
    interval: list[float] | None
    p: float | None


def differences(held: Held, one: Floats, others: Mapping[str, Floats]) -> dict[str, Difference]:
    """`one` less each of the others, paired by subject; all are [E]."""
    gaps = {name: one - other for name, other in others.items()}
    tests = [signed_rank(held.subject_means(gap))[0] for gap in gaps.values()]
    return {
        name: Difference(float(held.mean(gap[:, None])[0]), held.interval(gap), p)
        for (name, gap), p in zip(gaps.items(), holm(tests), strict=True)
    }
