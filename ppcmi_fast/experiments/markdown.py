"""How the page of experiments writes tables, intervals and differences."""

from __future__ import annotations

from collections.abc import Sequence

from ppcmi_fast.experiments.statistics import Difference
from ppcmi_fast.report.words import p_value


def interval(pair: list[float] | None, scale: float = 1, digits: int = 3) -> str:
    """Of a figure; a dash where there is none."""
    return "–" if pair is None else " .. ".join(f"{scale * value:.{digits}f}" for value in pair)


def difference(gap: Difference | None) -> list[str]:
    """Three cells: points of Dice, their interval and p."""
    if gap is None:
        return ["–", "–", "–"]
    return [f"{100 * gap.value:+.1f}", interval(gap.interval, 100, 1), p_value(gap.p)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines, with an empty one after them."""
    return [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
