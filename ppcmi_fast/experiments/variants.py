"""The records of an experiment's variants, and what they come to over their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ppcmi_fast.experiments.records import MEASURES, SUBJECT_COLUMNS
from ppcmi_fast.experiments.statistics import Difference, Floats, Held, differences
from ppcmi_fast.report.runfolder import method_title

# How experiments that compare methods begin, and the variants that hold their tables of methods.
COMPARISONS = ("comparison", "phantom")
COMPARED = ("main", "other-methods", "all")
LEVEL = 0.05
DICE, IOU, HD95 = range(len(MEASURES))


@dataclass(frozen=True)
class Variant:
    """The records of one variant, a seed each, and what they come to."""

    name: str
    records: Sequence[dict[str, Any]]

    @property
    def methods(self) -> list[str]:
        """Those that every record has."""
        first, *others = (record["methods"] for record in self.records)
        return [name for name in first if all(name in other for other in others)]

    @property
    def seeds(self) -> list[int]:
        """Of the records."""
        return [record["seed"] for record in self.records]

    @cached_property
    def held(self) -> Held:
        """Who was held out, the same for every method."""
        return Held.of(
            {record["seed"]: next(iter(record["methods"].values()))["scores"] for record in self.records}
        )

    def scores(self, method: str) -> Floats:
        """[E, measures, classes]."""
        return np.array(
            [row[SUBJECT_COLUMNS:] for record in self.records for row in record["methods"][method]["scores"]],
            dtype=np.float64,
        )

    def dice(self, method: str) -> Floats:
        """Mean over classes, [E]."""
        mean: Floats = self.scores(method)[:, DICE].mean(1)
        return mean

    def site_dice(self, method: str) -> Floats:
        """Mean of each of `held.sites`."""
        return self.held.site_means(self.dice(method)[:, None])[:, 0]

    def mean(self, method: str) -> Floats:
        """Of each measure."""
        return self.held.mean(self.scores(method).mean(2))

    def fact(self, method: str, name: str) -> float:
        """Mean over seeds of what the run noted."""
        return float(np.mean([record["methods"][method][name] for record in self.records]))

    def against(self, method: str) -> dict[str, Difference]:
        """One method less each of the others."""
        others = {name: self.dice(name) for name in self.methods if name != method}
        return differences(self.held, self.dice(method), others)

    @cached_property
    def best(self) -> set[str]:
        """The best Dice, and what cannot be told from it."""
        top = max(self.methods, key=lambda name: self.mean(name)[DICE])
        gaps = self.against(top)
        # The smallest p that so few subjects can give, after Holm: above the level the test could find nothing.
        blind = len(gaps) * 2.0 ** (1 - len(self.held.site_of)) >= LEVEL
        return {top, *(name for name, gap in gaps.items() if _tied(gap, blind))}

    def shown(self, method: str) -> str:
        """Its Dice as readers see it: bold among the best."""
        dice = f"{self.mean(method)[DICE]:.3f}"
        return f"**{dice}**" if method in self.best else dice

    def title(self, method: str) -> str:
        """As readers see it."""
        return method_title(method, self.records[0]["settings"])

    @property
    def payload(self) -> int:
        """Bytes of a query and its reply."""
        return int(sum(self.records[0]["payload_bytes"].values()))


def _tied(gap: Difference, blind: bool) -> bool:
    """Whether a method cannot be told from the best: by the test, or by the interval where the test is blind."""
    if blind:
        return gap.interval is not None and gap.interval[0] <= 0 <= gap.interval[1]
    return gap.p is not None and gap.p >= LEVEL


def variants_of(result: dict[str, Any]) -> list[Variant]:
    """In the order of the plan."""
    names = dict.fromkeys(record["variant"] for record in result["runs"])
    return [Variant(name, [r for r in result["runs"] if r["variant"] == name]) for name in names]
