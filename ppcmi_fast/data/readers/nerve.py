"""Kaggle ultrasound nerve segmentation: `train/<subject>_<n>.tif` with `_mask.tif`, and `train_masks.csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from ppcmi_fast.data.readers.base import Case, require, same_shape
from ppcmi_fast.data.records import Mask, Pixels, Record
from ppcmi_fast.errors import DataError

TABLE = "train_masks.csv"
NAME = re.compile(r"(?P<subject>\d+)_(?P<number>\d+)\.tif$")


def decode_runs(text: str, height: int, width: int) -> Mask:
    """Run lengths to a mask of 0 and 1: pairs of start, counted from 1 down the columns, and length.

    Raises:
        ValueError: an odd count, no numbers, or a run beyond the image.
    """
    numbers = [int(word) for word in text.split()]
    if len(numbers) % 2:
        raise ValueError(f"expected pairs of start and length, got {len(numbers)} numbers")
    flat = np.zeros(height * width, dtype=np.int64)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < 1 or length < 1 or start - 1 + length > len(flat):
            raise ValueError(f"expected runs within 1..{len(flat)}, got {start} + {length}")
        flat[start - 1 : start - 1 + length] = 1
    return flat.reshape(width, height).T


def encode_runs(mask: Mask) -> str:
    """Undo `decode_runs`; "" for an empty mask."""
    flat = np.concatenate([[0], (mask.T.ravel() > 0).astype(np.int64), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))


def _read_tif(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    tifffile = require("tifffile")
    if not path.is_file():
        raise DataError(f"{path}: expected an image file, found nothing; add the file or remove its partner")
    try:
        values = tifffile.imread(path)
    except Exception as error:
        raise DataError(
            f"{path}: expected a readable image, got a damaged file ({error}); replace it"
        ) from None
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DataError(
            f"{path}: expected grey values of 8 bits, got {values.dtype} {list(values.shape)}; convert it to 8-bit grey"
        )
    return values  # type: ignore[no-any-return]


@lru_cache(maxsize=2)
def _read_runs(path: Path, _changed: float) -> dict[tuple[str, str], str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"subject", "img", "pixels"} - set(rows.fieldnames or [])
        if missing:
            raise DataError(
                f"{path}: expected columns subject, img, pixels, missing {', '.join(sorted(missing))}; replace it"
            )
        return {(row["subject"], row["img"]): row["pixels"] or "" for row in rows}


def _runs_in(root: Path) -> dict[tuple[str, str], str]:
    """Run lengths by subject and image; none without the table."""
    path = root / TABLE
    return _read_runs(path, path.stat().st_mtime) if path.is_file() else {}


class NerveReader:
    """47 subjects, most masks empty; the nerve is class 1."""

    name = "nerve"
    title = "the folder train with <subject>_<n>.tif and their _mask.tif, or train_masks.csv"
    class_names: tuple[str, ...] = ("brachial plexus",)
    modality = "ultrasound"
    groups_by_similarity = False

    def detect(self, root: Path) -> bool:
        """Whether the folder `train` holds frames so named."""
        train = root / "train"
        return train.is_dir() and any(NAME.match(path.name) for path in train.glob("*.tif"))

    def cases(self, root: Path) -> Iterator[Case]:
        """A frame a case; where both a mask file and run lengths are there they must say the same."""
        _runs_in(root)  # a damaged table is no frame's fault
        frames = {path.name for path in (root / "train").glob("*.tif") if NAME.match(path.name)}
        frames |= {
            path.name.replace("_mask", "")
            for path in (root / "train").glob("*_mask.tif")
            if "_mask" in path.name
        }
        for name in sorted(frames, key=lambda n: [int(part) for part in re.findall(r"\d+", n)]):
            found = NAME.match(name)
            if found is None:
                continue
            image = root / "train" / name
            mask = image.with_name(f"{image.stem}_mask.tif")
            if not mask.is_file() and (root / TABLE).is_file():
                mask = root / TABLE
            record = Record(image, mask, found["subject"], "site", index=int(found["number"]))
            yield Case(image, lambda record=record: [(record, self._checked(record))])  # type: ignore[misc]

    def _checked(self, record: Record) -> Mask:
        pixels = _read_tif(record.image)
        mask = self.mask(record)
        same_shape(record.image, record.mask, pixels.shape, mask.shape)
        runs = self._runs_of(record)
        if (
            runs is not None
            and record.mask.name != TABLE
            and not np.array_equal(self._decoded(record, runs), mask)
        ):
            raise DataError(
                f"{record.mask}: expected the mask of train_masks.csv, got another; keep the one that is right"
            )
        return mask

    def _runs_of(self, record: Record) -> str | None:
        return _runs_in(record.image.parents[1]).get((record.subject, str(record.index)))

    def _decoded(self, record: Record, runs: str) -> Mask:
        height, width = _read_tif(record.image).shape
        try:
            return decode_runs(runs, height, width)
        except ValueError as error:
            where = f"train_masks.csv, subject {record.subject}, image {record.index}"
            raise DataError(f"{where}: {error}; download it again") from None

    def pixels(self, record: Record) -> Pixels:
        """The frame, 0 to 255."""
        return _read_tif(record.image).astype(np.float32)

    def mask(self, record: Record) -> Mask:
        """The mask file, or without it the run lengths."""
        if record.mask.name == TABLE:
            runs = self._runs_of(record)
            if runs is None:
                raise DataError(
                    f"{record.mask}: expected a line for {record.image.name}, found none; add it or a mask file"
                )
            return self._decoded(record, runs)
        values = _read_tif(record.mask)
        if not np.isin(values, (0, 255)).all():
            raise DataError(f"{record.mask}: expected the values 0 and 255, got {values.max()}; replace it")
        return (values > 0).astype(np.int64)
