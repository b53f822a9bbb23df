"""Subjects to sites, where a data set comes from one hospital or names none; a subject is never divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ppcmi_fast.data.records import Record
from ppcmi_fast.data.splits import stratum
from ppcmi_fast.errors import DataError

WAYS = ("data", "group", "iid", "skew")


def _iid(subjects: list[str], sites: int, rng: np.random.Generator) -> dict[str, int]:
    order = rng.permutation(len(subjects))
    return {subjects[subject]: number % sites for number, subject in enumerate(order)}


def _skewed(
    labels: dict[str, str], sites: int, concentration: float, rng: np.random.Generator
) -> dict[str, int]:
    kinds = sorted(set(labels.values()))
    if len(kinds) < 2:
        raise DataError(
            f"partition: expected subjects of several groups or classes to skew by, all are {kinds[0]!r}; use iid"
        )
    # Dirichlet shares of every label's subjects (Hsu et al. 2019).
    site_of = {}
    for kind in kinds:
        members = rng.permutation([subject for subject, label in sorted(labels.items()) if label == kind])
        ends = np.cumsum(rng.dirichlet([concentration] * sites)) * len(members)
        for number, subject in enumerate(members):
            site_of[str(subject)] = min(int(np.searchsorted(ends, number + 0.5)), sites - 1)
    return site_of


def partition(
    records: Sequence[Record], way: str, *, sites: int = 4, concentration: float = 0.5, seed: int = 0
) -> list[Record]:
    """Records with their sites set.

    Args:
        records: all records; a subject's are found by its name and present site.
        way: "data" leaves them as they are; "group" makes each group a site; "iid" deals subjects out at random; "skew"
            gives each site its own mixture of groups, or of the classes that occur, by a Dirichlet draw.
        sites: number of sites for "iid" and "skew".
        concentration: of the Dirichlet distribution; the smaller, the more the sites differ.
        seed: fixes the draw.

    Raises:
        DataError: groups or labels that the way needs are not there, or a site would stay empty.
        ValueError: an argument outside its range.
    """
    if way not in WAYS:
        raise ValueError(f"partition: expected one of {', '.join(WAYS)}, got {way!r}")
    if way == "data":
        return list(records)
    by_subject: dict[str, list[Record]] = {}
    for record in records:
        by_subject.setdefault(record.subject, []).append(record)
    if way == "group":
        missing = sorted(subject for subject, own in by_subject.items() if not own[0].group)
        if missing:
            raise DataError(f"partition: expected a group of every subject, {missing[0]} has none; use iid")
        return [replace(record, site=record.group) for record in records]
    if sites < 2:
        raise ValueError(f"sites: expected at least 2, got {sites}")
    if not concentration > 0:
        raise ValueError(f"concentration: expected a positive number, got {concentration}")
    rng = np.random.default_rng(seed)
    subjects = sorted(by_subject)
    if way == "iid":
        site_of = _iid(subjects, sites, rng)
    else:
        site_of = _skewed({s: stratum(own) for s, own in by_subject.items()}, sites, concentration, rng)
    empty = sites - len(set(site_of.values()))
    if empty:
        raise DataError(
            f"partition: expected subjects for {sites} sites, {empty} would have none; use fewer sites, more subjects"
            " or a larger concentration"
        )
    return [replace(record, site=f"site-{site_of[record.subject]}") for record in records]
