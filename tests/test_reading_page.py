"""docs/reading.md says what the figures in benchmarks/results/ say."""

from __future__ import annotations

import copy
import json
from typing import Any

import make_reading as make

FIGURES: dict[str, Any] = json.loads(make.FIGURES.read_text())


def test_the_page_is_what_the_figures_say() -> None:
    assert make.PAGE.read_text() == make.page(FIGURES)


def test_the_slowest_set_is_named() -> None:
    changed = copy.deepcopy(FIGURES)
    changed["sets"][2]["images_per_second"]["decoded"] = 1.0
    assert f"even {changed['sets'][2]['dataset']}, the slowest to decode, is read at 1 images" in make.page(
        changed
    )
