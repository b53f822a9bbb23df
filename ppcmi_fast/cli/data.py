"""`ppcmi data`: what a data set holds, before anybody trains on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ppcmi_fast.errors import ConfigError

SHOWN = 6

app = typer.Typer(no_args_is_help=True, help="Look into a data set.")


@app.callback()
def _group() -> None:
    # Keeps `check` a subcommand while it is the only one.
    pass


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"layout {found['layout']}: {found['images']} images of {found['subjects']} subjects",
        f"augmented as {found['modality']}",
    ]
    for site, counts in found["sites"].items():
        lines.append(
            f"  {site}: {counts['images']} images, {counts['subjects']} subjects, {counts['empty_masks']} empty masks"
        )
    lines += [f"class {name}: in {count} images" for name, count in found["classes"].items()]
    lines.append("sizes: " + ", ".join(f"{size} ({count})" for size, count in found["sizes"].items()))
    if found["spacing_mm"] is None:
        lines.append("spacing: not known; distances will be in pixels")
    else:
        (y0, x0), (y1, x1) = found["spacing_mm"]
        lines.append(f"spacing: {y0:.3g} .. {y1:.3g} mm down, {x0:.3g} .. {x1:.3g} mm across")
    if found["spacing_note"]:
        lines.append(f"note: {found['spacing_note']}")
    if found["grouped_by_similarity"]:
        lines.append("note: the data names no subjects; frames that look alike were taken for one subject's")
    lines.append(f"values: {found['intensity'][0]:g} .. {found['intensity'][1]:g}")
    lines.append(f"empty masks: {found['empty_masks']}")
    for group in found["suspected_duplicates"]:
        more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
        lines.append(f"look the same, and are of several subjects: {'; '.join(group[:SHOWN])}{more}")
    for entry in found["broken"]:
        lines.append(f"broken: {entry['file']}: {entry['reason']}")
    return lines


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="The data set, as it was downloaded.")],
    layout: Annotated[str, typer.Option(help="auto, folder, or a published layout (docs/data.md).")] = "auto",
    max_broken: Annotated[float, typer.Option(help="Share of files that may be unreadable.")] = 1.0,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write pictures with outlined masks, as PNG.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the findings to this file.")] = None,
) -> None:
    """Say what was found: sites, classes, sizes, spacing, empty masks, broken files, and subjects that look alike."""
    from ppcmi_fast.data.readers import ReadOptions, open_dataset
    from ppcmi_fast.data.summary import picture_sheet, summarise

    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ConfigError(f"--sheet: expected a PNG file, got {sheet}; name it .png")
    try:
        dataset = open_dataset(folder, layout, ReadOptions(max_broken=max_broken))
    except ValueError as error:
        name, _, rest = str(error).partition(":")
        raise ConfigError(f"--{name.replace('_', '-')}:{rest}") from None
    found = summarise(dataset)
    for line in _lines(found):
        typer.echo(line)
    if sheet is not None:
        picture_sheet(dataset).save(sheet)
        typer.echo(f"wrote {sheet}")
    if out is not None:
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        typer.echo(f"wrote {out}")
