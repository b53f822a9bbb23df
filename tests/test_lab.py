"""The scripts of experiments/lab/ on a tiny run, and the page that is made of what they keep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import coarse_supervision
import make_lab as make
import mask_weights
import pytest
import refinement
import restored
import sizes
import thresholds
import torch
import views
from tiny_runs import tiny_config

from ppcmi_fast.codec import LinearMaskCodec
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.calibration import THRESHOLDS
from ppcmi_fast.federation.evaluate import at_threshold, class_maps
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.views import VIEWS
from ppcmi_fast.report.runfolder import method_title


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def ask(question: ModuleType, run: Path, steps: int = 1) -> int:
    return restored.command(question.measure, question.__name__, "", 1, [str(run), "--steps", str(steps)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_phantom("cardiac", folder / "data", size=32, subjects=8)
    out = folder / "name" / "ours" / "seed-0"
    federate(
        tiny_config(
            folder / "data",
            {
                "tuning.rounds": 1,
                "tuning.local_steps": 1,
                "calibrate": False,
                "baselines.methods": thresholds.U_NETS,
                "baselines.images": 32,
                "baselines.batch": 4,
                "baselines.rounds": 2,
            },
        ),
        out,
    )
    return out


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(restored, "RESULTS", tmp_path)
    return tmp_path


def test_a_finished_run_answers_as_it_did_when_it_was_finished(run: Path) -> None:
    found = restored.RestoredRun.load(run)
    answers = found.answers("test")
    entry = found.compared({"a": answers, "b": answers}, "a")
    before = json.loads((run / "metrics.json").read_text())["methods"]["ppcmi"]["dice"]["mean"]
    assert entry["a"] == {"dice": before} and entry["b"]["dice"] == before
    assert entry["b"]["points"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "metrics.json").unlink(), "expected the folder of a finished run"),
        (lambda folder: folder.rename(folder.with_name("seed-1")), "expected EXPERIMENT/VARIANT/seed-0"),
        (
            lambda folder: rewrite(folder / "config.toml", 'mask = "linear"', 'mask = "autoencoder"'),
            'codec.mask: expected a run with "linear"',
        ),
        (
            lambda folder: rewrite(folder / "config.toml", "query_views = 1", "query_views = 3"),
            "query_views: expected a run with 1, got 3; take the run of the same networks",
        ),
    ],
    ids=["unfinished", "elsewhere", "autoencoder", "several views"],
)
def test_what_cannot_be_restored_is_named(
    run: Path,
    tmp_path: Path,
    results: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    message: str,
) -> None:
    folder = tmp_path / "name" / "ours" / "seed-0"
    shutil.copytree(run, folder)
    change(folder)
    (found,) = folder.parent.iterdir()
    assert ask(refinement, found) == 2
    assert message in capsys.readouterr().err and not list(results.glob("*.json"))


def test_no_steps_are_refused(run: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(refinement, run, steps=0) == 2
    assert "--steps: expected at least 1, got 0" in capsys.readouterr().err


def test_a_refiner_begins_as_the_identity() -> None:
    answers = torch.rand(2, 3, 16, 16).softmax(1)
    torch.testing.assert_close(refinement.Refiner(3)(torch.rand(2, 1, 16, 16), answers), answers)


def test_averaged_refiners_are_one_and_others_are_not(run: Path) -> None:
    found = restored.RestoredRun.load(run)
    asked = {
        p.site.name: refinement.asked_in_training(found, p, number)
        for number, p in enumerate(found.federation.participants)
    }

    def distance(shared: bool) -> float:
        one, other, *_ = (n.state_dict() for n in refinement.train(found, asked, 2, shared=shared).values())
        return max(float((one[key] - other[key]).abs().max()) for key in one)

    assert distance(True) == 0.0 < distance(False)


def test_the_questions_keep_what_they_find(run: Path, results: Path) -> None:
    for question, methods in (
        (refinement, ["as answered", "each site alone", "averaged"]),
        (coarse_supervision, ["one scale", "every scale"]),
    ):
        assert ask(question, run, steps=2) == 0
        found = json.loads((results / f"{question.__name__}.json").read_text())
        entry = found["name/ours, seed 0"]
        assert list(found) == ["name/ours, seed 0"] and entry["steps"] == 2
        assert list(entry["methods"]) == methods
        base, *others = entry["methods"].values()
        assert "points" not in base
        for other in others:
            assert other["points"] == pytest.approx(100 * (other["dice"] - base["dice"]))
        page = make.page({question.__name__: found})
        assert all(f"| name/ours, seed 0, 32 x 32, 2 steps | {method} |" in page for method in methods)


def test_weights_are_measured_without_training(run: Path, results: Path) -> None:
    assert restored.command(mask_weights.measure, "mask_weights", "", arguments=[str(run)]) == 0
    found = json.loads((results / "mask_weights.json").read_text())
    entry = found["name/ours, seed 0"]
    assert "steps" not in entry and len(entry["methods"]) == 1 + 2 * len(mask_weights.WEIGHTS)
    assert "| name/ours, seed 0, 32 x 32 | 2 bits, 0.7 and 1.75 |" in make.page({"mask_weights": found})
    with pytest.raises(SystemExit):
        restored.command(mask_weights.measure, "mask_weights", "", arguments=[str(run), "--steps", "3"])


def test_thirds_hold_each_image_with_something_in_it_once(run: Path) -> None:
    found = restored.RestoredRun.load(run)
    for part in ("val", "test"):
        thirds = sizes.thirds(found, part)
        assert list(thirds) == list(sizes.THIRDS)
        for site, data in found.sites.items():
            own = sizes.areas(data[part].masks)
            chosen = torch.cat([inside[site] for inside in thirds.values() if site in inside])
            assert chosen.sort().values.tolist() == (own > 0).nonzero()[:, 0].tolist()
        ends = [
            [f(sizes.areas(found.sites[s][part].masks)[n]) for s, n in inside.items()]
            for inside in thirds.values()
            for f in (torch.amin, torch.amax)
        ]
        smallest, largest = [min(e) for e in ends[::2]], [max(e) for e in ends[1::2]]
        assert all(high < low for high, low in zip(largest, smallest[1:], strict=False))


@pytest.mark.parametrize(("shown", "got"), [(0, "none with anything"), (1, "none in the middle third")])
def test_thirds_need_images_of_three_sizes(run: Path, shown: int, got: str) -> None:
    found = restored.RestoredRun.load(run)
    for number, data in enumerate(found.sites.values()):
        data["val"].masks[:] = 0
        if number < shown:
            data["val"].masks[0, :3, :3] = 1
    with pytest.raises(RunError, match=f"images of three sizes at least in its part val, got {got}"):
        sizes.thirds(found, "val")


def test_sizes_compare_methods_on_the_same_images(run: Path, results: Path) -> None:
    assert restored.command(sizes.measure, "sizes", "", arguments=[str(run)]) == 0
    found = json.loads((results / "sizes.json").read_text())
    methods = found["name/ours, seed 0"]["methods"]
    titles = [
        "PPCMI (ours)",
        f"PPCMI (ours), {len(VIEWS)} views",
        *(method_title(name, {}) for name in thresholds.U_NETS),
    ]
    assert [name.split(" pixels), ")[1] for name in methods] == titles * 3
    for first in range(0, len(methods), len(titles)):
        base, *others = list(methods.values())[first : first + len(titles)]
        for other in others:
            assert other["points"] == pytest.approx(100 * (other["dice"] - base["dice"]))
    assert all(0 <= entry["validation"] <= 1 for entry in methods.values())
    assert "the smallest third (" in make.page({"sizes": found})


def test_one_view_is_what_a_run_answers_and_more_are_compared_with_it(run: Path, results: Path) -> None:
    assert restored.command(views.measure, "views", "", arguments=[str(run)]) == 0
    found = json.loads((results / "views.json").read_text())
    entries = found["name/ours, seed 0"]["methods"]
    before = json.loads((run / "metrics.json").read_text())["methods"]
    assert views.COUNTS[:2] == (1, 2) and views.COUNTS[-1] <= len(VIEWS) < 2 * views.COUNTS[-1]
    methods, each = ("ppcmi", *thresholds.U_NETS), len(views.COUNTS)
    assert len(entries) == each * len(methods)
    for number, name in enumerate(methods):
        one, *several = list(entries.values())[number * each : (number + 1) * each]
        assert one["dice"] == before[name]["dice"]["mean"] and "points" not in one
        for other in several:
            assert other["points"] == pytest.approx(100 * (other["dice"] - one["dice"]))
    # Other answers, not the same ones again.
    assert len({entry["dice"] for entry in entries.values()}) > len(methods)
    assert "| name/ours, seed 0, 32 x 32 | U-Net, all data pooled, 2 views |" in make.page({"views": found})


def test_answers_are_rounded_as_their_codes_are() -> None:
    codec = LinearMaskCodec(3, 8, 16)
    masks = torch.zeros(2, 32, 32, dtype=torch.int64)
    masks[0, 4:19, 6:26], masks[1, 9:30, 3:14] = 1, 2
    scores = codec.decode(codec.encode(masks))
    for weights in ((1.0, 1.0), (0.7, 1.75)):
        torch.testing.assert_close(
            mask_weights.rounded(scores, codec, weights, 8, "a"), scores, atol=0.05, rtol=0
        )
    coarse = [(mask_weights.rounded(scores, codec, (0.7, 1.75), 2, site) - scores).abs() for site in "ab"]
    assert all(error.mean() > 0.02 for error in coarse) and not torch.equal(*coarse)


def test_a_second_run_stands_beside_the_first(run: Path, results: Path) -> None:
    (results / "refinement.json").write_text(json.dumps({"another/ours, seed 0": {"size": 64}}))
    assert ask(refinement, run, steps=1) == 0
    kept = json.loads((results / "refinement.json").read_text())
    assert list(kept) == ["another/ours, seed 0", "name/ours, seed 0"]


def test_the_page_is_what_the_figures_say() -> None:
    assert make.PAGE.read_text() == make.page(make.kept())


def test_a_row_says_by_how_much() -> None:
    entry = {
        "dice": 0.85,
        "validation": 0.86,
        "seconds": 90.0,
        "points": -0.04,
        "ci95": [-0.5, 0.4],
        "p": 0.0001,
    }
    assert make.row("r", "m", entry) == "| r | m | 0.860 | 0.850 | +0.0 | -0.5 .. 0.4 | < 0.001 | 1.5 |"


@pytest.mark.parametrize("chosen", ["", "=0.002"])
def test_networks_answer_as_they_did_when_their_run_was_finished(
    run: Path, tmp_path: Path, results: Path, chosen: str
) -> None:
    folder = tmp_path / "name" / "ours" / "seed-0"
    shutil.copytree(run, folder)
    for file in (folder / "baselines").iterdir():
        file.rename(file.with_name(f"{file.stem}{chosen}{file.suffix}"))
    assert restored.command(thresholds.measure, "thresholds", "", arguments=[str(folder)]) == 0
    found = json.loads((results / "thresholds.json").read_text())
    entries = found["name/ours, seed 0"]["methods"]
    before = json.loads((run / "metrics.json").read_text())["methods"]
    methods = ("ppcmi", *thresholds.U_NETS)
    assert len(entries) == 2 * len(methods)
    for name, (plain, moved) in zip(methods, zip(*[iter(entries.values())] * 2, strict=True), strict=True):
        assert plain["dice"] == before[name]["dice"]["mean"] and "points" not in plain
        assert moved["points"] == pytest.approx(100 * (moved["dice"] - plain["dice"]))
    page = make.page({"thresholds": found})
    assert "| name/ours, seed 0, 32 x 32 | U-Net, all data pooled, thresholds over subjects |" in page


def test_weighed_scores_stand_for_the_classes_at_a_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 16, 16, generator=generator).softmax(1)
    likeliest, number = scores[:, 1:].max(1)
    for threshold in THRESHOLDS:
        maps = at_threshold(scores, threshold).argmax(1)
        assert torch.equal(maps, class_maps(scores, threshold))
        assert torch.equal(maps, (number + 1) * (likeliest / (likeliest + scores[:, 0]) > threshold))
