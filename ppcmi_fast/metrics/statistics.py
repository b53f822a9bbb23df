"""Intervals and tests over subjects: the images of one subject are alike, so subjects are what is drawn.

Every mean is a mean over sites of each site's mean over its images, and resampling keeps the sites as they are: it
draws, within each site, as many subjects as the site has.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ppcmi_fast.metrics.scores import MEASURES, ImageScores
from ppcmi_fast.metrics.surfaces import Floats, missing_extra

RESAMPLES = 1000
CONFIDENCE = 0.95
# With five subjects the smallest two-sided p value of the signed-rank test is 1/16, whatever the data say.
MIN_SUBJECTS = 6

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Cohort:
    """Which subject of which site each image or volume belongs to.

    Attributes:
        subject: number of its subject, [N]; two sites' subjects of one name are two.
        site: number of each subject's site, [S].
        sites: names, in the order of their numbers.
    """

    subject: Indices
    site: Indices
    sites: list[str]

    @classmethod
    def of(cls, sites: Sequence[str], subjects: Sequence[str]) -> Cohort:
        """One site and one subject an image.

        Raises:
            ValueError: none, or another number of subjects than of sites.
        """
        if not sites or len(sites) != len(subjects):
            raise ValueError(
                f"subjects: expected one per image, got {len(subjects)} for {len(sites)} images of the sites"
            )
        pairs = list(zip(sites, subjects, strict=True))
        known = sorted(set(pairs))
        names = sorted(set(sites))
        numbers = {pair: number for number, pair in enumerate(known)}
        return cls(
            np.array([numbers[pair] for pair in pairs]),
            np.array([names.index(site) for site, _ in known]),
            names,
        )

    @property
    def images_of(self) -> Indices:
        """Images of each subject, [S]."""
        return np.bincount(self.subject, minlength=len(self.site))

    def sums(self, values: Floats) -> Floats:
        """Sum over each subject's images; [N, M] to [S, M]."""
        total = np.zeros((len(self.site), values.shape[1]))
        np.add.at(total, self.subject, values)
        return total

    def subject_means(self, values: Floats) -> Floats:
        """Mean over each subject's images; [N, M] to [S, M]."""
        means: Floats = self.sums(values) / self.images_of[:, None]
        return means

    def mean(self, values: Floats) -> Floats:
        """Mean over sites of each site's mean over its images; [N, M] to [M]."""
        once = [np.ones((1, size)) for size in np.bincount(self.site)]
        mean: Floats = self._site_means(values, once)[0]
        return mean

    def _site_means(self, values: Floats, weights: Sequence[npt.NDArray[Any]]) -> Floats:
        sums, counts = self.sums(values), self.images_of
        means = [
            (weight @ sums[self.site == s]) / (weight @ counts[self.site == s])[:, None]
            for s, weight in enumerate(weights)
        ]
        over_sites: Floats = np.mean(means, axis=0)
        return over_sites

    def resample(self, values: Floats, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
        """The mean over sites under subjects drawn with replacement within each site; [N, M] to [resamples, M].

        One seed draws the same subjects whatever the values, so differences of two methods may be resampled.
        """
        rng = np.random.default_rng(seed)
        weights = [
            rng.multinomial(size, np.full(size, 1 / size), size=resamples) for size in np.bincount(self.site)
        ]
        return self._site_means(values, weights)

    def intervals(
        self, values: Floats, seed: int = 0, resamples: int = RESAMPLES
    ) -> list[list[float] | None]:
        """The 95 % bootstrap percentile interval of each column's mean, [low, high]; [N, M] in.

        None where a site has one subject only: it could not vary, and the interval would be too narrow.
        """
        if np.bincount(self.site).min() < 2:
            return [None] * values.shape[1]
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(self.resample(values, seed, resamples), [tail, 100 - tail], axis=0)
        return [[float(a), float(b)] for a, b in zip(low, high, strict=True)]


def image_means(scores: Sequence[ImageScores], measures: Sequence[str] = MEASURES) -> Floats:
    """Mean over the classes of each image's measures, [N, M]."""
    return np.stack([[np.mean(getattr(score, name)) for name in measures] for score in scores])


def signed_rank(differences: Floats) -> tuple[float | None, str]:
    """Two-sided p value of Wilcoxon's signed-rank test, and why there is none (else "").

    Raises:
        ConfigError: SciPy is not installed.
    """
    if len(differences) < MIN_SUBJECTS:
        return None, f"{len(differences)} subjects; the test needs {MIN_SUBJECTS} to be able to find anything"
    # What is equal but for the order of summation is equal, not a small difference with a rank.
    differences = np.where(np.abs(differences) < 1e-12, 0.0, differences)
    if not differences.any():
        return 1.0, ""
    try:
        from scipy.stats import wilcoxon
    except ImportError as error:
        raise missing_extra("SciPy") from error
    with warnings.catch_warnings():
        # Ties and zeros make SciPy take the normal approximation, and say so.
        warnings.simplefilter("ignore")
        return float(wilcoxon(differences).pvalue), ""


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of the p values that there are; None stays None."""
    known = sorted((value, index) for index, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (value, index) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - rank)))
        corrected[index] = least
    return corrected


def compare_methods(
    ours: str,
    scores: Mapping[str, Sequence[ImageScores]],
    sites: Sequence[str],
    subjects: Sequence[str],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Our method against each other one, measure by measure, paired by subject.

    Args:
        ours: a key of `scores`.
        scores: method -> scores, all of the same images in the same order.
        sites: one an image.
        subjects: one an image.
        seed: of the bootstrap.

    Returns:
        One dict a measure and other method: `a` (ours), `b`, `measure`, `difference` (a - b, of the means over sites),
        `ci95` (paired bootstrap; None where a site has one subject), `p` (signed-rank test on subjects' means; None
        with `reason` below six subjects), `p_holm` (corrected within the measure), `subjects`.

    Raises:
        ValueError: methods with other numbers of images.
        ConfigError: SciPy is not installed.
    """
    cohort = Cohort.of(sites, subjects)
    others = [method for method in scores if method != ours]
    for method, found in scores.items():
        if len(found) != len(sites):
            raise ValueError(f"scores[{method!r}]: expected {len(sites)} images, got {len(found)}")
    means = {method: image_means(found) for method, found in scores.items()}
    differences = {method: means[ours] - means[method] for method in others}
    intervals = {method: cohort.intervals(values, seed) for method, values in differences.items()}
    rows = []
    for column, measure in enumerate(MEASURES):
        tests = [signed_rank(cohort.subject_means(differences[method])[:, column]) for method in others]
        corrected = holm([p for p, _ in tests])
        for method, (p, reason), p_holm in zip(others, tests, corrected, strict=True):
            row = {
                "a": ours,
                "b": method,
                "measure": measure,
                "difference": float(cohort.mean(differences[method])[column]),
                "ci95": intervals[method][column],
                "p": p,
                "p_holm": p_holm,
                "subjects": len(cohort.site),
            }
            rows.append(row | {"reason": reason} if reason else row)
    return rows
