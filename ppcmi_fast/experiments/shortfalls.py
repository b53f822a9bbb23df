"""Where ours is more than a point below a method: by how much, and which subject makes most of it."""

from __future__ import annotations

from collections.abc import Sequence

from ppcmi_fast.experiments.records import OURS
from ppcmi_fast.experiments.variants import Variant

# Of Dice.
POINT = 0.01


def shortfalls_of(variants: Sequence[Variant]) -> list[str]:
    """What the page says of each method that is more than a point above ours, whose parts are left out."""
    lines = []
    for variant in variants:
        for method in variant.methods:
            if OURS in variant.methods and not method.startswith(OURS):
                lines += _shortfall(variant, method)
    return lines


def _shortfall(variant: Variant, method: str) -> list[str]:
    held, gaps = variant.held, variant.dice(OURS) - variant.dice(method)
    parts = held.parts(gaps)
    if parts.sum() >= -POINT:
        return []
    most = int(parts.argmin())
    one = f"{held.names[most]} of {held.sites[held.site_of[most]]}"
    below = int((held.subject_means(gaps) < 0).sum())
    return [
        f"Ours less {variant.title(method)} in `{variant.name}`: {100 * parts.sum():+.1f} points; one subject, {one},"
        f" adds {100 * parts[most]:+.1f}, and ours is below it at {below} of {len(parts)} subjects.",
        "",
    ]
