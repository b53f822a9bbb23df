"""Fetal head and pubic symphysis in ultrasound: FH-PS-AOP / PSFHS (Lu et al. 2022) and JNU-IFM."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.data.readers.base import Case, require, same_shape, whole
from ppcmi_fast.data.readers.pictures import grey_values, open_grey
from ppcmi_fast.data.records import Mask, Pixels, Record
from ppcmi_fast.data.similarity import group_similar
from ppcmi_fast.errors import DataError

CLASS_NAMES = ("pubic symphysis", "fetal head")


@lru_cache(maxsize=64)
def _read_frame(path: Path, _changed: float) -> np.ndarray[Any, Any]:
    sitk = require("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        values: np.ndarray[Any, Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DataError(
            f"{path}: expected a readable image, got a damaged file ({reason}); replace it"
        ) from None
    return values


def _frame(path: Path) -> np.ndarray[Any, Any]:
    if not path.is_file():
        raise DataError(f"{path}: expected an image file, found nothing; add the file or remove its partner")
    return _read_frame(path, path.stat().st_mtime)


def _grey(path: Path) -> Pixels:
    """[3, H, W] or [H, W, 3], which the set stores for grey pictures, as the mean of the three."""
    values = _frame(path)
    if values.ndim == 3 and 3 in (values.shape[0], values.shape[2]):
        values = values.mean(0 if values.shape[0] == 3 else 2)
    if values.ndim != 2:
        raise DataError(f"{path}: expected 3 x H x W or H x W values, got {list(values.shape)}; replace it")
    pixels: Pixels = values.astype(np.float32)
    return pixels


class PsfhsReader:
    """`image_mha/NNNNN.mha` (uint8, 3 x 256 x 256), `label_mha/` {0, 1 symphysis, 2 head}; no subjects."""

    name = "psfhs"
    title = "FH-PS-AOP folders image_mha and label_mha"
    class_names: tuple[str, ...] = CLASS_NAMES
    modality = "ultrasound"
    groups_by_similarity = True

    def detect(self, root: Path) -> bool:
        """Whether both folders are there."""
        return (root / "image_mha").is_dir() and (root / "label_mha").is_dir()

    def cases(self, root: Path) -> Iterator[Case]:
        """A frame a case. Frames that look alike are of one subject: the set does not say whose they are."""
        names = sorted(
            {path.name for part in ("image_mha", "label_mha") for path in (root / part).glob("*.mha")}
        )
        subjects = group_similar({name: self._thumbnail(root / "image_mha" / name) for name in names})
        for name in names:
            yield self._case(root, name, f"group-{subjects[name]:04d}")

    def _thumbnail(self, path: Path) -> Pixels | None:
        try:
            return _grey(path)
        except DataError:
            return None  # listed as broken when its case is read

    def _case(self, root: Path, name: str, subject: str) -> Case:
        image, mask = root / "image_mha" / name, root / "label_mha" / name

        def read() -> list[tuple[Record, Mask]]:
            pixels, labels = _grey(image), whole(_frame(mask), mask)
            same_shape(image, mask, pixels.shape, labels.shape)
            return [(Record(image, mask, subject, "site"), labels)]

        return Case(image, read)

    def pixels(self, record: Record) -> Pixels:
        """The frame, the mean of its three equal channels."""
        return _grey(record.image)

    def mask(self, record: Record) -> Mask:
        """Its classes."""
        return whole(_frame(record.mask), record.mask)


class JnuIfmReader:
    """`image/<video>_<frame>.png`, `mask/` of the same names with the values 7 (symphysis) and 8 (head)."""

    name = "jnu-ifm"
    title = "JNU-IFM folders image and mask with <video>_<frame>.png"
    class_names: tuple[str, ...] = CLASS_NAMES
    modality = "ultrasound"
    groups_by_similarity = False
    pattern = re.compile(r"(?P<video>.+)_(?P<frame>\d+)\.png$")

    def detect(self, root: Path) -> bool:
        """Whether both folders are there and hold frames of videos."""
        images = root / "image"
        return (
            (root / "mask").is_dir()
            and images.is_dir()
            and any(self.pattern.match(p.name) for p in images.iterdir())
        )

    def cases(self, root: Path) -> Iterator[Case]:
        """A frame a case; a video is a subject."""
        names = {path.name for path in (root / "image").glob("*.png")}
        names |= {path.name.replace("_mask", "") for path in (root / "mask").glob("*.png")}
        for name in sorted(names):
            found = self.pattern.match(name)
            video, frame = (found["video"], int(found["frame"])) if found else (name, 0)
            image, mask = root / "image" / name, root / "mask" / name
            if not mask.is_file():
                mask = mask.with_name(f"{mask.stem}_mask.png")
            yield self._case(Record(image, mask, video, "site", index=frame))

    def _case(self, record: Record) -> Case:
        def read() -> list[tuple[Record, Mask]]:
            pixels, labels = self.pixels(record), self.mask(record)
            same_shape(record.image, record.mask, pixels.shape, labels.shape)
            return [(replace(record), labels)]

        return Case(record.image, read)

    def pixels(self, record: Record) -> Pixels:
        """The frame in grey: it was stored in colour, with three equal channels."""
        try:
            return grey_values(record.image)
        except DataError as error:
            if "got mode RGB" not in str(error):
                raise
        from PIL import Image

        with Image.open(record.image) as picture:
            pixels: Pixels = np.asarray(picture.convert("RGB"), dtype=np.float32).mean(2)
            return pixels

    def mask(self, record: Record) -> Mask:
        """7 and 8 as 1 and 2."""
        stored = np.asarray(open_grey(record.mask), dtype=np.int64)
        unknown = set(np.unique(stored).tolist()) - {0, 7, 8}
        if unknown:
            raise DataError(
                f"{record.mask}: expected the values 0, 7 and 8, got {sorted(unknown)[0]}; replace it"
            )
        return np.where(stored == 0, 0, stored - 6)
