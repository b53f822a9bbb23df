"""report.html: one file that holds everything a run has to show, with no request to anywhere."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppcmi_fast.errors import RunError
from ppcmi_fast.report import figures, words
from ppcmi_fast.report.runfolder import RunFolder, load_run, method_order, network_title, title_in
from ppcmi_fast.report.scores import (
    Table,
    class_tables,
    comparison_rows,
    other_measures,
    score_notes,
    score_tables,
    volume_table,
)

# What the overlays compare; the other methods are in the tables.
SHOWN = ("ppcmi", "unet_centralised")


@dataclass(frozen=True)
class Card:
    """One headline number."""

    label: str
    value: str
    note: str = ""


def effort_table(metrics: dict[str, Any]) -> Table:
    """What each method cost: images seen in training, time, parameters."""
    methods: dict[str, dict[str, Any]] = metrics["methods"]
    rows = []
    for name in method_order(list(methods)):
        method = methods[name]
        rows.append(
            (
                title_in(metrics, name),
                [
                    words.integer(method.get("images_seen")),
                    words.duration(method.get("seconds")),
                    words.integer(method.get("parameters")),
                ],
            )
        )
    note = "Images seen: training images counted as often as they were shown, over all stages of the method."
    return Table("Training budget", ["images seen", "training time", "parameters"], rows, set(), note)


def headline(metrics: dict[str, Any]) -> list[Card]:
    """The numbers a reader looks for first."""
    config = metrics.get("config", {})
    cards = []
    ours = words.mean_dice(metrics, "ppcmi")
    if ours is not None:
        sites = len(metrics["dataset"].get("sites", {}))
        note = f"mean over {sites} sites, held-out subjects"
        span = words.interval(metrics["methods"]["ppcmi"]["dice"], 3)
        cards.append(Card("Dice, ours", f"{ours:.3f}", f"{note}; 95 % interval {span}" if span else note))
    for name, label in (
        ("unet_local", "against each site alone"),
        ("unet_centralised", f"against the pooled {network_title(config)}"),
    ):
        other = words.mean_dice(metrics, name)
        if ours is not None and other is not None:
            cards.append(
                Card(
                    label,
                    f"{words.signed(100 * (ours - other))} points",
                    f"that {network_title(config)}: {other:.3f}",
                )
            )
    payload = metrics.get("payload_bytes", {})
    up, down = words.number(payload.get("up")), words.number(payload.get("down"))
    if up is not None and down is not None:
        bits = f"{config.get('bits_up', '?')} bits up, {config.get('bits_down', '?')} down"
        views = config.get("query_views", 1)
        asked = f", {views} views" if views != 1 else ""
        cards.append(Card("payload an image", words.size(up + down), f"up + down, {bits}{asked}"))
    total = words.number(metrics.get("latency_ms", {}).get("total"))
    if total is not None:
        threads = metrics.get("environment", {}).get("threads")
        note = f"one image, {threads} thread{'s' if threads != 1 else ''}" if threads else "one image"
        cards.append(Card("latency", f"{total:.1f} ms", note))
    whole, stages = words.total_seconds(metrics), words.stage_seconds(metrics)
    seconds = stages if whole is None else whole
    if seconds is not None:
        memory = words.number(metrics.get("peak_rss_mb"))
        cards.append(
            Card(
                "all stages" if whole is None else "whole run",
                words.duration(seconds),
                f"{memory / 1000:.1f} GB at most" if memory else "",
            )
        )
    return cards


def _bars(values: dict[str, Any], write: Any) -> list[tuple[str, float, str]]:
    known = {name: value for name, raw in values.items() if (value := words.number(raw)) is not None}
    longest = max((value for name, value in known.items() if name != "total"), default=0.0) or 1.0
    return [(name, min(100.0, 100 * value / longest), write(value)) for name, value in known.items()]


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            rows.append((prefix + name, ", ".join(str(item) for item in value) or "none"))
        else:
            rows.append((prefix + name, "none" if value is None or value == {} else str(value)))
    return rows


def render(run: RunFolder) -> str:
    """The page of a run as HTML text."""
    try:
        import jinja2
    except ImportError as error:
        raise RunError(f"the report needs jinja2: {figures.CURE}") from error
    metrics = run.metrics
    config = metrics.get("config", {})
    names = method_order(list(metrics["methods"]))
    titles = {name: title_in(metrics, name) for name in names}
    dataset = metrics["dataset"]
    classes = int(dataset.get("classes", 2))
    shown = [(name, title_in(metrics, name)) for name in SHOWN]
    rows = figures.example_rows(run.examples, classes, shown) if run.examples is not None else {}
    curves = [
        (title, figures.learning_curve(title, stages))
        for chart, stages in figures.group_stages(run.history).items()
        for title in [title_in(metrics, chart)]
    ]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("template.html.j2")
    return template.render(
        name=dataset.get("name", run.path.name),
        dataset=dataset,
        unit=words.unit(metrics),
        config=config,
        cards=headline(metrics),
        keyed=words.keyed_transform(str(config.get("trust", "federation"))),
        limits=words.LIMITS,
        resists=words.RESISTS,
        tables=[*score_tables(metrics), *other_measures(metrics), *volume_table(metrics)],
        class_tables=class_tables(metrics),
        comparisons=comparison_rows(metrics),
        notes=score_notes(metrics),
        effort=effort_table(metrics),
        dice_chart=figures.dice_by_site({name: metrics["methods"][name] for name in names}, titles),
        rows=rows,
        legend=[(index, figures.class_colour(index)) for index in range(1, classes)],
        curves=curves,
        payload=words.payload_rows(metrics),
        payload_note=words.payload_note(metrics),
        latency=_bars(metrics.get("latency_ms", {}), lambda value: f"{value:.2f} ms"),
        stages=_bars(metrics.get("seconds", {}), words.duration),
        environment=_flatten(metrics.get("environment", {})),
        config_text=run.config_text or json.dumps(config, indent=2),
        command=str(metrics.get("command", "")),
    )


def write_report(run: Path) -> Path:
    """Write RUN/report.html from what the run left, and return its path.

    Raises RunError when the folder holds no finished run or a file in it is damaged.
    """
    page = render(load_run(run))
    path = run / "report.html"
    # A reader who reloads the page never sees half of it.
    part = path.with_suffix(".tmp")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path
