"""Images with their masks, as every reader gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

Pixels = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Mask = np.ndarray[tuple[int, int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Record:
    """One image with its mask.

    Attributes:
        image: file of the image, or of the volume that it is a slice of.
        mask: file of the class map, or of all of them.
        subject: whose; all of a subject's images stay in one part of a split.
        site: the hospital.
        spacing: (y, x) in millimetres a pixel of the file, where known.
        index: slice of the volume, or frame of the clip; None for a picture of its own.
        volume: names the volume that it is a slice of; "" for a picture of its own.
        slice_distance: mm to the next slice of its volume; None for what is no slice of a volume.
        group: what the data set says of the subject, such as a diagnosis; "" where it says nothing.
        classes: those above 0 that the mask shows, where the reader looked.
    """

    image: Path
    mask: Path
    subject: str
    site: str
    spacing: tuple[float, float] | None = None
    index: int | None = None
    volume: str = ""
    slice_distance: float | None = None
    group: str = ""
    classes: tuple[int, ...] = ()


class Source(Protocol):
    """Decodes the records of a data set.

    Attributes:
        name: of the layout.
        class_names: from class 1 on; empty where nobody names them.
        modality: one of `augment.MODALITIES`.
    """

    name: str
    class_names: tuple[str, ...]
    modality: str

    def pixels(self, record: Record) -> Pixels:
        """The record's image in its own units.

        Raises:
            DataError: it cannot be read any more.
        """

    def mask(self, record: Record) -> Mask:
        """The record's class map."""


@dataclass(frozen=True)
class Dataset:
    """A folder that has been checked whole.

    Attributes:
        classes: with the background.
        source: decodes its records.
        class_names: from class 1 on; empty where nobody names them.
        broken: files that could not be read, with the reason.
        empty_masks: images found without any class, whether kept or left out.
        window: (low, high) that pixels are clipped to and mapped to 0..1; None maps each image's percentiles.
        modality: one of `augment.MODALITIES`.
        grouped_by_similarity: whether subjects are guessed from frames that look alike, because nobody names them.
    """

    name: str
    root: Path
    records: list[Record]
    classes: int
    source: Source
    class_names: tuple[str, ...] = ()
    broken: list[tuple[str, str]] = field(default_factory=list)
    empty_masks: int = 0
    window: tuple[float, float] | None = None
    grouped_by_similarity: bool = False
    modality: str = "general"

    @property
    def layout(self) -> str:
        """Name of the layout that it came in."""
        return self.source.name

    @property
    def spacing_known(self) -> bool:
        """Whether every image has its spacing in millimetres."""
        return all(record.spacing is not None for record in self.records)
