"""What readers of published layouts share: cases in, checked records out; a broken file is listed, not fatal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ppcmi_fast.data.records import Dataset, Mask, Record, Source
from ppcmi_fast.errors import ConfigError, DataError

SHOWN = 5
EXTRA = 'pip install "ppcmi-fast[data]"'


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is taken.

    Attributes:
        drop_empty: leave out slices whose mask is empty; else they are kept.
        max_broken: the share of files that may be unreadable; they are listed either way.
        window: (low, high) that pixels are clipped to, such as Hounsfield units; None leaves them to the rescaling by
            percentiles.
        classes: classes including the background; None counts those that occur.
    """

    drop_empty: bool = False
    max_broken: float = 0.05
    window: tuple[float, float] | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"max_broken: expected a share of 0 to 1, got {self.max_broken}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window: expected low < high, got {self.window}")
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes: expected at least 2 with the background, got {self.classes}")


@dataclass(frozen=True)
class Case:
    """An image file and what reads it: records with their masks, in order of their slices."""

    name: Path
    read: Callable[[], list[tuple[Record, Mask]]]


class Reader(Source, Protocol):
    """One layout of data sets.

    Attributes:
        title: for messages, with what marks the layout.
        groups_by_similarity: whether subjects are guessed from frames that look alike.
    """

    title: str
    groups_by_similarity: bool

    def detect(self, root: Path) -> bool:
        """Whether the folder looks like it, from names alone."""

    def cases(self, root: Path) -> Iterable[Case]:
        """Every image of the folder.

        Raises:
            DataError: the folder lacks a part that the layout must have.
        """


def listed(values: Iterable[int]) -> str:
    """A few values, the smallest first."""
    ordered = sorted(values)
    shown = ", ".join(map(str, ordered[:SHOWN]))
    return shown if len(ordered) <= SHOWN else f"{shown} ... {ordered[-1]}"


@dataclass
class Scan:
    """Collects what is readable and lists what is not."""

    records: list[Record] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    first_with: dict[int, Record] = field(default_factory=dict)
    empty: int = 0
    seen: int = 0

    def add(self, case: Case, options: ReadOptions) -> None:
        """Take a case, or list it as broken."""
        self.seen += 1
        try:
            pairs = case.read()
            labels = [_labels(record, mask, options.classes) for record, mask in pairs]
        except DataError as error:
            self.broken.append((case.name, str(error)))
            return
        for (record, _), found in zip(pairs, labels, strict=True):
            shown = tuple(sorted(found - {0}))
            self.empty += not shown
            for label in found:
                self.first_with.setdefault(label, record)
            if shown or not options.drop_empty:
                self.records.append(replace(record, classes=shown))


def _labels(record: Record, mask: Mask, classes: int | None) -> set[int]:
    labels = {int(value) for value in np.unique(mask)}
    if classes is not None and max(labels) >= classes:
        raise DataError(
            f"{record.mask}: expected values 0..{classes - 1}, got {listed(labels)};"
            " store class indices in the mask, or correct the setting classes"
        )
    return labels


def _count_classes(reader: Reader, root: Path, scan: Scan) -> int:
    """With the background: as the layout names them, else the largest value + 1, if all up to it occur."""
    largest = max(scan.first_with)
    absent = set(range(1, largest)) - scan.first_with.keys()
    if absent and not reader.class_names:
        # 0 and 255 are not 256 classes.
        raise DataError(
            f"{scan.first_with[largest].mask}: expected class indices 0, 1, 2, ... without a gap, got"
            f" {listed(scan.first_with)} in {root.name}, and no mask has {listed(absent)}; store class indices (255 for"
            f" a single class becomes 1), or set classes={largest + 1} if these are meant"
        )
    return max(largest, len(reader.class_names)) + 1


def finish(reader: Reader, root: Path, scan: Scan, options: ReadOptions) -> Dataset:
    """The checked data set.

    Raises:
        DataError: nothing readable, too much broken, no class above 0, or classes with gaps that nobody named.
    """
    if scan.seen == 0:
        raise DataError(f"{root}: expected {reader.title}, found no image; check the path")
    if len(scan.broken) > options.max_broken * scan.seen:
        texts = [reason for _, reason in scan.broken[:SHOWN]]
        more = f"\n... and {len(scan.broken) - SHOWN} more" if len(scan.broken) > SHOWN else ""
        raise DataError(
            f"{root}: expected at most {options.max_broken:.0%} unreadable files, got {len(scan.broken)} of"
            f" {scan.seen}; repair or remove them, or raise max_broken:\n" + "\n".join(texts) + more
        )
    if not scan.records or max(scan.first_with) == 0:
        raise DataError(
            f"{root}: expected masks with at least one class above 0, all are empty; check the masks"
        )
    return Dataset(
        root.resolve().name,
        root,
        scan.records,
        options.classes or _count_classes(reader, root, scan),
        source=reader,
        class_names=reader.class_names,
        broken=[(str(path.relative_to(root)), reason) for path, reason in scan.broken],
        empty_masks=scan.empty,
        window=options.window,
        grouped_by_similarity=reader.groups_by_similarity,
        modality=reader.modality,
    )


def require(module: str) -> Any:
    """Import an optional library.

    Raises:
        ConfigError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"data: {module.split('.')[0]} is missing; cure: {EXTRA}") from error


def same_shape(image: Path, mask: Path, pixels: Sequence[int], labels: Sequence[int]) -> None:
    """Raise DataError unless both have one shape."""
    if tuple(pixels) != tuple(labels):
        raise DataError(
            f"{mask}: expected the shape of its image {image.name} {list(pixels)}, got {list(labels)};"
            " export the mask at the image's size"
        )


def whole(values: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels as integers.

    Raises:
        DataError: a value that is no whole number of at least 0.
    """
    integers = values.astype(np.int64)
    if (integers != values).any() or (integers.size and integers.min() < 0):
        raise DataError(
            f"{path}: expected whole class indices from 0 on, got {values.min()} to {values.max()}"
        )
    return integers
