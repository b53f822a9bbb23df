"""report.html: what it shows, that it asks nobody for anything, what it says about a damaged run folder."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_run import SITES, add_measures, make_examples, make_history, make_metrics, make_run

from ppcmi_fast.baselines.architectures import ARCHITECTURES
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.sections import BaselineConfig
from ppcmi_fast.report import words

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from ppcmi_fast.report import figures, write_report
from ppcmi_fast.report.html import effort_table, headline
from ppcmi_fast.report.runfolder import (
    NETWORK_TITLES,
    Examples,
    load_examples,
    load_metrics,
    method_order,
    method_title,
)
from ppcmi_fast.report.scores import (
    FORMER_POLICY,
    class_tables,
    comparison_rows,
    other_measures,
    score_notes,
    score_tables,
    volume_table,
)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
KEPT_RUNS = [path for path in sorted(RESULTS.glob("*.json")) if path.stem != "import-time"]


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


def measured(**options: Any) -> dict[str, Any]:
    metrics = make_metrics(**options)
    add_measures(metrics)
    return metrics


def visible(page: str) -> str:
    """The words of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.split("<main>")[1])).split())


def test_page_with_every_measure(tmp_path: Path) -> None:
    text = visible(write_report(make_run(tmp_path, **measured())).read_text(encoding="utf-8"))
    for part in (
        "0.803 (0.783 to 0.818)",
        "in brackets the 95 % interval",
        "NSD at 2 mm",
        "HD95, pooled (mm)",
        "Whole volumes",
        "9 volumes",
        "north, class 2",
        "U-Net, each site alone Dice +0.090 (0.040 to 0.140) < 0.001 9 ours is better",
        "both masks empty: 1; one mask empty: 0 and the diagonal",
        "Of 30 test images, the truth lacks class 1 in 3, class 2 in 3.",
        "Of 9 test volumes, the truth lacks class 1 in 1",
        "4 slices inside the volumes were left out",
        "drawn again within each site, 1,000 times",
    ):
        assert part in text, part
    assert "Frames were grouped by image similarity" not in text


def test_page_says_when_frames_were_grouped(tmp_path: Path) -> None:
    dataset = make_metrics()["dataset"] | {"grouped_by_similarity": True}
    page = write_report(make_run(tmp_path, dataset=dataset)).read_text(encoding="utf-8")
    assert "Frames were grouped by image similarity, because the data names no subjects" in page


@pytest.mark.parametrize("path", KEPT_RUNS, ids=lambda path: path.stem)
def test_figures_that_are_kept_still_make_a_page(path: Path, tmp_path: Path) -> None:
    metrics = json.loads(path.read_text(encoding="utf-8"))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert f"{metrics['methods']['ppcmi']['dice']['mean']:.3f}" in page


def test_a_run_from_before_the_measures_has_none_of_them() -> None:
    metrics = make_metrics()
    assert other_measures(metrics) == volume_table(metrics) == class_tables(metrics) == []
    assert comparison_rows(metrics) == []
    assert score_notes(metrics)[-1] == FORMER_POLICY


def test_truths_that_show_every_class_are_said_to() -> None:
    metrics = measured()
    metrics["measures"]["empty_truths"] = {"1": 0, "2": 0}
    assert "In all 30 test images the truth shows every class." in score_notes(metrics)


def test_means_carry_their_intervals() -> None:
    dice, hd95, asd = score_tables(measured())
    row = dict(dice.rows)["U-Net, all data pooled"]
    assert row[0] == "0.823 (0.803 to 0.838)"
    assert all("(" not in cell for cell in row[1:])
    assert dict(hd95.rows)["PPCMI (ours)"][0] == "6.10 (5.10 to 7.10)"
    # ASD has no interval: a site with one subject.
    assert all("(" not in cell for _, row in asd.rows for cell in row)
    assert "interval" in dice.note and "interval" not in asd.note


def test_best_of_each_measure_is_marked_in_its_direction() -> None:
    (others,), (volumes,) = other_measures(measured()), volume_table(measured())
    assert others.columns == ["NSD at 2 mm", "HD95, pooled (mm)", "sensitivity"]
    pooled = [label for label, _ in others.rows].index("U-Net, all data pooled")
    assert others.best == {(pooled, column) for column in range(3)}
    # The interval stands below the mean; Dice of volumes has none.
    assert dict(others.rows)["PPCMI (ours)"][1] == "5.60\n5.10 to 7.10"
    assert dict(volumes.rows)["PPCMI (ours)"][0] == "0.833"
    assert volumes.columns == ["Dice", "HD95 (mm)"] and volumes.best == {(pooled, 0), (pooled, 1)}
    assert [table.title for table in class_tables(measured())] == ["Dice, each class at each site"]
    assert class_tables(measured(classes=2)) == []


def test_comparisons_are_put_in_words() -> None:
    found = {(row.other, row.measure): row for row in comparison_rows(measured())}
    alone, pooled = "U-Net, each site alone", "U-Net, all data pooled"
    # A higher Dice is better, a higher distance is worse.
    assert found[alone, "Dice"].meaning == "ours is better"
    assert found[alone, "HD95 (mm)"].meaning == "ours is worse"
    assert found[alone, "HD95 (mm)"].p == "0.030"
    assert found[pooled, "Dice"].meaning == "no difference shown"
    assert found[pooled, "Dice"].difference == "−0.020 (−0.070 to 0.030)"
    assert found[pooled, "HD95 (mm)"].meaning == "most subjects differ one way, the mean over sites does not"
    untested = found["PPCMI, not quantized", "Dice"]
    assert (untested.p, untested.meaning) == ("–", "not tested: 5 subjects; too few")
    assert len(found) == 5


def test_headline_numbers() -> None:
    cards = {card.label: card.value for card in headline(make_metrics())}
    assert cards["against each site alone"] == "+9.0 points"
    assert cards["against the pooled U-Net"] == "−2.0 points"
    assert cards["payload an image"] == "14.8 KB"
    assert cards["whole run"] == "21 min 00 s"


def test_methods_are_named_by_their_network() -> None:
    metrics = make_metrics()
    metrics["config"]["baselines"] = {"architecture": "attention_unet"}
    titles = [title for title, _ in effort_table(metrics).rows]
    assert "Attention U-Net, all data pooled" in titles and "PPCMI (ours)" in titles
    cards = {card.label: card.note for card in headline(metrics)}
    assert cards["against the pooled Attention U-Net"].startswith("that Attention U-Net: ")
    assert method_title("fedavg", {"baselines": {"architecture": "segresnet"}}) == "FedAvg of the SegResNet"
    assert method_title("fedavg", {}) == "FedAvg of the U-Net"
    assert set(NETWORK_TITLES) == {*ARCHITECTURES} - {BaselineConfig().architecture}


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
