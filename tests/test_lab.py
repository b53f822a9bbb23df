"""The scripts of experiments/lab/ on a tiny run, and the page that is made of what they keep."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import coarse_supervision
import finished
import pytest
import refinement
import torch
from tiny_runs import tiny_config

from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.run import federate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_phantom("cardiac", folder / "data", size=32, subjects=8)
    out = folder / "name" / "ours" / "seed-0"
    federate(
        tiny_config(folder / "data", {"tuning.rounds": 1, "tuning.local_steps": 1, "calibrate": False}), out
    )
    return out


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(finished, "RESULTS", tmp_path)
    return tmp_path


def test_a_finished_run_answers_as_it_did_when_it_was_finished(run: Path) -> None:
    found = finished.FinishedRun.load(run)
    answers = {
        p.site.name: refinement.ask(found, p, found.sites[p.site.name]["test"].images)
        for p in found.federation.participants
    }
    entry = found.compared({"a": answers, "b": answers}, "a")
    before = json.loads((run / "metrics.json").read_text())["methods"]["ppcmi"]["dice"]["mean"]
    assert entry["a"] == {"dice": before} and entry["b"]["dice"] == before
    assert entry["b"]["points"] == 0.0


def test_no_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected the folder of a finished run"):
        finished.FinishedRun.load(tmp_path)


def test_a_refiner_begins_as_the_identity() -> None:
    answers = torch.rand(2, 3, 16, 16).softmax(1)
    torch.testing.assert_close(refinement.Refiner(3)(torch.rand(2, 1, 16, 16), answers), answers)


def test_averaged_refiners_are_one_and_others_are_not(run: Path) -> None:
    found = finished.FinishedRun.load(run)
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
        path = question.main([str(run), "--steps", "2"])
        assert path == results / f"{question.__name__}.json"
        (entry,) = json.loads(path.read_text()).values()
        assert list(entry["methods"]) == methods and entry["steps"] == 2
        base, *others = entry["methods"].values()
        assert "points" not in base
        for other in others:
            assert other["points"] == pytest.approx(100 * (other["dice"] - base["dice"]))


def test_a_second_run_stands_beside_the_first(run: Path, results: Path) -> None:
    (results / "refinement.json").write_text(json.dumps({"another/ours, seed 0": {"size": 64}}))
    refinement.main([str(run), "--steps", "1"])
    assert list(json.loads((results / "refinement.json").read_text())) == [
        "another/ours, seed 0",
        "name/ours, seed 0",
    ]


def load_make() -> Any:
    spec = importlib.util.spec_from_file_location("make_lab", ROOT / "docs" / "make_lab.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


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
