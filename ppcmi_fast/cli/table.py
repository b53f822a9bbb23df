"""The table that ends a run in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppcmi_fast.report import words
from ppcmi_fast.report.runfolder import method_order, title_in

# Columns that methods' names get at least.
METHOD_WIDTH = 16


def results_table(metrics: dict[str, Any], width: int) -> Table:
    """Methods x (mean Dice, Dice of each site, HD95, ASD), less what is wider than `width` columns."""
    scores = metrics["methods"].values()
    sites = sorted({site for method in scores for site in method.get("dice", {}).get("site", {})})
    table = _table(metrics, sites)
    for distances, missing in ((True, "Dice of each site"), (False, "Dice of each site, HD95, ASD")):
        if Console(width=10_000).measure(table).minimum <= width:
            break
        table = _table(metrics, [], distances=distances)
        table.caption, table.caption_justify = f"{missing}: report.html", "left"
    return table


def _table(metrics: dict[str, Any], sites: Sequence[str], *, distances: bool = True) -> Table:
    methods: dict[str, dict[str, Any]] = metrics["methods"]
    unit = words.unit(metrics)
    table = Table(title=f"{metrics['dataset'].get('name', 'run')}: held-out subjects", title_justify="left")
    # In a narrow terminal names are wrapped: a number that is cut reads as another.
    table.add_column("method", min_width=METHOD_WIDTH)
    for heading in ("Dice", *sites, *((f"HD95 {unit}", f"ASD {unit}") if distances else ())):
        table.add_column(Text(heading), justify="right", no_wrap=True, min_width=cell_len(heading))
    table.columns[1].style = "bold"
    for name in method_order(list(methods)):
        scores = methods[name]
        dice, far = scores.get("dice", {}), ("hd95", "asd") if distances else ()
        table.add_row(
            title_in(metrics, name),
            words.decimal(dice.get("mean"), 3),
            *(words.decimal(dice.get("site", {}).get(site), 3) for site in sites),
            *(words.decimal(scores.get(measure, {}).get("mean"), 2) for measure in far),
        )
    return table


def print_results(console: Console, metrics: dict[str, Any], paths: list[Path]) -> None:
    """Print the table, payload, latency, time, and where the files are."""
    console.print()
    console.print(results_table(metrics, console.width))
    lines = []
    payload = metrics.get("payload_bytes", {})
    if payload:
        lines.append(
            f"payload   {words.size(payload.get('up'))} up, {words.size(payload.get('down'))} down an image"
        )
    latency = metrics.get("latency_ms", {})
    if latency:
        parts = ", ".join(
            f"{name} {words.decimal(latency[name], 1)}"
            for name in ("encode", "map", "decode")
            if name in latency
        )
        lines.append(f"latency   {words.decimal(latency.get('total'), 1)} ms an image ({parts})")
    memory = words.number(metrics.get("peak_rss_mb"))
    whole = words.total_seconds(metrics)
    seconds = words.stage_seconds(metrics) if whole is None else whole
    if seconds is not None:
        lines.append(
            f"time      {words.duration(seconds)}"
            + (f", {memory / 1000:.1f} GB memory at most" if memory else "")
        )
    for position, path in enumerate(paths):
        lines.append(("written   " if position == 0 else "          ") + str(path))
    for line in lines:
        console.print(Text(line), soft_wrap=True)
