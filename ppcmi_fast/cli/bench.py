"""`ppcmi bench`: how fast the operators, and the reading of data sets, are on this machine."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ppcmi_fast.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure this machine.")


class Suite(str, Enum):
    """A set of cases."""

    cpu = "cpu"
    gpu = "gpu"
    roof = "roof"


def _show(title: str, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("call", "median us", "quartiles", "time / ours"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for name, times in result["calls"].items():
        quartiles = f"{times['low_us']:.1f} .. {times['high_us']:.1f}"
        table.add_row(name, f"{times['median_us']:.1f}", quartiles, f"{times['over_ours']:.2f}")
    Console().print(table)


@app.command()
def klt(
    operation: Annotated[
        str, typer.Option(help="klt, klt_quantize, klt_dequantize or switch_dequantize.")
    ] = "klt_quantize",
    batch: Annotated[int, typer.Option(min=1)] = 8,
    channels: Annotated[int, typer.Option(min=1)] = 64,
    size: Annotated[int, typer.Option(min=1, help="Edge of the latent grid.")] = 32,
    bits: Annotated[int, typer.Option(help="2, 4 or 8.")] = 8,
    mixing: Annotated[str, typer.Option(help="hadamard or haar.")] = "hadamard",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    layout: Annotated[str, typer.Option(help="nchw or nhwc.")] = "nchw",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=3, help="Turns that the calls take.")] = 30,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also torch.compile, a minute or two a case.")
    ] = False,
    suite: Annotated[
        Suite | None,
        typer.Option(help="All cases of docs/performance.md, or the machine's roofs; needs --json."),
    ] = None,
    again: Annotated[
        str, typer.Option(help="Groups of the suite, such as headline,bits, to measure anew in its file.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Time the keyed transform against eager torch, a memcpy and others: medians of calls that take turns."""
    from ppcmi_fast.benchmark import suites
    from ppcmi_fast.benchmark.cases import Case, measure

    wanted = "cuda" if suite is Suite.gpu else "cpu" if suite else device
    if wanted == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device: expected a CUDA device, found none; measure on the cpu")
    if suite is not None:
        if out is None:
            raise ConfigError("--json: expected a file for the suite's figures, got none; name one")
        command = "ppcmi " + " ".join(sys.argv[1:])
        if suite is Suite.roof:
            suites.run_roofs(out, command)
            return
        cpu = suite is Suite.cpu
        planned = suites.cpu_suite(compiled=compiled, threads=threads) if cpu else suites.gpu_suite()
        groups = tuple(again.split(",")) if again else ()
        suites.run(
            list(planned),
            out,
            device=wanted,
            threads=threads,
            command=command,
            tell=lambda line: typer.echo(line),
            again=groups,
        )
        return
    try:
        case = Case(operation, mixing, channels, batch, size, dtype, layout, bits, threads, device)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    result = measure(case, rounds, compiled=compiled)
    shape = f"[{batch}, {channels}, {size}, {size}]"
    _show(
        f"{operation} of {dtype} {shape} {layout}, {mixing}, {bits} bits, {threads} threads, {device}", result
    )
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        typer.echo(f"wrote {out}")


@app.command()
def reading(
    folders: Annotated[list[Path], typer.Argument(help="Data sets, each in any layout that federate reads.")],
    size: Annotated[int, typer.Option(min=8, help="Edge of the images in pixels.")] = 128,
    limit: Annotated[int, typer.Option(min=16, help="Images of each to read at most.")] = 400,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Images a second decoded, from the cache, augmented, and through a U-Net's step: does reading keep up?"""
    from ppcmi_fast.benchmark.reading import measure_folders

    # Data sets lie anywhere on a machine; figures that are published should not say where.
    shown = ["ppcmi bench reading", *(folder.name for folder in folders), f"--size {size} --limit {limit}"]
    result = measure_folders(folders, size, limit, " ".join(shown))
    for found in result["sets"]:
        rates = ", ".join(f"{name} {rate:g}" for name, rate in found["images_per_second"].items())
        typer.echo(f"{found['dataset']} ({found['layout']}, {found['images']} images), images/s: {rates}")
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"wrote {out}")


@app.command()
def published(
    size: Annotated[int, typer.Option(min=32, help="Edge of the image in pixels.")] = 256,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """What the published networks cost on this machine at their whole width: parameters, bytes and milliseconds."""
    import torch

    from ppcmi_fast.baselines.published import measure_published
    from ppcmi_fast.environment import describe_environment

    torch.set_num_threads(threads)
    found = measure_published(size)
    command = f"ppcmi bench published --size {size} --threads {threads}"
    result = {"command": command, "environment": describe_environment(threads=threads), **found}
    typer.echo(json.dumps(found, indent=1))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
