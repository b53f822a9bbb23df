"""docs/performance.md says what the figures in benchmarks/results/ say."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import make_performance
import pytest

from ppcmi_fast.benchmark.cases import Case
from ppcmi_fast.benchmark.suites import gpu_suite

ROOT = Path(__file__).resolve().parents[1]


make: Any = make_performance
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
        "with nothing between them",
        "in turns with all others",
        "out of the caches",
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


def gpu_figures(ours_us: float, copy_us: float) -> dict[str, Any]:
    planned = [(group, asdict(case)) for group, case, _ in gpu_suite()]
    other = {"median_us": copy_us, "over_ours": copy_us / ours_us}
    calls = {"ours": {"median_us": ours_us}} | dict.fromkeys(("copy_", "eager", "compiled", "matmul"), other)
    measured = [
        {"group": group, "case": case, "bytes_moved": Case(**case).bytes_moved, "calls": calls}
        for group, case in planned
    ]
    said = "copy: 0.183 ms, 2927 GB/s\nversion 1: 1.705 ms, 197 GB/s, 7 % of the copy"
    steps = [
        {"step": "tests", "passed": False, "said": ""},
        {"step": "lab: 64 64 16384", "passed": True, "said": said},
    ]
    device = {"name": "A GPU", "torch": "2.11", "cuda": "13.0"}
    return {"command": "make gpu-check", "device": device, "benchmark": {"cases": measured}, "steps": steps}


def test_a_gpus_figures_are_set_against_its_copy() -> None:
    text = make.page(CPU, ROOF, gpu_figures(50.0, 100.0)).split("## On a GPU")[1]
    # 5 bytes an element in half the time in which the copy moves 8; dense float16 moves 4.
    assert "| float32 in, int8 out, C=64 (5 bytes an element) | >= 85 % | 125 % | met |" in text
    assert "| float16 in and out, dense, C=32 (4 bytes an element) | >= 75 % | 100 % | met |" in text
    assert "| 1705 (7 %) |" in text and "tests **failed**" in text and "not yet measured" not in text
    cut = gpu_figures(50.0, 100.0)
    cut["benchmark"]["cases"] = [
        c for c in cut["benchmark"]["cases"] if c["case"]["operation"] != "klt" or c["case"]["channels"] < 128
    ]
    cut["benchmark"]["cases"] = [c for c in cut["benchmark"]["cases"] if c["group"] != "compiled"]
    cut["steps"][0]["said"] = "stopped after 19 s"
    text = make.page(CPU, ROOF, cut).split("## On a GPU")[1]
    assert "some are not yet measured: compiled, dense." in text and "tests **stopped after 19 s**" in text
    assert "| not yet measured |" in text and "torch.compile" not in text
    slow = make.page(CPU, ROOF, gpu_figures(100.0, 100.0))
    assert "| 62 % | **not met** |" in slow


def test_the_verdict_on_arithmetic_follows_the_roof() -> None:
    assert "leaves room for reading" in make.page(CPU, ROOF | {"add_gflop_s": 1000.0}, None)
    slow = make.page(CPU, ROOF | {"add_gflop_s": 1.0}, None)
    assert "At C=64 and C=256 the arithmetic alone takes longer" in slow


def test_what_was_not_measured_again_is_named() -> None:
    again = CPU | {
        "again": "ppcmi bench klt --suite cpu --again bits,channels,headline,switch,threads --json x"
    }
    assert "after the last change of a kernel; grid is of before" in make.page(again, ROOF, None)
    whole = {key: value for key, value in CPU.items() if key != "again"}
    assert "of before" not in make.page(whole, ROOF, None)


def test_another_machine_has_a_table_of_its_own() -> None:
    other = copy.deepcopy(CPU)
    other["environment"]["cpu"] = "Another CPU"
    del other["warm"]
    text = make.page(CPU, ROOF, None, other).split("## Another machine")[1]
    assert text.strip().startswith("Another CPU") and "nothing between them" not in text
    assert "Another machine" not in make.page(CPU, ROOF, None)


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
