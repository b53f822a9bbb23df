"""How sites divide a round's work: alike, or in proportion to their images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import interrupting, same_keys, tiny_config

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.federation import codecs, tuning
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import read_json
from ppcmi_fast.training import apportion, optimizer_step

TUNED = {
    "codec.rounds": 2,
    "codec.local_steps": 4,
    "tuning.rounds": 2,
    "tuning.local_steps": 1,
    "tuning.batch": 4,
}


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (36, [28, 128, 13], [6, 27, 3]),
        (12, [5, 5, 5], [4, 4, 4]),
        (4, [1, 1, 1], [2, 1, 1]),
        (3, [1000, 1, 1], [1, 1, 1]),
        (10, [7], [10]),
    ],
)
def test_shares_are_in_proportion_and_leave_no_site_out(
    total: int, weights: list[int], shares: list[int]
) -> None:
    assert apportion(total, weights) == shares


def test_shares_of_any_sites_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        weights = torch.randint(
            1, 300, (int(torch.randint(1, 9, (), generator=generator)),), generator=generator
        )
        total = len(weights) + int(torch.randint(0, 90, (), generator=generator))
        shares = apportion(total, weights.tolist())
        assert sum(shares) == total and min(shares) >= 1
        # No step that one site has would be nearer to the proportions at another.
        for weight, share in zip(weights.tolist(), shares, strict=True):
            others = [w / (s + 0.5) for w, s in zip(weights.tolist(), shares, strict=True)]
            assert share == 1 or weight / (share - 0.5) >= max(others)


def test_fewer_steps_than_sites_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 3, one for each weight, got 2"):
        apportion(2, [1, 1, 1])


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites, one with three times the subjects of the others."""
    out = tmp_path_factory.mktemp("uneven") / "p"
    write_phantom("cardiac", out, sites=5, subjects=3, slices=2, size=32)
    manifest = out / "manifest.csv"
    text = manifest.read_text()
    # Sites 2 to 4 become one.
    for number in (3, 4):
        text = text.replace(f"site-{number},", "site-2,")
    manifest.write_text(text)
    return out


def images_seen(
    monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, **settings: Any
) -> tuple[Counter[int], Counter[int]]:
    """Images drawn for the codec and for tuning, by how many a site has."""
    seen: dict[str, Counter[int]] = {"codec": Counter(), "tuning": Counter()}
    for name, module in (("codec", codecs), ("tuning", tuning)):
        drawn = module.augmented_batch

        def counted(
            data: Arrays, batch: int, generator: torch.Generator, name: str = name, drawn: Any = drawn
        ) -> Any:
            seen[name][len(data.images)] += batch
            return drawn(data, batch, generator)

        monkeypatch.setattr(module, "augmented_batch", counted)
    federate(tiny_config(data, TUNED | settings), out)
    return seen["codec"], seen["tuning"]


def test_with_equal_work_every_site_sees_as_many_images(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, tuned = images_seen(monkeypatch, uneven, tmp_path / "run", **{"codec.work": "equal"})
    (few, many) = sorted(codec)
    assert many > few and codec[few] == 2 * codec[many] == 2 * 2 * 4 * 8
    assert tuned[few] == 2 * tuned[many] == 2 * 2 * 4


def test_work_in_proportion_to_images_sees_each_as_often_and_as_many_in_all(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, tuned = images_seen(monkeypatch, uneven, tmp_path / "run")
    (few, many) = sorted(codec)
    steps = apportion(12, [few, few, many])
    assert codec == {few: 2 * 8 * (steps[0] + steps[1]), many: 2 * 8 * steps[2]}
    assert tuned == {few: 2 * (steps[0] + steps[1]), many: 2 * steps[2]}
    assert codec.total() == 3 * 2 * 4 * 8 and tuned.total() == 3 * 2 * 4
    assert codec[many] > codec[few] / 2 * 1.5


def test_codecs_that_sites_do_not_share_are_trained_alike(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"codec.sharing": "local", "trust": "sites"}
    codec, tuned = images_seen(monkeypatch, uneven, tmp_path / "run", **own)
    (few, many) = sorted(codec)
    assert codec[few] == 2 * codec[many] and tuned[few] == 2 * tuned[many]


def test_an_interrupted_run_goes_on_with_the_same_work(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(uneven, TUNED | {"tuning.rounds": 0})
    monkeypatch.setattr("ppcmi_fast.training.CHECKPOINT_SECONDS", 0.0)
    same_keys(monkeypatch)
    federate(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ppcmi_fast.federation.codecs.optimizer_step", interrupting(optimizer_step, at=20))
        federate(config, tmp_path / "parts")
    federate(config, tmp_path / "parts", resume=True)
    whole, parts = (
        load_file(tmp_path / name / "sites" / "site-0" / "codec.safetensors") for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert read_json(tmp_path / "parts" / "stages.json")["codec"]["steps"] == 2
