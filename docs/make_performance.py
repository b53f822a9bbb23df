"""Make docs/performance.md and its roofline from the figures in benchmarks/results/.

    python docs/make_performance.py            write docs/performance.md and docs/figures/roofline.png
    python docs/make_performance.py --check    fail when the page is not what the figures say

cpu.json and roof.json come from `make bench-cpu`, gpu.json from `make gpu-check`; where that is missing the page
says so. cpu_epyc.json is an earlier cpu.json, of another machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from performance_gpu import gpu_section
from performance_tables import Case, Target, cases, elements, only, over_ours, rate, table, target_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PAGE = DOCS / "performance.md"
FIGURE = DOCS / "figures" / "roofline.png"
ROUNDS = 2  # of the structured mixing, as SiteKey.klt_params makes it


def targets(results: dict[str, Any]) -> list[Target]:
    """What the issue of the kernels asks of a CPU, and what was measured."""
    lines = []

    def at_least(text: str, limit: float, value: float) -> None:
        lines.append(Target(text, f">= {limit:g}x", f"{value:.1f}x", value >= limit))

    def at_most(text: str, limit: float, value: float, unit: str = "x") -> None:
        lines.append(Target(text, f"<= {limit:g}{unit}", f"{value:.2f}{unit}", value <= limit))

    for channels, eager, compiled, copy in ((64, 12, 4, 1.5), (256, 11, 6, 1.8)):
        case = only(results, "headline", operation="klt_quantize", channels=channels)
        at_least(f"C={channels}: klt_quantize, vs the eager chain", eager, over_ours(case, "eager"))
        at_least(f"C={channels}: klt_quantize, vs torch.compile of it", compiled, over_ours(case, "compiled"))
        name, over = f"klt_quantize {channels}", f"C={channels}: klt_quantize, over a memcpy of the tensor"
        if "warm" in results:
            warm = results["warm"][name]
            at_most(f"{over}, with nothing between them", copy, 1 / warm["memcpy"]["over_ours"])
        at_most(f"{over}, in turns with all others", copy, 1 / over_ours(case, "memcpy"))
        cold = results["cold"][name]
        at_most(f"{over}, both out of the caches", copy, 1 / cold["memcpy"]["over_ours"])
    for channels, eager in ((64, 4), (256, 6)):
        case = only(results, "headline", operation="klt_dequantize", channels=channels)
        at_least(f"C={channels}: klt_dequantize, vs the eager chain", eager, over_ours(case, "eager"))
    for channels, calls in results["bits"].items():
        for bits in ("4", "2"):
            at_most(f"C={channels}: {bits} bits over 8 bits", 1.15, calls[bits]["over_ours"])
    for name, entry in results.get("threads", {}).items():
        if entry["megabytes"] >= 4:
            channels, batch = name.split("x")
            text = f"C={channels}, N={batch} ({entry['megabytes']:.0f} MB): two threads vs one"
            at_least(text, 1.7, entry["calls"]["1"]["over_ours"])
    for name in ("klt", "klt_quantize", "klt_dequantize"):
        at_most(f"{name} of 64 elements", 4, results["call_overhead"][name]["median_us"], " us")
    return lines


def times(call: dict[str, float] | None) -> str:
    """Median and quartiles in microseconds."""
    if call is None:
        return ""
    return f"{call['median_us']:.0f} ({call['low_us']:.0f} .. {call['high_us']:.0f})"


def copy_rate(case: Case) -> float:
    """Bytes that the memcpy reads and writes, per second, in GB/s."""
    return float(8 * elements(case) / case["calls"]["memcpy"]["median_us"] * 1e-3)


def operations(case: Case) -> float:
    """Additions and multiplications an element: stages, signs, norm, and the result's multiply-add."""
    channels = case["case"]["channels"]
    power = channels & -channels
    odd = channels // power
    mixing = math.log2(power) + (2 * odd if odd > 1 else 0)
    return ROUNDS * (mixing + 1) + 4


def _headline(results: dict[str, Any]) -> list[str]:
    found = cases(results, "headline")
    names = ["ours", "eager", "compiled", "memcpy", "copy_", "clone", "matmul", "fht_cpu"]
    titles = {
        "ours": "ours",
        "eager": "eager torch chain",
        "compiled": "torch.compile of it",
        "memcpy": "memcpy of the float32 tensor",
        "copy_": "`Tensor.copy_` of it",
        "clone": "`Tensor.clone` of it",
        "matmul": "torch.matmul alone, dense C x C",
        "fht_cpu": "fht_cpu: the two transforms alone",
    }
    head = ["microseconds: median (quartiles)"]
    head += [f"{case['case']['operation']} C={case['case']['channels']}" for case in found]
    return table(head, [[titles[n], *(times(case["calls"].get(n)) for case in found)] for n in names])


def _cold(results: dict[str, Any]) -> list[str]:
    head = ["microseconds: median (quartiles)", *(name.replace(" ", " C=") for name in results["cold"])]
    titles = {"ours": "ours", "eager": "eager torch chain", "memcpy": "memcpy of the float32 tensor"}
    rows = [
        [title, *(times(calls[name]) for calls in results["cold"].values())] for name, title in titles.items()
    ]
    return table(head, rows)


def _warm(results: dict[str, Any]) -> list[str]:
    both = [
        f"{calls['ours']['median_us']:.0f} and {calls['memcpy']['median_us']:.0f} us at C={name.split()[-1]}"
        for name, calls in results["warm"].items()
    ]
    return [
        f"With nothing between them, `klt_quantize` and memcpy take {', '.join(both)}. In turns, memcpy comes after"
        " calls that have filled the caches with other things, and `copy_` right after it, on the same memory.",
        "",
    ]


def _channels(results: dict[str, Any], mixing: str) -> list[str]:
    head = ["operator", "C", "us", "GB/s", "over memcpy", "eager / ours", "matmul / ours", "fht_cpu / ours"]
    rows = []
    for operation in ("klt", "klt_quantize", "klt_dequantize"):
        for case in cases(results, "channels", operation=operation, mixing=mixing):
            calls = case["calls"]
            eager = "eager" if "eager" in calls else "reference"
            rows.append(
                [
                    operation,
                    str(case["case"]["channels"]),
                    f"{calls['ours']['median_us']:.0f}",
                    f"{rate(case):.1f}",
                    f"{1 / over_ours(case, 'memcpy'):.1f}x",
                    f"{over_ours(case, eager):.1f}x",
                    f"{over_ours(case, 'matmul'):.1f}x",
                    f"{over_ours(case, 'fht_cpu'):.1f}x" if "fht_cpu" in calls else "",
                ]
            )
    return table(head, rows)


def _grid(results: dict[str, Any], threads: int) -> list[str]:
    rows = []
    for channels in sorted({case["case"]["channels"] for case in cases(results, "grid")}):
        row = [str(channels)]
        for layout in ("nchw", "nhwc"):
            for dtype in ("float32", "float16", "bfloat16"):
                found = cases(results, "grid", channels=channels, layout=layout, dtype=dtype, threads=threads)
                speed = statistics.median(
                    elements(case) / case["calls"]["ours"]["median_us"] * 1e-3 for case in found
                )
                eager = statistics.median(over_ours(case, "eager") for case in found)
                row.append(f"{speed:.1f} ({eager:.0f}x)")
        rows.append(row)
    return table(["C", *(f"{d} {f}" for f in ("NCHW", "NHWC") for d in ("fp32", "fp16", "bf16"))], rows)


def _range(results: dict[str, Any]) -> str:
    ratios = [over_ours(case, "eager") for case in cases(results, "grid")]
    slowest = min(cases(results, "grid"), key=lambda case: over_ours(case, "eager"))["case"]
    return (
        f"Over all {len(ratios)} cases eager torch takes {min(ratios):.1f} to {max(ratios):.0f} times our time, in the"
        f" median {statistics.median(ratios):.0f}; the least at C={slowest['channels']}, N={slowest['batch']},"
        f" {slowest['dtype']} {slowest['layout']}, {slowest['bits']} bits, {slowest['threads']} thread(s)."
    )


def _roofline_text(results: dict[str, Any], roof: dict[str, Any]) -> list[str]:
    add, memory = roof["add_gflop_s"], roof["memcpy_gb_s"]
    lines = [
        "![roofline](figures/roofline.png)",
        "",
        f"The roofs of one thread ({roof['isa']}, `ppcmi bench klt --suite roof`): {add:.0f} billion additions a"
        f" second in registers, {roof['multiply_add_gflop_s']:.0f} GFLOP/s with multiply-adds, of which a butterfly has"
        f" next to none; memcpy of the tensor {memory['64']:.0f} GB/s at C=64 and {memory['256']:.0f} GB/s at C=256,"
        " read and written. What `klt_quantize` makes of it:",
        "",
    ]
    rows, forbidden = [], []
    for channels, limit in ((64, 1.5), (256, 1.8)):
        case = only(results, "headline", operation="klt_quantize", channels=channels)
        work = operations(case) * elements(case) / add * 1e-3
        calls = results["warm"][f"klt_quantize {channels}"]
        copy, alone = (calls[name]["median_us"] for name in ("memcpy", "ours"))
        rows.append(
            [
                str(channels),
                f"{operations(case):.0f}",
                f"{work:.0f}",
                f"{limit * copy:.0f} ({limit} x {copy:.0f})",
                f"{alone:.0f}",
                f"{case['calls']['ours']['median_us']:.0f}",
            ]
        )
        if work > limit * copy:
            forbidden.append(f"C={channels}")
    head = ["C", "operations an element", "us at the roof of additions", "us of the target over memcpy"]
    lines += table([*head, "us, with nothing between", "us, in turns with others"], rows)
    verdict = (
        f"At {' and '.join(forbidden)} the arithmetic alone takes longer at its roof than the target allows: this"
        " machine's caches copy faster than its adders add."
        if forbidden
        else "The arithmetic alone leaves room for reading at both widths."
    )
    return [*lines, "", f"{verdict} What was tried is in csrc/README.md."]


def _machine(results: dict[str, Any]) -> str:
    facts = results["environment"]
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['isa'][-4:])};"
        f" {facts['system']}, torch {facts['libraries']['torch']}"
    )


def _copy_time(results: dict[str, Any]) -> float:
    return float(
        only(results, "headline", operation="klt_quantize", channels=64)["calls"]["memcpy"]["median_us"]
    )


def _other_machine(results: dict[str, Any] | None, here: dict[str, Any]) -> list[str]:
    """The targets on the other machine that was measured."""
    if results is None:
        return []
    return [
        "## Another machine",
        "",
        f"{_machine(results)}. Its caches hold the tensors and copy fast: a memcpy of the tensor at C=64 takes"
        f" {_copy_time(results):.0f} us where the one above takes {_copy_time(here):.0f}, and arithmetic"
        " that hides behind memory there does not here.",
        "",
        *target_table(targets(results)),
        "",
    ]


def _again(results: dict[str, Any]) -> str:
    """What was measured later than the rest, and what the rest is."""
    if "again" not in results:
        return ""
    later = results["again"].split("--again ")[1].split()[0].split(",")
    rest = sorted({case["group"] for case in results["cases"]} - set(later))
    return f"; then `{results['again']}`, after the last change of a kernel; {', '.join(rest)} is of before"


def page(
    results: dict[str, Any],
    roof: dict[str, Any],
    gpu: dict[str, Any] | None,
    other: dict[str, Any] | None = None,
) -> str:
    """The whole page; `other` are the figures of another machine."""
    facts = results["environment"]
    met = targets(results)
    overhead = results["call_overhead"]
    lines = [
        "# Performance",
        "",
        f"Made by `python docs/make_performance.py` from `benchmarks/results/cpu.json`, which `{results['command']}`"
        f" wrote (`make bench-cpu`{_again(results)}). One process; the calls of a case"
        " take turns, each after one call that is not"
        " counted; times are medians over rounds, ratios medians of the ratios within a round. Latents are"
        " [8, C, 32, 32] float32 NCHW, one thread, 8 bits and structured (`hadamard`) mixing with two rounds where"
        " nothing else is said.",
        "",
        f"Machine: {_machine(results)}. Shared with others, so times of the same call differ from one table to the"
        " next.",
        "",
        "## Targets",
        "",
        *target_table(met),
        "",
        "The eager chain is the best one that we could write with torch operations, channels first, without a search"
        " at 8 bits (`ppcmi_fast/benchmark/chains.py`); torch.compile compiles it whole. Results are the same codes.",
        "",
        "## All that compete",
        "",
        *_headline(results),
        "",
        "Out of the caches, as in a network's midst: before each call 128 MB of something else are written.",
        "",
        *_cold(results),
        "",
        *_warm(results),
        "memcpy and `copy_` go into memory that is there; every other call makes its result, as `clone` does."
        " `fht_cpu` (PyPI) does the"
        " transforms alone: no signs, normalization, permutation or codes, channels last and in place.",
        "",
        "## Where the time goes",
        "",
        *_roofline_text(results, roof),
        "",
        "## Channels",
        "",
        "Structured mixing:",
        "",
        *_channels(results, "hadamard"),
        "",
        "Dense mixing (`haar`), where `matmul` is the same product without the rest:",
        "",
        *_channels(results, "haar"),
        "",
        "`klt` is compared with the readable reference instead of the chain. `switch_dequantize` with a matrix a"
        " sample: "
        + ", ".join(
            f"C={case['case']['channels']} {case['calls']['ours']['median_us']:.0f} us"
            f" (reference {over_ours(case, 'reference'):.1f}x, matmul alone {over_ours(case, 'matmul'):.1f}x)"
            for case in cases(results, "switch")
        )
        + ".",
        "",
        "## Formats, types, sizes, threads",
        "",
        "`klt_quantize`, billion elements a second (eager / ours), median over batches of 1, 8 and 32 and 2, 4 and 8"
        " bits, one thread:",
        "",
        *_grid(results, 1),
    ]
    if facts["threads"] > 1:
        lines += ["", f"{facts['threads']} threads:", "", *_grid(results, facts["threads"])]
    lines += [
        "",
        _range(results),
        "",
        "## A small call",
        "",
        "64 elements, so nearly all of it is the way to the kernel. A call on a plain tensor that nobody traces or"
        " differentiates goes straight to it; others go through torch's dispatcher and a Python implementation.",
        "",
        *table(["call", "us"], [[name, f"{call['median_us']:.1f}"] for name, call in overhead.items()]),
        "",
        *_other_machine(other, results),
        *gpu_section(gpu),
        "",
    ]
    return "\n".join(lines)


def draw(results: dict[str, Any], roof: dict[str, Any], path: Path) -> None:
    """Attainable and reached operations a second over operations a byte."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    add, pairs, memory = roof["add_gflop_s"], roof["multiply_add_gflop_s"], roof["memcpy_gb_s"]["64"]
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), constrained_layout=True)
    for limit, style, label in ((pairs, "-", "multiply-adds"), (add, "--", "additions alone")):
        span = [0.25, limit / memory, 10]
        axes.plot(
            span, [min(limit, memory * i) for i in span], color="0.3", linestyle=style, label=f"roof: {label}"
        )
    for operation, marker, color in (
        ("klt", "s", "tab:blue"),
        ("klt_quantize", "o", "tab:red"),
        ("klt_dequantize", "^", "tab:green"),
    ):
        found = cases(results, "channels", operation=operation, mixing="hadamard")
        found = [case for case in found if case["case"]["channels"] & (case["case"]["channels"] - 1) == 0]
        x = [operations(case) * elements(case) / case["bytes_moved"] for case in found]
        y = [operations(case) * elements(case) / case["calls"]["ours"]["median_us"] * 1e-3 for case in found]
        axes.plot(x, y, marker=marker, color=color, linestyle=":", label=operation)
        for case, at, height in zip(found, x, y, strict=True):
            axes.annotate(
                str(case["case"]["channels"]),
                (at, height),
                fontsize=7,
                xytext=(4, 4),
                textcoords="offset points",
            )
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(10, 400),
        xlabel="operations a byte that must move",
        ylabel="GFLOP/s, one thread",
        title="Structured transform, labelled with C",
    )
    for axis, ticks in ((axes.xaxis, [0.25, 0.5, 1, 2, 4, 8]), (axes.yaxis, [10, 20, 50, 100, 200, 400])):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(ticker.NullLocator())
    axes.grid(True, alpha=0.2)
    axes.legend(fontsize=8, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def load(name: str) -> dict[str, Any] | None:
    """A results file, None where it was never made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    results, measured = load("cpu"), load("roof")
    if results is None or measured is None:
        print("benchmarks/results: expected cpu.json and roof.json; run `make bench-cpu`", file=sys.stderr)
        return 2
    roof = measured["roofs"]
    text = page(results, roof, load("gpu"), load("cpu_epyc"))
    if given.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        if not same:
            print(f"{PAGE.name} is not what the figures say; run `make docs`", file=sys.stderr)
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    draw(results, roof, FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
