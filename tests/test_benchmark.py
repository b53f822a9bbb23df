"""The benchmark: what competes gives the same result, calls take turns, and a suite's file is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from native_layouts import WRITERS
from typer.testing import CliRunner

from ppcmi_fast.benchmark import suites, timing
from ppcmi_fast.benchmark.cases import DTYPES, LAYOUTS, Case, calls_of, measure
from ppcmi_fast.cli.app import app
from ppcmi_fast.errors import ConfigError


def test_calls_take_turns_after_one_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.0)  # one call a sample
    order: list[str] = []
    calls: dict[str, Callable[[], Any]] = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    samples = timing.take_turns(calls, 3)
    assert order == ["a"] * 2 + ["b"] * 2 + ["a", "a", "b", "b"] * 3
    assert [len(times) for times in samples.values()] == [3, 3]


def test_cold_calls_come_after_other_memory_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "EVICTING_BYTES", 64)
    order: list[str] = []
    calls: dict[str, Callable[[], Any]] = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    monkeypatch.setattr(torch.Tensor, "add_", lambda *_: order.append("evict"))
    samples = timing.take_turns_cold(calls, 2)
    assert order == ["a", "b", *["evict", "a", "evict", "b"] * 2]
    assert all(len(times) == 2 for times in samples.values())


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is ten times slower in the second round: medians of the calls alone would not tell 2 from it.
    summary = timing.summarise({"ours": [1e-6, 1e-5, 1e-6], "other": [2e-6, 2e-5, 2e-6]}, "ours")
    assert summary["other"]["over_ours"] == 2 and summary["ours"]["over_ours"] == 1
    assert summary["other"]["median_us"] == 2


@pytest.mark.parametrize("mixing", ["hadamard", "haar"])
@pytest.mark.parametrize("channels", [16, 24])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_eager_chain_gives_our_result(mixing: str, channels: int, bits: int, layout: str) -> None:
    case = Case("klt_quantize", mixing, channels, 2, 8, bits=bits, layout=layout)
    calls = calls_of(case, peers=False)
    ours, eager = calls["ours"](), calls["eager"]()
    assert ours.shape == eager.shape and (ours != eager).float().mean() < 1e-3  # ties
    back = calls_of(Case("klt_dequantize", mixing, channels, 2, 8, bits=bits, layout=layout), peers=False)
    torch.testing.assert_close(back["ours"](), back["eager"](), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_of_image_and_codes(dtype: str) -> None:
    case = Case(channels=64, batch=2, size=4, dtype=dtype, bits=4)
    elements = 2 * 64 * 16
    assert case.bytes_moved == elements * (4 if dtype == "float32" else 2) + elements // 2
    assert Case("klt", channels=64, batch=2, size=4, dtype=dtype).bytes_moved == 2 * elements * (
        4 if dtype == "float32" else 2
    )


def test_memcpy_copies_the_same_bytes() -> None:
    calls = calls_of(Case(channels=16, batch=1, size=8))
    source, target = calls["memcpy"].args[1], calls["memcpy"].args[0]  # type: ignore[attr-defined]
    calls["memcpy"]()
    assert torch.equal(source, target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operation": "svd"}, "operation: expected one of"),
        ({"mixing": "fourier"}, "mixing: expected one of"),
        ({"bits": 3}, "bits: expected one of"),
        ({"channels": 3, "bits": 4}, "bits: expected whole bytes, got 4 bits of 3 channels"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"device": "tpu"}, "device: expected one of"),
    ],
)
def test_a_wrong_case_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(**settings)


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    measure(Case(channels=16, batch=1, size=4, threads=2), 3)
    assert torch.get_num_threads() == before


def test_a_suite_covers_what_the_page_promises() -> None:
    grid = [case for group, case, _ in suites.cpu_suite(compiled=False, threads=2) if group == "grid"]
    assert {c.channels for c in grid} == {32, 48, 64, 128, 256, 512} and {c.batch for c in grid} == {1, 8, 32}
    assert {(c.layout, c.dtype, c.bits, c.threads) for c in grid} == {
        (layout, dtype, bits, threads)
        for layout in LAYOUTS
        for dtype in DTYPES
        for bits in (2, 4, 8)
        for threads in (1, 2)
    }
    gpu = list(suites.gpu_suite())
    assert all(case.device == "cuda" and case.elements * 4 >= 2**28 for _, case, _ in gpu)


def test_the_roofs_are_above_what_any_operator_reaches(tmp_path: Path) -> None:
    out = tmp_path / "roof.json"
    suites.run_roofs(out, "ppcmi bench klt --suite roof")
    roofs = json.loads(out.read_text())["roofs"]
    assert roofs["multiply_add_gflop_s"] > roofs["add_gflop_s"] > 1
    assert set(roofs["memcpy_gb_s"]) == {"64", "256"} and all(
        rate > 1 for rate in roofs["memcpy_gb_s"].values()
    )


def test_groups_are_measured_again_and_the_others_kept(tmp_path: Path) -> None:
    small = Case(channels=16, batch=1, size=4)
    planned: list[suites.Planned] = [
        (group, small, {"rounds": 3, "peers": False}) for group in ("bits", "grid")
    ]
    out = tmp_path / "cpu.json"
    settings: dict[str, Any] = {"device": "cuda", "threads": 1, "tell": lambda _: None}
    with pytest.raises(ConfigError, match="--again: expected the figures of a whole run"):
        suites.run(planned, out, command="b", again=("bits",), **settings)
    suites.run(planned, out, command="a", **settings)
    before = {case["group"]: case for case in json.loads(out.read_text())["cases"]}
    suites.run(planned, out, command="b", again=("bits",), **settings)
    after = json.loads(out.read_text())
    assert (after["command"], after["again"]) == ("a", "b")
    found = {case["group"]: case for case in after["cases"]}
    assert len(after["cases"]) == 2 and found["grid"] == before["grid"] and found["bits"] != before["bits"]
    with pytest.raises(ConfigError, match="--again: expected groups among bits, grid, got all"):
        suites.run(planned, out, command="b", again=("all",), **settings)


def test_a_suites_file_is_whole_and_names_its_command(tmp_path: Path) -> None:
    lines: list[str] = []
    small = Case(channels=16, batch=1, size=4)
    planned: list[suites.Planned] = [("bits", small, {"rounds": 3, "peers": False})] * 2
    out = tmp_path / "cpu.json"
    suites.run(planned, out, device="cuda", threads=1, command="ppcmi bench klt", tell=lines.append)
    result = json.loads(out.read_text())
    assert result["command"] == "ppcmi bench klt" and len(result["cases"]) == len(lines) == 2
    assert result["cases"][0]["case"]["channels"] == 16 and "cpu" in result["environment"]
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.json"]


def test_reading_is_measured_against_training(tmp_path: Path) -> None:
    out = tmp_path / "reading.json"
    folders = [str(WRITERS[layout](tmp_path / layout)) for layout in ("msd", "nerve")]
    result = CliRunner().invoke(
        app, ["bench", "reading", *folders, "--size", "32", "--limit", "16", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert str(tmp_path) not in found["command"] and found["environment"]["threads"] == 1
    for entry, images in zip(found["sets"], (18, 12), strict=True):  # volumes of 6 slices are taken whole
        assert entry["images"] == images and min(entry["images_per_second"].values()) > 0
        # float32 pixels, 16-bit classes, three headers and a digest.
        assert 32 * 32 * 6 < entry["cache_bytes_per_image"] < 32 * 32 * 6 + 1000
