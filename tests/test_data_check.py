"""`ppcmi data check`: what it counts, what it suspects, and its sheet of pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_layouts import WRITERS, acdc, fumpe, nerve
from PIL import Image
from typer.testing import CliRunner

from ppcmi_fast.cli.app import app
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.data.readers import ReadOptions, open_dataset
from ppcmi_fast.data.summary import TILE, picture_sheet, summarise


def check(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_is_summarised_and_pictured(layout: str, tmp_path: Path) -> None:
    root = WRITERS[layout](tmp_path / "d")
    out, sheet = tmp_path / "found.json", tmp_path / "sheet.png"
    printed = check(root, "--json", out, "--sheet", sheet)
    found: dict[str, Any] = json.loads(out.read_text())
    dataset = open_dataset(root)
    assert f"layout {layout}: {len(dataset.records)} images of 4 subjects" in printed
    assert found["images"] == len(dataset.records) == sum(site["images"] for site in found["sites"].values())
    assert sum(found["sizes"].values()) == found["images"]
    assert all(count > 0 for count in found["classes"].values())
    with Image.open(sheet) as picture:
        assert picture.size == (6 * TILE, TILE + 16)


def test_counts_are_right(tmp_path: Path) -> None:
    found = summarise(open_dataset(nerve(tmp_path / "d")))
    assert found["sites"] == {"site": {"images": 12, "subjects": 4, "empty_masks": 8}}
    assert found["classes"] == {"brachial plexus": 4} and found["empty_masks"] == 8
    assert found["sizes"] == {"58 x 42": 12} and found["spacing_mm"] is None
    found = summarise(open_dataset(acdc(tmp_path / "a")))
    assert found["spacing_mm"] == [[1.5, 1.5], [1.5, 1.5]]
    found = summarise(open_dataset(fumpe(tmp_path / "f")))
    assert found["intensity"] == [-799, -596]


def test_a_folder_with_a_manifest_is_summarised_by_site(tmp_path: Path) -> None:
    root = write_phantom("cardiac", tmp_path / "d", sites=2, subjects=3, slices=2, size=48)
    found = summarise(open_dataset(root))
    assert found["layout"] == "folder" and set(found["sites"]) == {"site-0", "site-1"}
    assert all(site["images"] == 6 and site["subjects"] == 3 for site in found["sites"].values())
    assert found["suspected_duplicates"] == [] and found["broken"] == []


def test_one_picture_under_two_subjects_is_suspected(tmp_path: Path) -> None:
    root = nerve(tmp_path / "d")
    shutil.copy(root / "train" / "1_2.tif", root / "train" / "3_2.tif")
    (group,) = summarise(open_dataset(root))["suspected_duplicates"]
    assert group == ["1_2.tif[2] of 1", "3_2.tif[2] of 3"]
    assert "look the same, and are of several subjects: 1_2.tif[2] of 1; 3_2.tif[2] of 3" in check(root)


def test_broken_files_are_listed_with_their_reason(tmp_path: Path) -> None:
    root = nerve(tmp_path / "d")
    (root / "train" / "2_2.tif").write_bytes(b"II*\0")
    printed = check(root)
    assert "broken: train/2_2.tif: " in printed and "expected a readable image" in printed
    found = summarise(open_dataset(root, options=ReadOptions(max_broken=1)))
    assert [entry["file"] for entry in found["broken"]] == ["train/2_2.tif"]


def test_masks_are_outlined_in_the_colour_of_their_class(tmp_path: Path) -> None:
    sheet = np.asarray(picture_sheet(open_dataset(acdc(tmp_path / "d")))).reshape(-1, 3)
    for colour in ((230, 60, 60), (60, 200, 90), (70, 130, 240)):
        assert (sheet == colour).all(1).any()
