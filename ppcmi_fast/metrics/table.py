"""scores.csv: every score of a run, one row a method, image or volume, and class."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppcmi_fast.errors import RunError
from ppcmi_fast.metrics.scores import MEASURES, ImageScores

KEYS = ("method", "site", "subject", "image", "slice", "class")
WHOLE_VOLUME = "all"


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one image or volume and what it is.

    Attributes:
        image: its file, or that of the volume it is a slice of; of a volume with a file a slice, its first slice's.
        slice: index in the volume or clip; "" for a picture of its own, "all" for a whole volume.
    """

    site: str
    subject: str
    image: str
    slice: str
    scores: ImageScores

    @property
    def is_volume(self) -> bool:
        """Whether it scores a whole volume."""
        return self.slice == WHOLE_VOLUME


def write_scores(path: Path, methods: Mapping[str, Sequence[ScoreRow]]) -> None:
    """Write every score, so that `read_scores` gives back the same numbers."""
    scratch = path.with_suffix(".tmp")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*KEYS, *MEASURES])
        for method, rows in methods.items():
            for row in rows:
                key = (method, row.site, row.subject, row.image, row.slice)
                for index in range(len(row.scores.dice)):
                    values = [repr(float(getattr(row.scores, measure)[index])) for measure in MEASURES]
                    writer.writerow([*key, index + 1, *values])
    scratch.replace(path)


def read_scores(path: Path) -> dict[str, list[ScoreRow]]:
    """Read scores.csv: method -> its images and volumes, in the order of the file.

    Raises:
        RunError: missing, or not a table of scores.
    """
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                key = tuple(line[name] for name in KEYS[:-1])
                scores = found.setdefault(key, {measure: [] for measure in MEASURES})
                for measure in MEASURES:
                    scores[measure].append(float(line[measure]))
    except KeyError as error:
        raise RunError(f"{path}: expected a column {error}, found none; run ppcmi federate again") from None
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{path}: expected a table of scores, got {error}; run ppcmi federate again"
        ) from error
    methods: dict[str, list[ScoreRow]] = {}
    for (method, site, subject, image, position), scores in found.items():
        methods.setdefault(method, []).append(ScoreRow(site, subject, image, position, ImageScores(**scores)))
    return methods
