"""Sets of cases, and the file that their figures go to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ppcmi_fast import ops
from ppcmi_fast.benchmark.cases import DTYPES, KEY, LAYOUTS, Case, calls_of, measure, memcpy
from ppcmi_fast.benchmark.timing import Calls, summarise, take_turns, take_turns_cold
from ppcmi_fast.environment import describe_environment
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.ops.kernels import cpu_extension

CHANNELS = (32, 48, 64, 128, 256, 512)
BATCHES = (1, 8, 32)
BITS = (2, 4, 8)
DIRECTIONS = ("klt_quantize", "klt_dequantize")
HEADLINE_CHANNELS = (64, 256)

# One entry of a suite: the case and how it is measured.
Planned = tuple[str, Case, dict[str, Any]]


def _headline(compiled: bool) -> Iterator[Planned]:
    for operation, channels in product(DIRECTIONS, HEADLINE_CHANNELS):
        yield "headline", Case(operation, channels=channels), {"rounds": 60, "compiled": compiled}


def _grid(threads: tuple[int, ...]) -> Iterator[Planned]:
    for channels, batch, layout, dtype, bits, count in product(
        CHANNELS, BATCHES, LAYOUTS, DTYPES, BITS, threads
    ):
        case = Case(channels=channels, batch=batch, layout=layout, dtype=dtype, bits=bits, threads=count)
        yield "grid", case, {"rounds": 3 if case.elements > 1 << 22 else 5, "peers": False}


def cpu_suite(*, compiled: bool, threads: int) -> Iterator[Planned]:
    """Everything of docs/performance.md that a CPU can show.

    Args:
        compiled: also torch.compile, which takes minutes to compile each case.
        threads: the most threads to use.
    """
    counts = (1,) if threads == 1 else (1, threads)
    yield from _headline(compiled)
    for operation, mixing, channels in product(("klt", *DIRECTIONS), ("hadamard", "haar"), CHANNELS):
        yield "channels", Case(operation, mixing, channels), {"rounds": 15}
    for channels in HEADLINE_CHANNELS:
        yield "switch", Case("switch_dequantize", "haar", channels), {"rounds": 15}
    for operation, channels, bits in product(DIRECTIONS, HEADLINE_CHANNELS, BITS):
        yield "bits", Case(operation, channels=channels, bits=bits), {"rounds": 60, "peers": False}
    for channels, batch, count in product(HEADLINE_CHANNELS, (8, 32), counts):
        case = Case(channels=channels, batch=batch, threads=count)
        yield "threads", case, {"rounds": 40, "peers": False}
    yield from _grid(counts)


def gpu_suite() -> Iterator[Planned]:
    """Tensors beyond every cache: 256 MiB of float32 and more."""
    large = Case(batch=64, size=128, device="cuda")
    headline = [
        replace(large, operation=operation, channels=channels, batch=64 * 64 // channels)
        for operation, channels in product(DIRECTIONS, HEADLINE_CHANNELS)
    ]
    yield from (("headline", case, {"rounds": 30}) for case in headline)
    for channels, layout, dtype, bits in product(HEADLINE_CHANNELS, LAYOUTS, DTYPES, BITS):
        case = replace(
            large, channels=channels, batch=64 * 64 // channels, layout=layout, dtype=dtype, bits=bits
        )
        yield "grid", case, {"rounds": 10, "peers": False}
    for operation, channels, dtype in product(("klt", *DIRECTIONS), (16, 32, 64, 128, 256), DTYPES):
        case = replace(
            large,
            operation=operation,
            mixing="haar",
            channels=channels,
            batch=64 * 64 // channels,
            dtype=dtype,
        )
        yield "dense", case, {"rounds": 10}
    # Last, because torch.compile takes as long as all the rest: what is there before the time is up counts.
    yield from (("compiled", case, {"rounds": 10, "compiled": True}) for case in headline)


def bits_times() -> dict[str, Any]:
    """int4 and 2 bits against 8 within one round of turns, which separate cases would not allow."""
    out = {}
    for channels in HEADLINE_CHANNELS:
        x, params = torch.randn(8, channels, 32, 32), KEY.klt_params("image", 4, channels)
        calls: Calls = {f"{bits}": partial(ops.klt_quantize, x, params, bits=bits) for bits in BITS}
        out[str(channels)] = summarise(take_turns(calls, 100), "8")
    return out


def warm_times() -> dict[str, Any]:
    """`klt_quantize` and memcpy with nothing else between them: what the caches can hold is there for both."""
    out = {}
    for channels in HEADLINE_CHANNELS:
        with torch.inference_mode():
            calls = calls_of(Case(channels=channels), peers=False)
            pair = {name: calls[name] for name in ("ours", "memcpy")}
            out[f"klt_quantize {channels}"] = summarise(take_turns(pair, 300), "ours")
    return out


def cold_times() -> dict[str, Any]:
    """The headline with its tensors out of the caches."""
    out = {}
    for operation, channels in product(DIRECTIONS, HEADLINE_CHANNELS):
        with torch.inference_mode():
            calls = calls_of(Case(operation, channels=channels), peers=False)
            out[f"{operation} {channels}"] = summarise(take_turns_cold(calls, 60), "ours")
    return out


def thread_times(threads: int) -> dict[str, Any]:
    """One thread against more within one round of turns."""
    out = {}
    for channels, batch in product(HEADLINE_CHANNELS, (8, 32)):
        x, params = torch.randn(batch, channels, 32, 32), KEY.klt_params("image", 4, channels)

        def run(count: int, x: Any = x, params: Any = params) -> Any:
            torch.set_num_threads(count)
            return ops.klt_quantize(x, params)

        calls: Calls = {str(count): partial(run, count) for count in (1, threads)}
        times = summarise(take_turns(calls, 300), str(threads))
        out[f"{channels}x{batch}"] = {"megabytes": x.numel() * 4 / 1e6, "calls": times}
    torch.set_num_threads(1)
    return out


def roofs() -> dict[str, Any]:
    """What one thread of this machine can do at most: a copy within its caches, and arithmetic in registers.

    Returns:
        `memcpy_gb_s`: bytes read and written by memcpy of the float32 latents [8, C, 32, 32], for each headline C.
        `add_gflop_s`, `multiply_add_gflop_s`: a multiply-add counts as two. Each with the instruction set in use.
    """
    extension = cpu_extension()
    rounds = 20_000
    calls: Calls = {
        "add": partial(extension.peak, rounds, 1e-3, False),
        "multiply_add": partial(extension.peak, rounds, 1e-3, True),
    }
    for channels in HEADLINE_CHANNELS:
        x = torch.randn(8, channels, 32, 32)
        calls[f"memcpy {channels}"] = partial(memcpy, torch.empty_like(x), x)
    times = summarise(take_turns(calls, 60), "add")
    done = extension.peak(rounds, 1e-3, False)
    return {
        "isa": extension.isa(),
        "add_gflop_s": round(done / times["add"]["median_us"] * 1e-3, 1),
        "multiply_add_gflop_s": round(2 * done / times["multiply_add"]["median_us"] * 1e-3, 1),
        "memcpy_gb_s": {
            str(channels): round(8 * 8 * channels * 1024 / times[f"memcpy {channels}"]["median_us"] * 1e-3, 1)
            for channels in HEADLINE_CHANNELS
        },
    }


def call_overhead() -> dict[str, Any]:
    """Calls on 64 elements: all but nothing of it is work."""
    params = KEY.klt_params("image", 4, 64)
    x = torch.randn(1, 64, 1, 1)
    codes = ops.klt_quantize(x, params)
    material = (params.signs, params.factors, params.perm, params.offset, params.fold)
    matrices, index = params.dense().float()[None], torch.zeros(1, dtype=torch.int64)
    through = torch.ops.ppcmi_fast
    calls: Calls = {
        "klt": partial(ops.klt, x, params),
        "klt_quantize": partial(ops.klt_quantize, x, params),
        "klt_dequantize": partial(ops.klt_dequantize, codes, params),
        "switch_dequantize": partial(ops.switch_dequantize, codes, matrices, index),
        "klt through the dispatcher": partial(through.klt, x, *material, True, False),
        "klt_quantize through the dispatcher": partial(through.klt_quantize, x, *material, 8, True),
        "torch.clone": x.clone,
        "torch.matmul": partial(torch.matmul, matrices[0], x.view(64, 1)),
    }
    with torch.inference_mode():
        return summarise(take_turns(calls, 60), "klt")


def run(
    planned: list[Planned],
    out: Path,
    *,
    device: str,
    threads: int,
    command: str,
    tell: Callable[[str], None],
    again: tuple[str, ...] = (),
) -> None:
    """Measure all and write the file after every twentieth case, on a GPU after each: an interrupted run keeps it.

    Args:
        planned: what a suite gave.
        out: JSON to write.
        device: "cpu" adds the call overhead, the bit widths, warm and cold calls and the threads.
        threads: the most threads to use.
        command: what was called, to stand beside the figures.
        tell: gets a line a case.
        again: groups to measure anew in a file that is there, keeping the others.

    Raises:
        ConfigError: `again` without the file, or with an unknown group.
    """
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": command,
        "environment": describe_environment(threads=threads),
        "cases": [],
    }
    if again:
        result = _without(out, again, {group for group, _, _ in planned})
        result["again"] = command
        planned = [entry for entry in planned if entry[0] in again]
    if device == "cpu":
        result["call_overhead"] = call_overhead()
        result["bits"] = bits_times()
        result["warm"] = warm_times()
        result["cold"] = cold_times()
        if threads > 1:
            result["threads"] = thread_times(threads)
    for number, (group, case, settings) in enumerate(planned, start=1):
        figures = measure(case, **settings)
        result["cases"].append({"group": group, **figures})
        ours = figures["calls"]["ours"]["median_us"]
        tell(f"{number}/{len(planned)} {group} {case}: {ours:.0f} us")
        if device == "cuda" or number % 20 == 0 or number == len(planned):
            write(result, out)


def _without(out: Path, groups: tuple[str, ...], known: set[str]) -> dict[str, Any]:
    """The figures in `out` but those of some groups."""
    unknown = set(groups) - known
    if unknown:
        raise ConfigError(
            f"--again: expected groups among {', '.join(sorted(known))}, got {sorted(unknown)[0]}"
        )
    if not out.is_file():
        raise ConfigError(
            f"--again: expected the figures of a whole run in {out}, found none; run it without"
        )
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    result["cases"] = [case for case in result["cases"] if case["group"] not in groups]
    return result


def run_roofs(out: Path, command: str) -> None:
    """Measure the roofs and write the file."""
    torch.set_num_threads(1)
    result = {"command": command, "environment": describe_environment(threads=1), "roofs": roofs()}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write(result: dict[str, Any], out: Path) -> None:
    """One case a line, whole or not at all."""
    cases = ",\n".join("  " + json.dumps(case) for case in result["cases"])
    head = json.dumps({k: v for k, v in result.items() if k != "cases"}, indent=1)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(f'{head.rstrip("}").rstrip()},\n "cases": [\n{cases}\n ]\n}}\n', encoding="utf-8")
    json.loads(temporary.read_text(encoding="utf-8"))
    temporary.replace(out)
