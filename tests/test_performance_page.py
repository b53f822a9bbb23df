"""docs/performance.md says what the figures in benchmarks/results/ say."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_performance", ROOT / "docs" / "make_performance.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_performance"] = module  # dataclasses look their module up while it is being read
    spec.loader.exec_module(module)
    return module


make: Any = _load()
CPU: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())

ROOF: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "roof.json").read_text())["roofs"]


def test_the_page_is_what_the_figures_say() -> None:
    assert (ROOT / "docs" / "performance.md").read_text() == make.page(
        CPU, ROOF, make.load("gpu"), make.load("cpu_epyc")
    )


def test_every_target_is_there_and_a_missed_one_is_called_so() -> None:
    texts = [target.text for target in make.targets(CPU)]
    for wanted in (
        "eager chain",
        "torch.compile",
        "memcpy",
        "klt_dequantize",
        "bits over",
        "two threads",
        "64 elements",
    ):
        assert any(wanted in text for text in texts), wanted
    slow = copy.deepcopy(CPU)
    make.only(slow, "headline", operation="klt_quantize", channels=64)["calls"]["eager"]["over_ours"] = 11.9
    (target,) = [t for t in make.targets(slow) if t.text.startswith("C=64: klt_quantize, vs the eager")]
    assert not target.met and "**not met**" in make.page(slow, ROOF, None)
    fast = copy.deepcopy(slow)
    make.only(fast, "headline", operation="klt_quantize", channels=64)["calls"]["eager"]["over_ours"] = 12.0
    assert next(t for t in make.targets(fast) if t.text == target.text).met


def test_without_a_gpu_no_figure_stands_in_its_place() -> None:
    text = make.page(CPU, ROOF, None).split("## On a GPU")[1]
    assert text.count("not yet measured") == 3 and "B / 5" in text


def test_a_gpus_figures_are_set_against_its_copy() -> None:
    case = copy.deepcopy(make.only(CPU, "headline", operation="klt_quantize", channels=64))
    case["calls"] = {"ours": {"median_us": 50.0}, "copy_": {"median_us": 100.0}}
    device = {"name": "A GPU", "torch": "2.11", "cuda": "13.0"}
    text = make.page(CPU, ROOF, {"device": device, "benchmark": {"cases": [case]}})
    # 5 bytes an element in half the time in which the copy moves 8.
    assert "| 125 % |" in text and "not yet measured" not in text


def test_operations_count_stages_signs_norm_and_result() -> None:
    case = {"case": {"channels": 64}}
    assert make.operations(case) == 2 * (6 + 1) + 4
    case = {"case": {"channels": 48}}
    assert make.operations(case) == 2 * (4 + 2 * 3 + 1) + 4


def test_the_roofline_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    make.draw(CPU, ROOF, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


def test_where_the_time_goes_is_computed_from_the_roofs() -> None:
    case = make.only(CPU, "headline", operation="klt_quantize", channels=64)
    roof = {**ROOF, "add_gflop_s": make.operations(case) * make.elements(case) * 1e-3 / 77.0}
    assert "| 64 | 18 | 77 |" in make.page(CPU, roof, None)
