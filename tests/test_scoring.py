"""What a run writes of its scores: volumes among the slices, scores.csv, from which every summary can be made again."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("monai", reason="the extra `train` is not installed")
pytest.importorskip("scipy", reason="the extra `train` is not installed")

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.records import Record
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.scoring import Scorer, compare_rows, stack_slices, summarise_rows, volumes_of
from ppcmi_fast.metrics import MEASURES, read_scores, volume_scores, write_scores

ROOT = Path("data")
SIZE = 24
SPACING = (0.5, 1.5)


def slices(subject: str, site: str, indices: list[int], distance: float | None = 4.0) -> list[Record]:
    """Slices of one volume; without a distance, frames of a clip."""
    path, volume = ROOT / f"{site}-{subject}.nii.gz", "" if distance is None else subject
    return [
        Record(
            path, path, subject, site, spacing=SPACING, index=index, volume=volume, slice_distance=distance
        )
        for index in indices
    ]


def arrays(records: list[Record], seed: int, *, spaced: bool = True) -> Arrays:
    """Two classes of random rectangles; class 2 is absent from every third image."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(records), SIZE, SIZE, dtype=torch.int64)
    for number, mask in enumerate(masks):
        top, left = torch.randint(2, 8, (2,), generator=generator).tolist()
        mask[top : top + 9, left : left + 7] = 1
        if number % 3:
            mask[top + 2 : top + 6, left + 2 : left + 5] = 2
    spacing = torch.tensor([SPACING] * len(records)) if spaced else None
    return Arrays(torch.zeros(len(records), 1, SIZE, SIZE), masks, records, spacing)


@pytest.fixture
def scorer() -> Scorer:
    # The second volume's slices come out of order and one is left out.
    north = slices("n1", "north", [3, 4, 5]) + slices("n2", "north", [9, 7, 6]) + slices("n3", "north", [0])
    picture = Record(ROOT / "s2.png", ROOT / "s2-mask.png", "s2", "south", spacing=SPACING)
    south = [*slices("s1", "south", [0, 1], None), picture]
    return Scorer({"north": arrays(north, 0), "south": arrays(south, 1)}, 3, ROOT, True, 1.0)


def answers(scorer: Scorer, shift: int) -> dict[str, torch.Tensor]:
    return {site: data.masks.roll(shift, 2) for site, data in scorer.tests.items()}


def test_volumes_are_slices_of_one_file_in_order() -> None:
    records = slices("a", "x", [2, 0, 1]) + slices("clip", "x", [0, 1], None) + slices("b", "x", [5])
    assert volumes_of(records) == [[1, 2, 0], [5]]


def test_slices_with_a_file_each_are_one_volume() -> None:
    paths = [ROOT / f"{number}.dcm" for number in range(3)]
    records = [
        Record(p, p, "a", "x", index=2 - i, volume="1.2.3", slice_distance=2.0) for i, p in enumerate(paths)
    ]
    assert volumes_of(records) == [[2, 1, 0]]
    scorer = Scorer({"x": arrays(records, 0, spaced=False)}, 3, ROOT, False)
    whole = [row for row in scorer.score(answers(scorer, 0)) if row.is_volume]
    assert [(row.image, row.scores.dice) for row in whole] == [("2.dcm", [1.0, 1.0])]


def test_a_slice_that_was_left_out_keeps_its_place() -> None:
    maps = torch.ones(2, 4, 4, dtype=torch.int64)
    volume = stack_slices(maps, [6, 9])
    assert volume.flatten(1).any(1).tolist() == [True, False, False, True]


def test_volumes_are_scored_with_their_slice_distance(scorer: Scorer) -> None:
    rows = scorer.score(answers(scorer, 1))
    volumes = {row.image: row for row in rows if row.is_volume}
    assert set(volumes) == {"north-n1.nii.gz", "north-n2.nii.gz", "north-n3.nii.gz"}
    masks = scorer.tests["north"].masks
    stack = stack_slices(masks[[5, 4, 3]], [6, 7, 9])
    expected = volume_scores(stack.roll(1, 2), stack, 3, (4.0, *SPACING), 1.0)
    assert volumes["north-n2.nii.gz"].scores == expected
    assert [row.slice for row in rows if row.site == "south"] == ["0", "1", ""]
    summary = summarise_rows(rows)
    assert set(summary["volume"]["hd95"]["site"]) == {"north"} and set(summary["hd95"]["site"]) == {
        "north",
        "south",
    }


def test_without_volumes_there_is_no_entry_for_them() -> None:
    records = slices("a", "x", [0, 1], None)
    scorer = Scorer({"x": arrays(records, 0)}, 3, ROOT, True)
    assert "volume" not in summarise_rows(scorer.score(answers(scorer, 1)))
    assert "volumes" not in scorer.describe()


def test_where_one_spacing_is_unknown_all_sites_are_measured_in_pixels(scorer: Scorer) -> None:
    mixed = Scorer(
        {
            "north": scorer.tests["north"],
            "south": arrays(scorer.tests["south"].records, 1, spaced=False),
        },
        3,
        ROOT,
        False,
    )
    rows = mixed.score(answers(mixed, 2))
    assert mixed.describe()["unit"] == "px"
    # Class 1 moved by two pixels of 1.5 mm.
    assert {row.scores.hd95[0] for row in rows if not row.is_volume} == {2.0}


def test_the_truths_without_a_class_are_counted(scorer: Scorer) -> None:
    facts = scorer.describe()
    assert facts["unit"] == "mm" and facts["nsd_tolerance"] == 1.0
    assert facts["images"] == 10 and facts["empty_truths"] == {"1": 0, "2": 4}
    # The third volume is one slice, and it lacks class 2; slice 8 of the second is not there.
    assert (facts["volumes"], facts["empty_truth_volumes"]) == (3, {"1": 0, "2": 1})
    assert facts["slices_left_out"] == 1
    assert "diagonal" in facts["empty_mask_policy"] and set(facts["hd95_definitions"]) < set(MEASURES)


def test_scores_come_back_from_the_file_as_they_were(scorer: Scorer, tmp_path: Path) -> None:
    methods = {"ppcmi": scorer.score(answers(scorer, 1)), "unet": scorer.score(answers(scorer, 3))}
    write_scores(tmp_path / "scores.csv", methods)
    assert read_scores(tmp_path / "scores.csv") == methods
    assert list(tmp_path.iterdir()) == [tmp_path / "scores.csv"]


def test_every_summary_can_be_made_again_from_the_file_alone(scorer: Scorer, tmp_path: Path) -> None:
    methods = {"ppcmi": scorer.score(answers(scorer, 1)), "unet": scorer.score(answers(scorer, 3))}
    write_scores(tmp_path / "scores.csv", methods)
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for method, rows in methods.items():
        summary = summarise_rows(rows)
        for volume in (False, True):
            told = summary["volume"] if volume else summary
            for measure in MEASURES:
                found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
                for line in lines:
                    if line["method"] == method and (line["slice"] == "all") == volume:
                        found[line["site"]][line["class"]].append(float(line[measure]))
                means = {
                    site: {c: statistics.fmean(v) for c, v in classes.items()}
                    for site, classes in found.items()
                }
                for site, classes in means.items():
                    assert told[measure]["site_class"][site] == pytest.approx(classes)
                    assert told[measure]["site"][site] == pytest.approx(statistics.fmean(classes.values()))
                overall = statistics.fmean(statistics.fmean(classes.values()) for classes in means.values())
                assert told[measure]["mean"] == pytest.approx(overall)
    again = read_scores(tmp_path / "scores.csv")
    assert {m: summarise_rows(rows, 7) for m, rows in again.items()} == {
        m: summarise_rows(rows, 7) for m, rows in methods.items()
    }
    assert compare_rows(again, "ppcmi", 7) == compare_rows(methods, "ppcmi", 7)


def test_names_are_told_without_the_folder_they_lie_in() -> None:
    records = [
        Record(Path("/home/x/data/a/1.png"), Path("m"), "a", "s"),
        Record(Path("/mnt/2.png"), Path("m"), "b", "s"),
    ]
    scorer = Scorer({"s": arrays(records, 0, spaced=False)}, 3, Path("/home/x/data"), False)
    assert [row.image for row in scorer.score(answers(scorer, 1))] == ["a/1.png", "2.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("hd95_pooled", "pooled"), "expected a column 'hd95_pooled'"),
        (lambda text: text[: text.rindex(",")], "expected a table of scores"),
        (lambda text: text.replace("1.0", "one"), "expected a table of scores"),
    ],
)
def test_a_damaged_file_is_named(scorer: Scorer, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "scores.csv"
    write_scores(path, {"ppcmi": scorer.score(answers(scorer, 1))})
    path.write_text(change(path.read_text()))
    with pytest.raises(RunError, match=rf"scores\.csv: {message}"):
        read_scores(path)
    with pytest.raises(RunError, match=r"nothing\.csv: expected a table of scores"):
        read_scores(tmp_path / "nothing.csv")
