"""A site that joins when all is trained: what it needs, what it gets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tuning import settings, weights

from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import ConfigError, DataError
from ppcmi_fast.federation.predict import segment_image
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import read_json


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("late") / "p"
    return write_phantom("cardiac", out, sites=3, subjects=4, slices=2, size=32)


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_late_site_is_scored_without_any_training(phantoms: Path, tmp_path: Path, rounds: int) -> None:
    config = settings(
        phantoms, 'late_sites=["site-1"]', f"tuning.rounds={rounds}", "tuning.learning_rate=0.01"
    )
    metrics = federate(config, tmp_path / "run")
    assert set(metrics["dataset"]["sites"]) == {"site-0", "site-2"}
    assert set(metrics["methods"]["ppcmi"]["dice"]["site"]) == {"site-0", "site-2"}
    late = metrics["late_sites"]["dice"]["site"]
    assert set(late) == {"site-1"} and 0 <= late["site-1"] <= 1
    assert read_json(tmp_path / "run" / "metrics.json")["late_sites"]["dice"]["site"] == late
    assert bool(weights(tmp_path / "run")) == (rounds > 0)
    # The stages know nothing of it: none was trained with its images.
    assert read_json(tmp_path / "run" / "stages.json")["codec"]["steps"] == 2
    image = next((phantoms / "images").glob("cardiac-1-*"))
    pixels = segment_image(tmp_path / "run", "site-1", image, tmp_path / "mask.png")
    assert sum(pixels.values()) == 32 * 32
    # Resuming a finished run lets it join again, with the same result.
    again = federate(config, tmp_path / "run", resume=True)
    assert again["late_sites"]["dice"]["site"] == late


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (('late_sites=["nowhere"]',), DataError, "expected sites of the data .* got 'nowhere'"),
        (('late_sites=["site-0","site-1"]',), DataError, "expected at least 2 other sites"),
        (
            ('late_sites=["site-0"]', "trust=sites", "codec.sharing=local"),
            ConfigError,
            "adapters and local codecs need training",
        ),
    ],
)
def test_sites_that_cannot_join_are_named(
    phantoms: Path, tmp_path: Path, more: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        federate(settings(phantoms, *more), tmp_path / "run")
    assert not (tmp_path / "run").exists()
