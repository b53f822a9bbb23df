"""Write the contact sheets of docs/data.md: `python docs/make_phantom_sheet.py [KIND ...]`, all kinds without one.

docs/figures/phantom_<kind>.png for the kinds in published layouts, read back by their readers: a row a site, three
images plain and with their masks outlined. docs/figures/phantoms.png for the two kinds in the folder layout.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppcmi_fast.data.phantom import MODALITIES, NATIVE_KINDS, write_native, write_phantom
from ppcmi_fast.data.readers import ReadOptions, open_dataset
from ppcmi_fast.data.records import Dataset, Record

FIGURES = Path(__file__).parent / "figures"
COLUMNS = 6
EDGE = 160
SITES, SUBJECTS, SEED = 3, 9, 4
WIDTH = 232  # of a picture on a sheet of a published layout
GREYS = 64  # few, so that a sheet stays below 400 KB
WINDOWS = {"fumpe": (-200.0, 600.0)}
OUTLINES = [(255, 90, 90), (90, 230, 90), (90, 160, 255)]  # of classes 1, 2, 3


def strip(folder: Path, gain: int) -> NDArray[np.uint8]:
    """One image of each of the first subjects, side by side."""
    paths = sorted(folder.iterdir())[::4][:COLUMNS]
    tiles = [np.asarray(Image.open(path).resize((EDGE, EDGE), Image.Resampling.NEAREST)) for path in paths]
    return (np.hstack(tiles) * gain).astype(np.uint8)


def folder_sheet(scratch: Path) -> Image.Image:
    """Images and masks of both kinds in the folder layout."""
    rows = []
    for kind in MODALITIES:
        root = write_phantom(kind, scratch / kind, sites=6, subjects=1, slices=4, size=128, seed=1)
        rows += [strip(root / "images", 1), strip(root / "masks", 110)]
    return Image.fromarray(np.vstack(rows).astype(np.uint8))


def chosen(records: list[Record]) -> list[Record]:
    """One image of each of three subjects: in the middle of its masks, early in them, and any."""
    by_subject: dict[str, list[Record]] = {}
    for record in records:
        by_subject.setdefault(record.subject, []).append(record)
    picked = []
    for own, at, masked in zip(by_subject.values(), (0.5, 0.25, 0.85), (True, True, False), strict=False):
        usable = [record for record in own if record.classes] if masked else own
        picked.append(usable[int(at * len(usable))])
    return picked


def pair(dataset: Dataset, record: Record, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """An image, and beside it the same with its classes outlined: indices into the palette, [H, 2 * WIDTH]."""
    pixels, mask = dataset.source.pixels(record), dataset.source.mask(record)
    low, high = window or (0.0, max(float(np.percentile(pixels, 99.7)), 1.0))
    grey = np.clip((pixels - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    size = (WIDTH, round(WIDTH * grey.shape[0] / grey.shape[1]))
    shown = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX)) // (256 // GREYS)
    labels = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        for step in (-1, 1):
            edge |= np.roll(labels, step, axis) != labels
    return np.hstack([shown, np.where(edge & (labels > 0), GREYS - 1 + labels, shown)]).astype(np.uint8)


def native_sheet(kind: str, scratch: Path) -> Image.Image:
    """A row a site."""
    write_native(kind, scratch / kind, subjects=SUBJECTS, sites=SITES, seed=SEED)
    dataset = open_dataset(scratch / kind, options=ReadOptions(window=WINDOWS.get(kind)))
    rows = []
    for site in sorted({record.site for record in dataset.records}):
        own = chosen([record for record in dataset.records if record.site == site])
        rows.append(np.hstack([pair(dataset, record, WINDOWS.get(kind)) for record in own]))
    sheet = Image.fromarray(np.vstack(rows)).convert("P")
    greys = [(level, level, level) for level in range(0, 256, 256 // GREYS)]
    sheet.putpalette([value for colour in (*greys, *OUTLINES) for value in colour])
    return sheet


def main(kinds: list[str]) -> None:
    """Draw the sheets of `kinds`; "folder" is the one of the folder layout."""
    FIGURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in kinds or ["folder", *NATIVE_KINDS]:
            name = "phantoms" if kind == "folder" else f"phantom_{kind}"
            sheet = folder_sheet(Path(scratch)) if kind == "folder" else native_sheet(kind, Path(scratch))
            sheet.save(FIGURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
