"""Images with their masks, as every reader gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One image with its mask.

    Attributes:
        image: file of the image, or of the volume that it is a slice of.
        mask: file of the class map.
        subject: whose; all of a subject's images stay in one part of a split.
        site: the hospital.
        spacing: (y, x) in millimetres a pixel of the file, where known.
        index: slice of the volume, or frame of the clip; None for a picture of its own.
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
    slice_distance: float | None = None
    group: str = ""
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A folder that has been checked whole.

    Attributes:
        classes: with the background.
        layout: name of the reader that gave it.
        class_names: from class 1 on; empty where nobody names them.
        broken: files that could not be read, with the reason.
        empty_masks: images found without any class, whether kept or left out.
        window: (low, high) that pixels are clipped to and mapped to 0..1; None maps each image's percentiles.
    """

    name: str
    root: Path
    records: list[Record]
    classes: int
    layout: str = "folder"
    class_names: tuple[str, ...] = ()
    broken: list[tuple[str, str]] = field(default_factory=list)
    empty_masks: int = 0
    window: tuple[float, float] | None = None

    @property
    def spacing_known(self) -> bool:
        """Whether every image has its spacing in millimetres."""
        return all(record.spacing is not None for record in self.records)
