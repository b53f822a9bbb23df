"""Subjects to sites."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ppcmi_fast.data.partition import partition
from ppcmi_fast.data.records import Record
from ppcmi_fast.errors import DataError


def records(subjects: int = 40, slices: int = 3, groups: tuple[str, ...] = ("DCM", "NOR")) -> list[Record]:
    return [
        Record(
            Path(f"{s}-{i}"),
            Path("m"),
            f"s{s:02d}",
            "site",
            index=i,
            group=groups[s % len(groups)],
            classes=(1 + s % 2,),
        )
        for s in range(subjects)
        for i in range(slices)
    ]


def sites_of(found: list[Record]) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for record in found:
        out.setdefault(record.subject, set()).add(record.site)
    return out


@pytest.mark.parametrize("way", ["group", "iid", "skew"])
def test_a_subject_is_never_divided_and_nothing_is_lost(way: str) -> None:
    before = records()
    found = partition(before, way, sites=4)
    assert [(r.image, r.subject) for r in found] == [(r.image, r.subject) for r in before]
    assert all(len(sites) == 1 for sites in sites_of(found).values())
    assert partition(before, way, sites=4) == found


def test_iid_sites_are_of_one_size_and_depend_on_the_seed() -> None:
    first, second = partition(records(), "iid", sites=4), partition(records(), "iid", sites=4, seed=1)
    assert set(Counter(r.site for r in first).values()) == {30}
    assert first != second


def test_groups_become_sites() -> None:
    assert {(r.group, r.site) for r in partition(records(), "group")} == {("DCM", "DCM"), ("NOR", "NOR")}


def test_skewed_sites_differ_more_the_smaller_the_concentration() -> None:
    def spread(concentration: float) -> float:
        total = 0.0
        for seed in range(20):
            found = partition(records(200, 1), "skew", sites=2, concentration=concentration, seed=seed)
            shares = [
                sum(r.group == "DCM" for r in found if r.site == site) / sum(r.site == site for r in found)
                for site in ("site-0", "site-1")
            ]
            total += abs(shares[0] - shares[1])
        return total / 20

    assert spread(0.5) > 2 * spread(100)


def test_without_groups_the_classes_of_the_masks_are_skewed() -> None:
    plain = records(groups=("",))
    assert {r.site for r in partition(plain, "skew", sites=2, concentration=5)} == {"site-0", "site-1"}
    with pytest.raises(DataError, match="expected a group of every subject, s00 has none"):
        partition(plain, "group")


def test_data_leaves_sites_as_they_are() -> None:
    assert partition(records(), "data") == records()


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"way": "even"}, ValueError, "partition: expected one of data, group, iid, skew, got 'even'"),
        ({"way": "iid", "sites": 1}, ValueError, "sites: expected at least 2, got 1"),
        ({"way": "skew", "concentration": 0}, ValueError, "concentration: expected a positive number"),
        ({"way": "iid", "sites": 50}, DataError, "10 would have none; use fewer sites"),
    ],
)
def test_a_wrong_argument_is_named(settings: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        partition(records(), **settings)  # type: ignore[arg-type]


def test_nothing_to_skew_by_is_named() -> None:
    alike = [Record(Path(f"{s}"), Path("m"), f"s{s}", "site", classes=(1,)) for s in range(8)]
    with pytest.raises(DataError, match="all are '1'; use iid"):
        partition(alike, "skew", sites=2)
