"""Thresholds: chosen where the figure is best, kept with the site, used by whoever segments for it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from federation_parties import connect, data, make_site
from tiny_runs import tiny_config
from torch import Tensor, nn

from ppcmi_fast.codec import LinearMaskCodec
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.calibration import (
    RULE,
    RULE_OF_IMAGES,
    THRESHOLDS,
    calibrate,
    choose_threshold,
    load_threshold,
    save_threshold,
)
from ppcmi_fast.federation.evaluate import class_maps, predict_through_wire
from ppcmi_fast.federation.predict import Segmenter
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import RunFolder


def binary(foreground: Tensor) -> Tensor:
    """Scores [1, 2, 1, N] of pixels with these probabilities of foreground."""
    return torch.stack([1 - foreground, foreground]).view(1, 2, 1, -1)


def test_foreground_is_what_passes_the_threshold_as_its_likeliest_class() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.3], [0.7, 0.25, 0.05], [0.1, 0.9, 0.0]]).T.reshape(1, 3, 1, 3)
    # Against the background alone: 0.3 of 0.8, 0.25 of 0.95, 0.9 of 1.
    assert class_maps(scores, 0.36).flatten().tolist() == [2, 0, 1]
    assert class_maps(scores, 0.25).flatten().tolist() == [2, 1, 1]
    assert class_maps(scores, 0.95).flatten().tolist() == [0, 0, 0]
    assert class_maps(scores, None).flatten().tolist() == [0, 0, 1]


def test_one_half_is_the_likeliest_class_however_many_there_are() -> None:
    generator = torch.Generator().manual_seed(1)
    # Estimates of probabilities may be out of 0 .. 1.
    foreground = torch.rand(4, 3, 16, 16, generator=generator) - 0.2
    scores = torch.cat([1 - foreground.sum(1, keepdim=True), foreground], 1)
    likeliest = class_maps(scores, None)
    assert likeliest.unique().tolist() == [0, 1, 2, 3] and torch.equal(class_maps(scores, 0.5), likeliest)
    two = torch.cat([1 - foreground[:, :1], foreground[:, :1]], 1)
    for threshold in (0.2, 0.425, 0.7):
        assert torch.equal(class_maps(two, threshold), (foreground[:, 0] > threshold).long())


EACH_ITS_OWN = ["a", "b", "c", "d", "e"]


def accuracy(truth: Tensor, maps: Tensor) -> Tensor:
    """Of each image."""
    return (maps == truth).float().mean((1, 2))


def test_a_threshold_is_as_near_to_one_half_as_the_images_allow() -> None:
    # Every image says: between 0.31 and 0.46.
    scores = binary(torch.tensor([0.1, 0.31, 0.46, 0.9])).repeat(5, 1, 1, 1)
    truth = torch.tensor([0, 0, 1, 1]).view(1, 1, 4)
    assert choose_threshold(scores, partial(accuracy, truth), EACH_ITS_OWN) == max(
        t for t in THRESHOLDS if t < 0.46
    )
    # Mirrored: from above.
    assert choose_threshold(scores.flip(1), partial(accuracy, 1 - truth), EACH_ITS_OWN) == min(
        t for t in THRESHOLDS if t >= 0.54
    )
    # One image in five gains from less than 0.3: within what images differ by.
    few = torch.cat(
        [binary(torch.tensor([0.1, 0.1, 0.9, 0.9]))] * 4 + [binary(torch.tensor([0.1, 0.1, 0.3, 0.9]))]
    )
    assert choose_threshold(few, partial(accuracy, truth), EACH_ITS_OWN) == 0.5
    better = partial(accuracy, truth)
    assert better(class_maps(few, 0.25)).mean() > better(class_maps(few, 0.5)).mean()
    # Four in five are more than that.
    many = torch.cat([few[4:]] * 4 + [few[:1]])
    assert choose_threshold(many, partial(accuracy, truth), EACH_ITS_OWN) == max(
        t for t in THRESHOLDS if t < 0.3
    )
    # One image says nothing.
    assert choose_threshold(scores[:1], partial(accuracy, truth), ["a"]) == 0.5


def test_subjects_are_asked_and_not_their_images() -> None:
    # Every image says: between 0.31 and 0.46. So does any number of one subject's, which may all be alike.
    scores = binary(torch.tensor([0.1, 0.31, 0.46, 0.9])).repeat(6, 1, 1, 1)
    better = partial(accuracy, torch.tensor([0, 0, 1, 1]).view(1, 1, 4))
    lower = max(t for t in THRESHOLDS if t < 0.46)
    assert choose_threshold(scores, better, ["a"] * 6) == 0.5
    assert choose_threshold(scores, better, ["a"] * 5 + ["b"]) == lower
    # One of two subjects gains, with most of the images: what it gains is its standard error.
    indifferent = binary(torch.tensor([0.1, 0.1, 0.9, 0.9])).repeat(2, 1, 1, 1)
    mixed = torch.cat([scores, indifferent])
    assert choose_threshold(mixed, better, ["a"] * 6 + ["b"] * 2) == 0.5
    assert choose_threshold(mixed, better, [f"{number}" for number in range(8)]) == lower
    # Whatever order they come in.
    order = [6, 0, 1, 7, 2, 3, 4, 5]
    names = [("a", "b")[number > 5] for number in order]
    assert choose_threshold(mixed[order], better, names) == 0.5


def test_of_two_as_near_the_better_is_taken() -> None:
    # Foreground at 0.475 has three pixels, at 0.5 two, at 0.525 one.
    scores = binary(torch.tensor([0.46, 0.49, 0.51, 0.53])).repeat(4, 1, 1, 1)
    better, worse = torch.tensor([1, 1, 0, 0.0]), torch.tensor([0, 0, 1, 0.5])
    for figures, chosen in (({3: better, 1: worse}, 0.475), ({1: better, 3: worse}, 0.525)):

        def figure(maps: Tensor, figures: dict[int, Tensor] = figures) -> Tensor:
            return figures.get(int(maps[0].sum()), torch.zeros(4))

        assert choose_threshold(scores, figure, EACH_ITS_OWN[:4]) == chosen


class Halfway(nn.Module):
    """A mapper that is sure of nothing: foreground has a probability below one half."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, latents: dict[int, Tensor], site: Tensor) -> dict[int, Tensor]:
        return {8: self.answer[: len(site)]}


def test_a_site_chooses_by_itself_through_the_wire() -> None:
    site = make_site("a", bits_up=32, bits_down=32)
    channel = connect([site])
    images, masks = data()
    masks = torch.zeros_like(masks)
    masks[:, 8:24, 8:16] = 1
    channel.send(site.upload(images, masks, "train"))
    _, targets, _ = channel.server.latent_set("train").batch(torch.arange(len(images)))
    channel.send(site.upload(images, torch.zeros_like(masks), "val"))
    _, none, _ = channel.server.latent_set("val").batch(torch.arange(len(images)))
    # Foreground at probability 0.4, background at 0.
    channel.server.mapper = Halfway(0.4 * targets[8] + 0.6 * none[8])  # type: ignore[assignment]
    assert predict_through_wire(site, channel, images).sum() < 0.01 * masks.sum()
    calibrate(site, channel, images, partial(accuracy, masks), EACH_ITS_OWN[: len(images)])
    assert site.threshold is not None and site.threshold < 0.4
    assert (predict_through_wire(site, channel, images) == masks).float().mean() > 0.98
    before = site.threshold
    calibrate(site, channel, images[:0], partial(accuracy, masks[:0]), [])
    assert site.threshold == before


def test_it_is_kept_with_the_site_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder, site = RunFolder(tmp_path), make_site("a")
    for value in (0.425, None):
        site.threshold = value
        save_threshold(folder, site)
        other = make_site("a")
        load_threshold(folder, other)
        assert other.threshold == value
    for damaged in ("[1]", '{"threshold": 7}', '{"threshold": "x"}', "{}"):
        (tmp_path / "sites" / "a" / "threshold.json").write_text(damaged)
        with pytest.raises(RunError, match=r"threshold\.json: expected a threshold between 0 and 1 or null"):
            load_threshold(folder, site)


def test_one_that_was_chosen_to_be_used_otherwise_is_refused(tmp_path: Path) -> None:
    folder, site = RunFolder(tmp_path), make_site("a")
    path = tmp_path / "sites" / "a" / "threshold.json"
    site.threshold = 0.4
    save_threshold(folder, site)
    kept = json.loads(path.read_text())
    assert kept["rule"] == RULE
    for earlier in ({"threshold": 0.4}, {"threshold": 0.4, "rule": "one standard error"}):
        path.write_text(json.dumps(earlier))
        # Of two classes it says the same.
        site.mask_codec = LinearMaskCodec(2)
        load_threshold(folder, site)
        assert site.threshold == 0.4
        site.mask_codec = LinearMaskCodec(3)
        with pytest.raises(RunError, match="expected a threshold by the rule of this version .*--resume"):
            load_threshold(folder, site)
    # By images it was chosen to be used alike.
    for fine in (kept, {"threshold": 0.4, "rule": RULE_OF_IMAGES}, {"threshold": None}):
        path.write_text(json.dumps(fine))
        load_threshold(folder, site)
        assert site.threshold == fine["threshold"]


def test_a_run_calibrates_and_segments_at_what_it_chose(tmp_path: Path) -> None:
    write_phantom("cardiac", tmp_path / "data", subjects=3, sites=2, slices=1, size=32)
    for calibrated in (True, False):
        config = tiny_config(tmp_path / "data", {"calibrate": calibrated})
        out = tmp_path / f"run-{calibrated}"
        chosen = federate(config, out)["thresholds"]
        assert set(chosen) == {"site-0", "site-1"}
        assert all((value in THRESHOLDS) == calibrated for value in chosen.values())
        found = []
        for value in (0.0001, 0.9999):
            (out / "sites" / "site-1" / "threshold.json").write_text(json.dumps({"threshold": value}))
            found.append(Segmenter(out, "site-1").class_map(torch.rand(1, 32, 32), (32, 32)).mean())
        assert found[0] > found[1]
    (out / "sites" / "site-1" / "threshold.json").unlink()
    with pytest.raises(
        RunError, match="expected the site's threshold, found none; go on with the run by --resume"
    ):
        Segmenter(out, "site-1")
