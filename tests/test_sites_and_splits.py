"""Sites by a table beside the data, stratified splits, and notes on mixed spacings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from native_layouts import acdc, msd, psfhs, write_itk
from typer.testing import CliRunner

from ppcmi_fast.cli.app import app
from ppcmi_fast.data.readers import open_dataset
from ppcmi_fast.data.records import Record
from ppcmi_fast.data.splits import limit_training, split_by_subject
from ppcmi_fast.data.summary import summarise
from ppcmi_fast.errors import DataError


def test_a_table_of_subjects_names_the_sites(tmp_path: Path) -> None:
    root = acdc(tmp_path / "d")
    (root / "sites.csv").write_text(
        "subject,site\n" + "".join(f"patient{n:03d}, {'ab'[n % 2]} \n" for n in range(1, 9))
    )
    dataset = open_dataset(root)
    assert {(r.subject, r.site) for r in dataset.records} == {
        (f"patient{n:03d}", "ab"[n % 2]) for n in range(1, 5)
    }


def test_a_table_of_images_serves_a_set_without_subjects(tmp_path: Path) -> None:
    root = psfhs(tmp_path / "d")
    lines = [f"image_mha/{n:05d}.mha,{'ab'[n // 4]}" for n in range(8)]
    (root / "sites.csv").write_text("\n".join(["image,site", *lines]))
    dataset = open_dataset(root)
    assert [r.site for r in dataset.records] == list("aaaabbbb") and dataset.grouped_by_similarity
    # Frames 0 and 1 are of one sweep.
    (root / "sites.csv").write_text("\n".join(["image,site", "image_mha/00000.mha,b", *lines[1:]]))
    with pytest.raises(DataError, match="expected a subject at one site, got 'group-0000' at 'b' and 'a'"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject\npatient001\n", "expected columns site, missing site"),
        (
            "subject,site\npatient001,a\n",
            "expected a site for every subject, none for patient002, patient003",
        ),
        ("subject,site\npatient001,../a\n", "line 2: expected a site name without slashes"),
        ("subject,site\npatient001,a\npatient001,b\n", "line 3: expected 'patient001' at one site"),
        ("name,site\npatient001,a\n", "line 2: expected columns subject or image"),
        ("subject,site\npatient001,a,b\n", "line 2: expected a field per column"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    root = acdc(tmp_path / "d")
    (root / "sites.csv").write_text(text)
    with pytest.raises(DataError, match=rf"sites\.csv.*{message}"):
        open_dataset(root)


def records(labels: list[str], site: str = "a") -> list[Record]:
    return [
        Record(Path(f"{site}{i}.png"), Path("m"), f"{site}{i:03d}", site, group=g)
        for i, g in enumerate(labels)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_divided_in_proportion(seed: int) -> None:
    split = split_by_subject(records(["DCM"] * 40 + ["NOR"] * 20 + ["RV"] * 4), seed=seed)
    for part, share in ((split.train, 0.6), (split.val, 0.15), (split.test, 0.25)):
        count = Counter(record.group for record in part)
        for group, size in (("DCM", 40), ("NOR", 20), ("RV", 4)):
            assert abs(count[group] - share * size) <= 1, (group, count)


@pytest.mark.parametrize("seed", range(4))
def test_which_of_as_many_groups_is_held_out_differs_from_site_to_site(seed: int) -> None:
    groups = ["NOR", "DCM", "HCM", "MINF", "RV"]
    sites = [f"site-{n:02d}" for n in range(20)]
    found = [record for site in sites for record in records([*groups, "NOR"], site)]
    split = split_by_subject(found, seed=seed)
    for part in (split.train, split.val, split.test):
        seen = Counter(record.group for record in part if record.group != "NOR")
        assert set(seen) == set(groups) - {"NOR"}, seen


def test_what_does_not_tie_is_divided_as_in_runs_of_before() -> None:
    # Drawing ties from the generator that shuffles would move every subject of the second site.
    split = split_by_subject([*records(["x"] * 5 + ["y"] * 2), *records(["x"] * 8, site="b")], seed=3)
    assert split.to_json()["test"] == {"a": ["a000", "a006"], "b": ["b004", "b005"]}
    assert split.to_json()["val"] == {"a": ["a002"], "b": ["b007"]}


def test_where_groups_differ_in_size_the_larger_goes_first_at_the_same_place() -> None:
    # Of 9 and 3 subjects the fifth and the second lie in the middle, where the training images begin.
    for seed in range(4):
        split = split_by_subject(records(["rare"] * 3 + ["common"] * 9), (0.5, 1 / 12, 5 / 12), seed)
        held_out = Counter(record.group for record in [*split.test, *split.val])
        assert held_out == {"common": 5, "rare": 1}, held_out


def test_without_groups_the_classes_shown_are_divided() -> None:
    found = [
        Record(Path(f"{i}.png"), Path("m"), f"s{i:02d}", "a", classes=(1, 2) if i % 4 else (1,))
        for i in range(40)
    ]
    split = split_by_subject(found)
    assert sum(record.classes == (1,) for record in split.test) in (2, 3)
    assert sum(record.classes == (1,) for record in split.val) in (1, 2)


def test_fewer_training_images_are_some_of_more_and_the_rest_stays() -> None:
    split = split_by_subject(records(["x"] * 40) + records(["x"] * 20, site="b"))
    assert limit_training(split, 0) == split
    few, more = limit_training(split, 3, seed=1), limit_training(split, 9, seed=1)
    assert Counter(r.site for r in few.train) == {"a": 3, "b": 3}
    assert Counter(r.site for r in more.train) == {"a": 9, "b": 9}
    assert set(map(id, few.train)) < set(map(id, more.train)) < set(map(id, split.train))
    assert (few.val, few.test) == (split.val, split.test)
    assert limit_training(split, 3, seed=2).train != few.train
    with pytest.raises(DataError, match=r"expected at most the 12 training images of site 'b', got 13"):
        limit_training(split, 13)


def test_mixed_spacings_are_said_and_kept(tmp_path: Path) -> None:
    root = msd(tmp_path / "d")
    values = np.random.default_rng(0).normal(300, 40, (6, 30, 32)).astype(np.float32)
    label = np.zeros((6, 30, 32), np.uint8)
    label[2:4, 8:20, 8:20] = 1
    write_itk(values, root / "imagesTr" / "la_009.nii.gz", (2.5, 2.5, 2.7))
    write_itk(label, root / "labelsTr" / "la_009.nii.gz", (2.5, 2.5, 2.7))
    dataset = open_dataset(root)
    assert {round(r.spacing[0], 2) for r in dataset.records if r.spacing} == {1.25, 2.5}
    assert "spacing differs 2.0 fold" in summarise(dataset)["spacing_note"]
    result = CliRunner().invoke(app, ["data", "check", str(root)])
    assert result.exit_code == 0 and "note: spacing differs 2.0 fold" in result.output


def test_spacing_of_some_images_only_is_said(tmp_path: Path) -> None:
    dataset = open_dataset(msd(tmp_path / "d"))
    assert summarise(dataset)["spacing_note"] == ""
    mixed = replace(dataset, records=[replace(dataset.records[0], spacing=None), *dataset.records[1:]])
    assert "known of 23 of 24 images" in summarise(mixed)["spacing_note"] and not mixed.spacing_known
