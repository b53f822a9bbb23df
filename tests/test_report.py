"""report.html: what it shows, that it asks nobody for anything, what it says about a damaged run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_run import SITES, make_examples, make_history, make_metrics, make_run

from ppcmi_fast.errors import RunError
from ppcmi_fast.report import words

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from ppcmi_fast.report import figures, write_report
from ppcmi_fast.report.html import headline, score_tables
from ppcmi_fast.report.runfolder import Examples, load_examples, load_metrics, method_order


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_report(make_run(tmp_path_factory.mktemp("runs") / "run"))
    assert path.name == "report.html"
    return path.read_text(encoding="utf-8")


def test_page_asks_nobody_for_anything(page: str) -> None:
    links = re.findall(r"""(?:href|src|action)\s*=\s*["']([^"']*)["']""", page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert all(url.startswith("#") for url in re.findall(r"""url\(["']?([^)"']*)""", page))
    assert "<script" not in page
    assert "@import" not in page


def test_page_has_every_section(page: str) -> None:
    for heading in (
        "What the keyed transform does not give",
        "Scores",
        "Examples",
        "Learning curves",
        "Payload, latency, time",
        "Environment and settings",
        "Command",
    ):
        assert f">{heading}" in page, heading
    assert "not encryption" in page
    assert "prefers-color-scheme: dark" in page
    for text in (
        "12,544",
        "2,304",
        "9.70 ms",
        "0.860",
        "HD95 (mm)",
        "ppcmi federate data --out runs/x",
        "avx2",
    ):
        assert text in page, text


def test_page_never_calls_the_transform_secure(page: str) -> None:
    assert not re.search(r"\b(secure|secured|encrypted)\b", page, re.IGNORECASE)


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_two_renderings_are_the_same_bytes(tmp_path: Path, page: str) -> None:
    assert write_report(make_run(tmp_path / "run")).read_text(encoding="utf-8") == page


def test_names_from_the_data_are_escaped(tmp_path: Path) -> None:
    metrics = make_metrics()
    metrics["dataset"]["name"] = "<b>bold</b>"
    run = make_run(tmp_path, dataset=metrics["dataset"], command="ppcmi <script>")
    (run / "history.json").write_text(json.dumps({"<i>": make_history()["codec"]}), encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "<b>bold</b>" not in text
    assert "<script>" not in text
    assert "<i>" not in text


def test_a_run_with_little_still_gives_a_page(tmp_path: Path) -> None:
    metrics = {"schema": 1, "dataset": {"name": "x"}, "methods": {"ppcmi": {"dice": {"mean": 0.5}}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "kept no examples" in text
    assert "kept no history" in text
    assert "0.500" in text


def test_worst_and_best_examples_of_every_site_are_shown() -> None:
    arrays = make_examples()
    sites = [str(site) for site in arrays["site"]]
    methods = {"ppcmi": arrays["ppcmi"], "unet_centralised": arrays["unet_centralised"]}
    examples = Examples(arrays["images"], arrays["truth"], methods, sites)
    rows = figures.example_rows(examples, 3, [("ppcmi", "ours"), ("unet_centralised", "pooled")])
    assert set(rows) == set(SITES)
    for site, shown in rows.items():
        dice = [
            figures.image_dice(arrays["ppcmi"][i], arrays["truth"][i], 3)
            for i, s in enumerate(sites)
            if s == site
        ]
        assert [row.rank for row in shown] == ["worst", "between", "between", "best"]
        ours = [row.panels[2].dice for row in shown]
        assert ours == sorted(ours, key=lambda value: value or 0.0)
        assert ours[0] == pytest.approx(min(dice))
        assert ours[-1] == pytest.approx(max(dice))
        assert [panel.title for panel in shown[0].panels] == ["image", "truth", "ours", "pooled"]


def test_one_example_of_a_site_is_enough() -> None:
    arrays = make_examples(per_site=1)
    examples = Examples(arrays["images"], arrays["truth"], {"ppcmi": arrays["ppcmi"]}, list(SITES))
    rows = figures.example_rows(examples, 3, [("ppcmi", "ours"), ("unet_centralised", "pooled")])
    assert [len(shown) for shown in rows.values()] == [1, 1, 1]
    assert len(rows["north"][0].panels) == 3


def test_contour_of_a_square_in_the_corner_is_closed_and_in_pixel_coordinates() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[0:2, 0:3] = True
    path = figures.contour_path(mask)
    numbers = [float(value) for value in re.findall(r"-?\d+\.\d+", path)]
    assert path.startswith("M")
    assert path.endswith("Z")
    assert min(numbers[0::2]) == 0.0
    assert max(numbers[0::2]) == 3.0
    assert min(numbers[1::2]) == 0.0
    assert max(numbers[1::2]) == 2.0
    assert figures.contour_path(np.zeros((4, 4), dtype=bool)) == ""


def test_zoom_holds_what_is_marked_inside_the_picture() -> None:
    marked = np.zeros((64, 128), dtype=bool)
    assert figures.zoom_box(marked) == (0, 0, 128, 64)
    marked[2:6, 120:128] = True
    x, y, width, height = figures.zoom_box(marked)
    assert width == 2 * height < 128
    assert 0 <= x <= 120 < 128 <= x + width <= 128
    assert 0 <= y <= 2 < 6 <= y + height <= 64
    marked[:] = True
    assert figures.zoom_box(marked) == (0, 0, 128, 64)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ([[0, 0]], [[0, 0]], 1.0),
        ([[1, 0]], [[0, 0]], 0.0),
        ([[1, 1]], [[1, 0]], 2 / 3),
        ([[1, 1]], [[1, 1]], 1.0),
    ],
)
def test_image_dice(answer: list[list[int]], truth: list[list[int]], expected: float) -> None:
    value = figures.image_dice(np.array(answer, dtype=np.uint8), np.array(truth, dtype=np.uint8), 2)
    assert value == pytest.approx(expected)


def test_curves_of_one_kind_share_a_chart_and_null_is_no_point() -> None:
    groups = figures.group_stages(make_history())
    assert list(groups) == ["codec", "mapper", "unet_centralised", "unet_local"]
    assert list(groups["unet_local"]) == ["north", "south"]
    entries: list[dict[str, Any]] = [
        {"step": 1, "loss": 0.5, "val": None},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "loss": -1.0},
    ]
    svg = figures.learning_curve("odd", {"odd": entries})
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert figures.learning_curve("none", {"none": [{"step": 1}]}).startswith("<svg")


def test_best_is_marked_in_the_right_direction() -> None:
    dice, hd95, _ = score_tables(make_metrics())
    names = [label for label, _ in dice.rows]
    pooled = names.index("U-Net, all data pooled")
    assert (pooled, 0) in dice.best
    assert (pooled, 0) in hd95.best
    # All methods have the same HD95 at every site: none is best there.
    assert hd95.best == {(pooled, 0)}
    assert "class 2" in dice.columns
    assert "class 1" not in score_tables(make_metrics(classes=2))[0].columns


def test_headline_numbers() -> None:
    cards = {card.label: card.value for card in headline(make_metrics())}
    assert cards["against each site alone"] == "+9.0 points"
    assert cards["against the pooled U-Net"] == "−2.0 points"
    assert cards["payload an image"] == "14.8 KB"
    assert cards["whole run"] == "21 min 00 s"


def test_method_order_keeps_ours_first() -> None:
    assert method_order(["zebra", "unet_local", "ppcmi"]) == ["ppcmi", "unet_local", "zebra"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "250 ms"),
        (12.04, "12.0 s"),
        (89.6, "1 min 30 s"),
        (3725, "1 h 02 min"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (12544, "12.5 KB"), (41e6, "41.0 MB"), (2.5e9, "2.50 GB")]
)
def test_sizes(count: float, text: str) -> None:
    assert words.size(count) == text


def test_every_trust_mode_says_what_the_server_holds() -> None:
    texts = {words.keyed_transform(mode) for mode in ("server", "federation", "sites")}
    assert len(texts) == 3


def test_missing_folder_and_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        write_report(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no metrics\.json.*--resume"):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99}', '{"schema": 1}'])
def test_damaged_metrics(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.json: expected"):
        load_metrics(tmp_path / "metrics.json")


def test_damaged_examples(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    assert load_examples(path) is None
    path.write_bytes(b"no archive")
    with pytest.raises(RunError, match="expected a NumPy archive"):
        load_examples(path)
    np.savez(path, images=np.zeros((1, 4, 4)), truth=np.zeros((1, 4, 4)))
    with pytest.raises(RunError, match="missing site"):
        load_examples(path)
    np.savez(path, images=np.zeros((1, 4, 4)), truth=np.zeros((1, 4, 5)), site=np.array(["a"]))
    with pytest.raises(RunError, match="expected images and truth"):
        load_examples(path)
    # A pickled object in the archive is never opened.
    np.savez(path, images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RunError, match="without pickled objects"):
        load_examples(path)
