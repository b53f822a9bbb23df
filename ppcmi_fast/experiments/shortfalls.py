"""Where ours is clearly below a method: by how much, and which subjects the difference is made of."""

from __future__ import annotations

from collections.abc import Sequence

from ppcmi_fast.experiments.records import OURS
from ppcmi_fast.experiments.variants import Variant

# Of Dice; what the page does not explain is smaller.
POINT = 0.01


def shortfalls_of(variants: Sequence[Variant]) -> list[str]:
    """What the page says of each method that is more than a point above ours, whose parts are left out."""
    lines = []
    for variant in variants:
        gaps = variant.against(OURS) if OURS in variant.methods else {}
        for method, gap in gaps.items():
            if not method.startswith(OURS) and gap.value < -POINT:
                lines += [_shortfall(variant, method), ""]
    return lines


def _shortfall(variant: Variant, method: str) -> str:
    held = variant.held
    gaps = variant.dice(OURS) - variant.dice(method)
    parts = held.parts(gaps)
    most = int(parts.argmin())
    below = int((held.subject_means(gaps) < 0).sum())
    one = f"{held.names[most]} of {held.sites[held.site_of[most]]}"
    return (
        f"Ours less {variant.title(method)} in `{variant.name}`: {100 * parts.sum():+.1f} points, of which"
        f" {100 * parts[most]:+.1f} by one subject, {one}; ours is below it at {below} of {len(parts)} subjects."
    )
