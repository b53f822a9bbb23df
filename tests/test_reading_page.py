"""docs/reading.md says what the figures in benchmarks/results/ say."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("make_reading", ROOT / "docs" / "make_reading.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load()
FIGURES: dict[str, Any] = json.loads(make.FIGURES.read_text())


def test_the_page_is_what_the_figures_say() -> None:
    assert make.PAGE.read_text() == make.page(FIGURES)


def test_the_slowest_set_is_named() -> None:
    changed = copy.deepcopy(FIGURES)
    changed["sets"][2]["images_per_second"]["decoded"] = 1.0
    assert f"even {changed['sets'][2]['dataset']}, the slowest to decode, is read at 1 images" in make.page(
        changed
    )
