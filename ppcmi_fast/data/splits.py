"""Splits by subject, inside every site."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ppcmi_fast.data.records import Record
from ppcmi_fast.errors import DataError

MIN_SUBJECTS = 3


@dataclass(frozen=True)
class Split:
    """Training, validation and test records; no subject is in two of them."""

    train: list[Record]
    val: list[Record]
    test: list[Record]

    def to_json(self) -> dict[str, dict[str, list[str]]]:
        """Part -> site -> its subjects."""
        return {
            part: {
                site: sorted({r.subject for r in records if r.site == site})
                for site in sorted({r.site for r in records})
            }
            for part, records in (("train", self.train), ("val", self.val), ("test", self.test))
        }


def check_disjoint(split: Split) -> None:
    """Raise DataError when a subject is in two parts."""
    parts = {"train": split.train, "val": split.val, "test": split.test}
    subjects = {name: {record.subject for record in records} for name, records in parts.items()}
    for first, second in combinations(subjects, 2):
        both = sorted(subjects[first] & subjects[second])
        if both:
            raise DataError(
                f"split: expected every subject in one part, got {', '.join(both[:5])} in {first} and {second};"
                " split by subject, never by image"
            )


def _held_out(subjects: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    """Test and validation subjects of a site: rounded fractions, cut where a part would be left without any."""
    vals = min(max(1, round(fractions[1] * subjects)), subjects - 2)
    tests = min(max(1, round(fractions[2] * subjects)), subjects - 1 - vals)
    return tests, vals


def stratum(records: Sequence[Record]) -> str:
    """What a subject is told apart by: its group, or without one the classes that its masks show."""
    if records[0].group:
        return records[0].group
    return ",".join(map(str, sorted({label for record in records for label in record.classes})))


def _stratified(
    by_subject: dict[str, list[Record]], generator: random.Random, ties: random.Random
) -> list[str]:
    """Subjects at random, in an order whose every beginning holds about the same share of each stratum.

    Equally large strata have their members at the same places: which of them comes first is drawn from `ties`. By name,
    sites that hold one subject of each group would all validate on the same group. Where others meet, the larger comes
    first, so the rarer is rather trained on than held out.
    """
    strata: dict[str, list[str]] = {}
    for subject, own in sorted(by_subject.items()):
        strata.setdefault(stratum(own), []).append(subject)
    places: dict[str, tuple[float, int, float]] = {}
    for members in strata.values():
        generator.shuffle(members)
        for number, subject in enumerate(members):
            places[subject] = ((number + 0.5) / len(members), -len(members), ties.random())
    return sorted(places, key=places.__getitem__)


def split_by_subject(
    records: Sequence[Record], fractions: tuple[float, float, float] = (0.6, 0.15, 0.25), seed: int = 0
) -> Split:
    """Divide every site's subjects at random, stratified; each site has at least one subject in each part.

    Subjects of one group, or without groups those whose masks show the same classes, are divided in proportion.

    Args:
        records: all records.
        fractions: of the subjects for train, val and test; sum 1.
        seed: fixes the draw.

    Raises:
        DataError: a site with fewer than 3 subjects.
        ValueError: fractions that are not positive or do not sum to 1.
    """
    if not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):
        raise ValueError(f"fractions: expected three positive numbers that sum to 1, got {fractions}")
    parts: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    generator, ties = random.Random(seed), random.Random(f"ties of {seed}")
    for site in sorted({record.site for record in records}):
        own: dict[str, list[Record]] = {}
        for record in records:
            if record.site == site:
                own.setdefault(record.subject, []).append(record)
        if len(own) < MIN_SUBJECTS:
            raise DataError(
                f"site {site!r}: expected at least {MIN_SUBJECTS} subjects (one each to train, validate and test),"
                f" got {len(own)}; add subjects or merge sites"
            )
        subjects = _stratified(own, generator, ties)
        tests, vals = _held_out(len(subjects), fractions)
        part_of = dict.fromkeys(subjects[:tests], "test") | dict.fromkeys(
            subjects[tests : tests + vals], "val"
        )
        for record in records:
            if record.site == site:
                parts[part_of.get(record.subject, "train")].append(record)
    split = Split(**parts)
    check_disjoint(split)
    return split


def limit_training(split: Split, images: int, seed: int = 0) -> Split:
    """Keep so many training images of each site, drawn at random; validation and test stay whole.

    Args:
        split: of all records.
        images: per site; 0 keeps all.
        seed: fixes the draw; of two limits the smaller keeps some of what the larger does.

    Raises:
        DataError: a site has fewer.
    """
    if not images:
        return split
    kept: list[Record] = []
    for site in sorted({record.site for record in split.train}):
        own = [record for record in split.train if record.site == site]
        if len(own) < images:
            raise DataError(
                f"reading.train_images: expected at most the {len(own)} training images of site {site!r}, got"
                f" {images}; lower it, or 0 for all"
            )
        order = list(range(len(own)))
        random.Random(seed).shuffle(order)
        kept += [own[number] for number in sorted(order[:images])]
    return replace(split, train=kept)
