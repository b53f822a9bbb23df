"""The GPU's part of docs/performance.md, from benchmarks/results/gpu.json, which `make gpu-check` writes."""

from __future__ import annotations

import re
from typing import Any

from performance_tables import Case, Target, cases, elements, over_ours, rate, table, target_table

from ppcmi_fast.benchmark.suites import gpu_suite

SMALL_DENSE = (16, 32, 64)
LAB_IDEAS = {
    "1": "a thread is a position, its vector in local memory",
    "2": "32 positions a block in shared memory, a barrier after every stage",
    "3": "four stages at a time in registers",
    "4": "the package's kernel: whole vectors in registers, or shared memory crossed twice",
}


def copy_rate(case: Case) -> float:
    """Bytes that torch's copy of the float32 tensor reads and writes, per second, in GB/s."""
    return float(8 * elements(case) / case["calls"]["copy_"]["median_us"] * 1e-3)


def share(case: Case) -> float:
    """Our rate over that of the copy, in percent: of the bytes that must move, not of those that did."""
    return 100 * rate(case) / copy_rate(case)


def targets(results: dict[str, Any]) -> list[Target]:
    """What the issue of the kernels asks of a GPU, and what was measured."""
    wanted = [
        (
            f"float32 in, int8 out, C={channels}",
            5,
            limit,
            _found(results, "headline", "klt_quantize", channels),
        )
        for channels, limit in ((64, 85), (256, 80))
    ]
    wanted += [
        (
            f"float16 in and out, dense, C={channels}",
            4,
            75,
            _found(results, "dense", "klt", channels, "float16"),
        )
        for channels in SMALL_DENSE
    ]
    return [
        Target(
            f"{text} ({nbytes} bytes an element)",
            f">= {limit} %",
            f"{share(case):.0f} %" if case else "not yet measured",
            case is not None and share(case) >= limit,
        )
        for text, nbytes, limit, case in wanted
    ]


def _found(
    results: dict[str, Any], group: str, operation: str, channels: int, dtype: str = "float32"
) -> Case | None:
    found = cases(results, group, operation=operation, channels=channels, dtype=dtype)
    return found[0] if found else None


def _unmeasured() -> list[str]:
    goals = [
        ("fp32 in, int8 out, C=64", 85, 4 + 1),
        ("fp32 in, int8 out, C=256", 80, 4 + 1),
        ("fp16 dense in and out, small C", 75, 2 + 2),
    ]
    rows = [[text, f"{nbytes}", f">= {goal} %", "not yet measured"] for text, goal, nbytes in goals]
    return [
        "No GPU was at hand for a benchmark. The kernels compile for sm_80, sm_90 and sm_100 and their logic is tested"
        " on the CPU (csrc/README.md); `make gpu-check` fills this table.",
        "",
        *table(["what", "bytes an element", "of measured copy bandwidth", "measured"], rows),
        "",
        "The paper roofline: at a copy bandwidth of B GB/s, `klt_quantize` of float32 to 8 bits can do B / 5"
        " billion elements a second; the unfused chain moves about 57 bytes an element, so at most B / 57.",
    ]


def _headline(results: dict[str, Any]) -> list[str]:
    rows = []
    for case in cases(results, "headline"):
        operation, channels = case["case"]["operation"], case["case"]["channels"]
        others = {name: (case, name) for name in ("eager", "matmul", "copy_")}
        for compiled in cases(results, "compiled", operation=operation, channels=channels):
            others["compiled"] = (compiled, "compiled")
        cells = [
            f"{found['calls'][call]['median_us']:.0f} ({over_ours(found, call):.1f}x)"
            for found, call in (
                others[name] for name in ("eager", "compiled", "matmul", "copy_") if name in others
            )
        ]
        ours = [f"{case['calls']['ours']['median_us']:.0f}", f"{rate(case):.0f}", f"{share(case):.0f} %"]
        rows.append([f"{operation}, C={channels}", *ours, *cells])
    compiled_too = ["torch.compile of it"] if cases(results, "compiled") else []
    head = ["us", "ours", "GB/s", "of copy", "eager chain", *compiled_too, "matmul alone", "copy"]
    return table(head, rows)


def _grid(results: dict[str, Any]) -> list[str]:
    rows = []
    for channels in (64, 256):
        for layout in ("nchw", "nhwc"):
            for dtype in ("float32", "float16", "bfloat16"):
                settings = {"channels": channels, "layout": layout, "dtype": dtype}
                cells = [_cell(cases(results, "grid", bits=bits, **settings)) for bits in (8, 4, 2)]
                rows.append([f"C={channels}, {layout}, {dtype}", *cells])
    return table(["us (of copy)", "8 bits", "4 bits", "2 bits"], rows)


def _cell(found: list[Case]) -> str:
    if not found:
        return "not yet measured"
    return f"{found[0]['calls']['ours']['median_us']:.0f} ({share(found[0]):.0f} %)"


def _dense(results: dict[str, Any]) -> list[str]:
    channels = sorted({case["case"]["channels"] for case in cases(results, "dense")})
    rows = []
    for operation in ("klt", "klt_quantize", "klt_dequantize"):
        for dtype in ("float32", "float16", "bfloat16"):
            settings = {"operation": operation, "dtype": dtype}
            cells = [_cell(cases(results, "dense", channels=c, **settings)) for c in channels]
            if set(cells) != {"not yet measured"}:
                rows.append([f"{operation}, {dtype}", *cells])
    return table(["us (of copy)", *(f"C={c}" for c in channels)], rows)


def _lab(steps: list[dict[str, Any]]) -> list[str]:
    found: dict[str, dict[str, str]] = {}
    for step in steps:
        if step["step"].startswith("lab: ") and step["passed"]:
            channels = step["step"].split()[1]
            for number, time, part in re.findall(
                r"version (\d): ([\d.]+) ms, \d+ GB/s, (\d+) %", step["said"]
            ):
                found.setdefault(number, {})[channels] = f"{1e3 * float(time):.0f} ({part} %)"
    if not found:
        return []
    columns = sorted({channels for row in found.values() for channels in row}, key=int)
    rows = [
        [number, LAB_IDEAS[number], *(row.get(channels, "") for channels in columns)]
        for number, row in found.items()
    ]
    return [
        "How the kernel came about (`benchmarks/lab/`), `klt_quantize` of float32 to 8 bits:",
        "",
        *table(["version", "idea", *(f"C={channels}, us (of copy)" for channels in columns)], rows),
        "",
    ]


def _left(groups: list[str]) -> str:
    return f" Of these groups of cases some are not yet measured: {', '.join(groups)}." if groups else ""


def _verdict(step: dict[str, Any]) -> str:
    if step["passed"]:
        return "passed"
    if step["said"].startswith("stopped after"):
        return f"**{step['said']}**"
    return "**failed**"


def gpu_section(results: dict[str, Any] | None) -> list[str]:
    """Its lines; without figures, what is wanted and that it was not measured."""
    lines = ["## On a GPU", ""]
    if results is None or not (results.get("benchmark") or {}).get("cases"):
        return lines + _unmeasured()
    device, steps, measured = results["device"], results["steps"], results["benchmark"]
    count = elements(measured["cases"][0])
    checks = ", ".join(f"{s['step']} {_verdict(s)}" for s in steps)
    whole = {
        (group, case.operation, case.channels, case.dtype, case.bits, case.layout)
        for group, case, _ in gpu_suite()
    }
    done = {
        (c["group"], *(c["case"][name] for name in ("operation", "channels", "dtype", "bits", "layout")))
        for c in measured["cases"]
    }
    left = sorted({group for group, *_ in whole - done})
    return [
        *lines,
        f"{device['name']}, torch {device['torch']}, CUDA {device['cuda']}; `{results['command']}` wrote"
        f" `benchmarks/results/gpu.json`. Latents of {count / 1e6:.0f} million elements, beyond the caches; medians,"
        " calls in turns, timed by events. `of copy`: the bytes that the operator must read and write over its time,"
        " as a part of what torch's `copy_` of the float32 latents reaches.",
        "",
        *target_table(targets(measured)),
        "",
        "Against what a torch user has (times over ours):",
        "",
        *_headline(measured),
        "",
        "`klt_quantize`, structured, by format and type:",
        "",
        *_grid(measured),
        "",
        "Dense mixing (`haar`), 8 bits:",
        "",
        *_dense(measured),
        "",
        *_lab(steps),
        f"What the command checked: {checks}.{_left(left)}",
    ]
