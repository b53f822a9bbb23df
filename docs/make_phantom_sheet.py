"""Write docs/figures/phantoms.png, the contact sheet of docs/data.md: `python docs/make_phantom_sheet.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppcmi_fast.data.phantom import MODALITIES, write_phantom

COLUMNS = 6
EDGE = 160


def strip(folder: Path, gain: int) -> NDArray[np.uint8]:
    """One image of each of the first subjects, side by side."""
    paths = sorted(folder.iterdir())[::4][:COLUMNS]
    tiles = [np.asarray(Image.open(path).resize((EDGE, EDGE), Image.Resampling.NEAREST)) for path in paths]
    return (np.hstack(tiles) * gain).astype(np.uint8)


def main() -> None:
    """Draw images and masks of both modalities."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in MODALITIES:
            root = write_phantom(kind, Path(scratch) / kind, sites=6, subjects=1, slices=4, size=128, seed=1)
            rows += [strip(root / "images", 1), strip(root / "masks", 110)]
    target = Path(__file__).parent / "figures" / "phantoms.png"
    target.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows).astype(np.uint8)).save(target, optimize=True)


if __name__ == "__main__":
    main()
