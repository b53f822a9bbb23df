"""`ppcmi bench`: how fast the operators are on this machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ppcmi_fast.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure the operators on this machine.")


class Mixing(str, Enum):
    """How the keyed transform mixes channels."""

    haar = "haar"
    hadamard = "hadamard"


@app.callback()
def _group() -> None:
    # Keeps `klt` a subcommand while it is the only one.
    pass


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call; the calls take turns, so that a slow moment hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in samples.items()}


def measure_klt(
    *, batch: int, channels: int, size: int, bits: int, mixing: str, threads: int | None, repeats: int
) -> dict[str, Any]:
    """Time klt, klt_quantize and klt_dequantize against eager torch and a copy of the same float32 bytes.

    Input float32 [batch, channels, size, size], channels first. Returns sizes and medians (ms), for JSON.
    """
    import torch

    from ppcmi_fast import ops
    from ppcmi_fast.environment import cpu_info
    from ppcmi_fast.keys import SiteKey

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, channels, size, size, generator=generator)
        params: Any = SiteKey(bytes(32), "bench").klt_params("image", 1, channels, mixing)
        codes = ops.klt_quantize(x, params, bits=bits)
        target = torch.empty_like(x)
        calls: dict[str, Callable[[], Any]] = {"copy of the input": partial(target.copy_, x)}
        with torch.inference_mode():
            for backend in ("cpu", "torch"):
                calls[f"klt {backend}"] = partial(ops.klt, x, params, backend=backend)
                calls[f"klt_quantize {backend}"] = partial(
                    ops.klt_quantize, x, params, bits=bits, backend=backend
                )
                calls[f"klt_dequantize {backend}"] = partial(
                    ops.klt_dequantize, codes, params, bits=bits, backend=backend
                )
            medians = alternate(calls, repeats)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    model, isa = cpu_info()
    return {
        "benchmark": "klt",
        "input": [batch, channels, size, size],
        "bits": bits,
        "mixing": mixing,
        "threads": used,
        "repeats": repeats,
        "cpu": model,
        "isa": isa,
        "torch": torch.__version__,
        "median_ms": medians,
    }


@app.command()
def klt(
    batch: Annotated[int, typer.Option(min=1)] = 4,
    channels: Annotated[int, typer.Option(min=1)] = 64,
    size: Annotated[int, typer.Option(min=1, help="Edge of the latent grid.")] = 64,
    bits: Annotated[int, typer.Option(help="2, 4 or 8.")] = 8,
    mixing: Annotated[Mixing, typer.Option()] = Mixing.hadamard,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    repeats: Annotated[int, typer.Option(min=3)] = 30,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Time the keyed transform against eager torch and a copy of the same bytes: medians, taking turns."""
    if bits not in (2, 4, 8) or (channels * bits) % 8:
        raise ConfigError(
            f"--bits: expected 2, 4 or 8 with channels * bits a multiple of 8,"
            f" got {bits} bits and {channels} channels"
        )
    result = measure_klt(
        batch=batch,
        channels=channels,
        size=size,
        bits=bits,
        mixing=mixing.value,
        threads=threads,
        repeats=repeats,
    )
    from rich.console import Console
    from rich.table import Table

    medians: dict[str, float] = result["median_ms"]
    copy = medians["copy of the input"]
    title = f"float32 {result['input']}, {mixing.value}, {bits} bits, {result['threads']} threads"
    table = Table(title=title, title_justify="left")
    for column in ("call", "median ms", "x copy", "eager / ours"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for name, value in medians.items():
        eager = medians.get(name.removesuffix(" cpu") + " torch") if name.endswith(" cpu") else None
        table.add_row(name, f"{value:.3f}", f"{value / copy:.2f}", f"{eager / value:.2f}" if eager else "")
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        typer.echo(f"wrote {out}")
