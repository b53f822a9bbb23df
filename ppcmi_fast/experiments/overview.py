"""What the page of experiments begins with: the comparisons side by side, and where each question is answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ppcmi_fast.experiments.markdown import difference, table
from ppcmi_fast.experiments.records import OURS
from ppcmi_fast.experiments.variants import COMPARED, COMPARISONS, Variant, variants_of
from ppcmi_fast.report.runfolder import method_order

POOLED = "unet_centralised"


def anchor(title: str) -> str:
    """That of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def link(result: dict[str, Any]) -> str:
    """To an experiment's section of the page."""
    return f"[{result['title']}](#{anchor(result['title'])})"


def overview(results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of the page: Dice of every comparison's methods, and the sections with what they ask."""
    return [
        "## At a glance",
        "",
        *_comparisons(results),
        "What is asked:",
        "",
        *(f"- {link(result)}: {result['question']}" for result in results),
        "",
    ]


def _comparisons(results: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each comparison that has a variant with ours beside a pooled network; no table where none has."""
    found = [(result, variant) for result in results if (variant := _compared(result)) is not None]
    if not found:
        return []
    names = {name for _, variant in found for name in variant.methods}
    methods = [name for name in method_order(list(names)) if name == OURS or not name.startswith(OURS)]
    head = ["", "seeds", *(found[0][1].title(name) for name in methods), "ours less pooled", "95 %", "p"]
    rows = [
        [
            link(result),
            str(len(variant.seeds)),
            *(variant.shown(name) if name in variant.methods else "–" for name in methods),
            *difference(variant.against(OURS)[POOLED]),
        ]
        for result, variant in found
    ]
    said = (
        "Dice of each comparison's methods, bold as in their sections; differences in points. Other trainings, rates"
        " and budgets, with which some methods do better, stand there."
    )
    return [said, "", *table(head, rows)]


def _compared(result: dict[str, Any]) -> Variant | None:
    """The first variant of a comparison that has ours and the pooled network."""
    if not result["experiment"].startswith(COMPARISONS):
        return None
    variants = {variant.name: variant for variant in variants_of(result)}
    known = (variants[name] for name in COMPARED if name in variants)
    return next((variant for variant in known if {OURS, POOLED} <= {*variant.methods}), None)
