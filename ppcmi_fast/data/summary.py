"""What is in a data set: counts a site, classes, sizes, spacing, and images that look like another subject's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ppcmi_fast.data.records import Dataset, Mask, Pixels, Record, Source
from ppcmi_fast.data.similarity import group_similar

# Two subjects' images are suspected to be one from this correlation of thumbnails of this edge on. Chests of two people
# come close to it in CT: a suspicion is for somebody to look at.
SAME, SAME_SIDE = 0.995, 32
MIXED = 1.5  # ratio of spacings from which on the sheet says so
TILE = 160
COLUMNS = 6
COLOURS = ((230, 60, 60), (60, 200, 90), (70, 130, 240), (240, 200, 40), (200, 80, 220))


def _name(record: Record) -> str:
    return record.image.name if record.index is None else f"{record.image.name}[{record.index}]"


def _duplicates(images: dict[str, Pixels], subject_of: dict[str, str]) -> list[list[str]]:
    """Groups of images that look the same and belong to several subjects."""
    large = {name: pixels for name, pixels in images.items() if min(pixels.shape) >= SAME_SIDE}
    groups: dict[int, list[str]] = {}
    for name, group in group_similar(large, SAME, SAME_SIDE).items():
        groups.setdefault(group, []).append(name)
    return [sorted(names) for names in groups.values() if len({subject_of[name] for name in names}) > 1]


def summarise(dataset: Dataset) -> dict[str, Any]:
    """Figures of a data set, ready for JSON; reads every image once.

    Returns:
        `layout`, `modality`, `images`, `subjects`, `sites` (images, subjects, empty masks of each), `classes` (images
        that show each), `sizes` ("width x height": images), `spacing_mm` (smallest and largest y and x, or None),
        `spacing_note` (what mixed spacings mean, or ""), `grouped_by_similarity`, `intensity` (smallest and largest
        value), `empty_masks`, `suspected_duplicates` and `broken`.
    """
    names = dataset.class_names or tuple(str(label) for label in range(1, dataset.classes))
    shown: Counter[str] = Counter(dict.fromkeys(names, 0))
    sizes: Counter[str] = Counter()
    sites: dict[str, dict[str, Any]] = {}
    thumbnails: dict[str, Pixels] = {}
    subject_of: dict[str, str] = {}
    low, high = np.inf, -np.inf
    for number, record in enumerate(dataset.records):
        pixels, mask = dataset.source.pixels(record), dataset.source.mask(record)
        labels = [int(label) for label in np.unique(mask) if label]
        shown.update(names[label - 1] for label in labels)
        sizes[f"{pixels.shape[1]} x {pixels.shape[0]}"] += 1
        site = sites.setdefault(record.site, {"images": 0, "subjects": set(), "empty_masks": 0})
        site["images"] += 1
        site["subjects"].add(record.subject)
        site["empty_masks"] += not labels
        low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        key = f"{_name(record)} of {record.subject}"
        key = key if key not in thumbnails else f"{key} ({number})"
        thumbnails[key] = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BOX))
        subject_of[key] = record.subject
    spacings = [record.spacing for record in dataset.records if record.spacing is not None]
    return {
        "layout": dataset.layout,
        "modality": dataset.modality,
        "images": len(dataset.records),
        "subjects": len({record.subject for record in dataset.records}),
        "sites": {name: {**site, "subjects": len(site["subjects"])} for name, site in sorted(sites.items())},
        "classes": dict(shown),
        "sizes": dict(sizes),
        "spacing_mm": [list(map(min, *spacings, spacings[0])), list(map(max, *spacings, spacings[0]))]
        if spacings
        else None,
        "spacing_note": _spacing_note(spacings, len(dataset.records)),
        "intensity": [low, high],
        "empty_masks": dataset.empty_masks,
        "grouped_by_similarity": dataset.grouped_by_similarity,
        "suspected_duplicates": _duplicates(thumbnails, subject_of),
        "broken": [{"file": file, "reason": reason} for file, reason in dataset.broken],
    }


def _spacing_note(spacings: list[tuple[float, float]], images: int) -> str:
    """What mixed spacings mean for a run; "" where there is nothing to say."""
    if not spacings:
        return ""
    if len(spacings) < images:
        return f"spacing is known of {len(spacings)} of {images} images, so distances are measured in pixels"
    smallest, largest = min(map(min, spacings)), max(map(max, spacings))
    if largest > MIXED * smallest:
        return (
            f"spacing differs {largest / smallest:.1f} fold; images are resized to one grid, so the same anatomy has"
            " different sizes in it"
        )
    return ""


def _outline(mask: Mask) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Pixels with a neighbour of another class."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge: np.ndarray[Any, np.dtype[np.bool_]] = np.logical_or.reduce([other != mask for other in neighbours])
    return (mask > 0) & edge


def _tile(record: Record, source: Source, window: tuple[float, float] | None) -> Image.Image:
    pixels, mask = source.pixels(record), source.mask(record)
    low, high = window or (float(v) for v in np.percentile(pixels, (1, 99)))
    grey = np.clip((pixels - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    tile = Image.fromarray(grey).resize((TILE, TILE), Image.Resampling.BILINEAR).convert("RGB")
    classes = Image.fromarray(mask.astype(np.int32)).resize((TILE, TILE), Image.Resampling.NEAREST)
    labels = np.asarray(classes)
    coloured = np.asarray(tile).copy()
    for label in np.unique(labels):
        if label:
            coloured[_outline(labels) & (labels == label)] = COLOURS[(int(label) - 1) % len(COLOURS)]
    return Image.fromarray(coloured)


def picture_sheet(dataset: Dataset) -> Image.Image:
    """A row a site: up to six images, evenly through its records, masks outlined in the colours of their classes.

    Images with a mask come first where there are any.
    """
    sites = sorted({record.site for record in dataset.records})
    sheet = Image.new("RGB", (COLUMNS * TILE, len(sites) * (TILE + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, site in enumerate(sites):
        records = [record for record in dataset.records if record.site == site]
        records = [record for record in records if record.classes] or records
        step = max(1, len(records) // COLUMNS)
        top = row * (TILE + 16)
        draw.text((4, top + 2), f"{site}: {len(records)} images", fill="black")
        for column, record in enumerate(records[::step][:COLUMNS]):
            sheet.paste(_tile(record, dataset.source, dataset.window), (column * TILE, top + 16))
    return sheet
