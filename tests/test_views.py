"""Views of an image: made at the site, put back, averaged where they see, and asked about in one query."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fabricated_run import make_metrics
from federation_parties import Spy, connect, data, make_site
from tiny_runs import tiny_config
from torch import Tensor

from ppcmi_fast import wire
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import ConfigError, WireError
from ppcmi_fast.federation.build import Federation
from ppcmi_fast.federation.codecs import Participant
from ppcmi_fast.federation.evaluate import answers_through_wire, class_maps
from ppcmi_fast.federation.predict import Segmenter
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.site import Site
from ppcmi_fast.federation.views import VIEWS, View, in_views, merge_views
from ppcmi_fast.report.html import headline

SIDE = 64


def disc(x: float, y: float, radius: float) -> Tensor:
    """[1, 1, SIDE, SIDE], smooth at its edge; places in pixels from the middle, right and down."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    away = ((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2).sqrt()
    return torch.sigmoid((radius - away) * 2).view(1, 1, SIDE, SIDE)


def middle_of(image: Tensor) -> tuple[float, float]:
    """Centre of what is bright, right and down of the middle."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    image = image[0, 0] / image.sum()
    return float((image.sum(0) * axis).sum()), float((image.sum(1) * axis).sum())


def counting(query: Callable[[Site, Tensor], bytes], asked: list[int]) -> Callable[[Site, Tensor], bytes]:
    """The same, with how many images were in each."""

    def query_and_count(site: Site, images: Tensor) -> bytes:
        asked.append(len(images))
        return query(site, images)

    return query_and_count


def test_the_first_view_is_the_image_as_it_is() -> None:
    images = torch.rand(3, 1, SIDE, SIDE)
    assert VIEWS[0] == View() and torch.equal(in_views(images, 1), images)
    for count in range(1, len(VIEWS) + 1):
        views = in_views(images, count)
        assert views.shape == (count * 3, 1, SIDE, SIDE) and torch.equal(views[:3], images)
        assert all(not torch.equal(one, two) for one, two in zip(views[3:], views[:-3], strict=True))
    assert torch.equal(merge_views(images, 1), images)


def test_a_view_is_larger_and_turned_about_the_middle() -> None:
    at_the_right = disc(15, 0, 5)
    larger = View(0, 1.3).of(at_the_right, "border")
    assert larger.sum() / at_the_right.sum() == pytest.approx(1.3**2, rel=0.02)
    assert middle_of(larger) == pytest.approx((1.3 * 15, 0), abs=0.1)
    x, y = middle_of(View(30, 1).of(at_the_right, "border"))
    assert (x**2 + y**2) ** 0.5 == pytest.approx(15, abs=0.1) and abs(y) == pytest.approx(7.5, abs=0.1)
    opposite = middle_of(View(-30, 1).of(at_the_right, "border"))
    assert opposite == pytest.approx((x, -y), abs=0.1)


def test_what_is_answered_to_views_is_put_back_where_it_was() -> None:
    image = torch.cat([disc(9, -6, 7), disc(-12, 3, 4)])
    for count in range(1, len(VIEWS) + 1):
        assert (merge_views(in_views(image, count), count) - image).abs().max() < 0.06
    # Without being put back it would be elsewhere.
    assert (in_views(image, 2)[2:] - image).abs().max() > 0.5


def test_a_position_has_the_mean_of_the_views_that_see_it() -> None:
    count = len(VIEWS)
    scores = torch.cat([torch.full((2, 3, SIDE, SIDE), float(number)) for number in range(count)])
    merged = merge_views(scores, count)
    assert merged.shape == (2, 3, SIDE, SIDE)
    assert merged[:, :, SIDE // 2, SIDE // 2] == pytest.approx((count - 1) / 2)
    # What is larger loses its edges: only the image as it is tells of the corners.
    assert merged[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].abs().max() < 1e-6


def test_views_of_an_image_are_one_query() -> None:
    site, images = make_site("a", bits_up=32, bits_down=32), data()[0]
    channel = connect([site])
    count, code = len(VIEWS), torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(2))
    channel.server.mapper = spy = Spy({8: code.repeat(count, 1, 1, 1)})  # type: ignore[assignment]
    alone = [site.query(view[None]) for view in in_views(images[:1], count)]
    assert channel.recorded is not None
    channel.recorded.clear()
    # Room for one image of so many views in a message.
    answers = list(answers_through_wire(site, channel, images, count, batch=count + 1))
    assert [len(answer) for answer in answers] == [1] * len(images) and len(channel.recorded) == len(images)
    sent, one_by_one = (
        torch.cat([wire.decode(query, "fed", 0).tensors["image/4"] for query in queries])
        for queries in (channel.recorded[:1], alone)
    )
    assert torch.equal(sent, one_by_one) and spy.given[0][4].shape[0] == count
    # Every view of every image was answered alike.
    channel.server.mapper = Spy({8: code})  # type: ignore[assignment]
    (plain,) = answers_through_wire(site, channel, images[:1])
    for answer in answers:
        torch.testing.assert_close(answer, merge_views(plain.repeat(count, 1, 1, 1), count))
    assert not torch.allclose(answers[0], plain)
    with pytest.raises(WireError, match=f"an answer to each of {count} images, got 1; ask again"):
        list(answers_through_wire(site, channel, images[:1], count))


def test_a_run_asks_in_as_many_views_as_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantom("cardiac", tmp_path / "data", subjects=4, sites=3, slices=2, size=32)
    asked: list[int] = []
    monkeypatch.setattr(Site, "query", counting(Site.query, asked))
    config = tiny_config(
        tmp_path / "data", {"query_views": 3, "bits_up": 32, "bits_down": 32, "late_sites": ["site-2"]}
    )
    run = tmp_path / "run"
    metrics = federate(config, run)
    # Validation images for the threshold, test images, those of latency and payload, and a site that came late.
    assert len(asked) > 30 and all(count % 3 == 0 for count in asked)
    assert metrics["config"]["query_views"] == 3
    three, one = Segmenter(run, "site-1"), Segmenter(run, "site-1", views=1)
    image = disc(3, -2, 10)[0, :, ::2, ::2]
    alone = torch.cat(list(answers_through_wire(three._site, three._channel, in_views(image[None], 3))))
    merged = merge_views(alone, 3)
    # Untrained, it may find nothing at one half.
    three._site.threshold = one._site.threshold = float(merged[:, 1].median())
    maps = three.class_map(image, (32, 32))
    assert asked[-1] == 3
    assert torch.from_numpy(maps).equal(class_maps(merged, three._site.threshold)[0].to(torch.uint8))
    assert (one.class_map(image, (32, 32)) != maps).any() and asked[-1] == 1
    for views in (0, len(VIEWS) + 1):
        with pytest.raises(ConfigError, match=f"views: expected 1 to {len(VIEWS)}, got {views}"):
            Segmenter(run, "site-1", views)


@pytest.mark.parametrize("views", [0, len(VIEWS) + 1, 1.5])
def test_other_numbers_of_views_are_refused(views: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="query_views: Input should be"):
        tiny_config(tmp_path, {"query_views": views})


def test_a_query_costs_as_many_images_as_it_has_views() -> None:
    site, images = make_site("a"), data()[0]
    channel = connect([site])
    federation = Federation([Participant(site, *[None] * 3)], channel.server, channel, None)  # type: ignore[arg-type]
    channel.server.mapper = Spy({8: torch.zeros(1, 16, 4, 4)})  # type: ignore[assignment]
    one = federation.payload_per_image(images[:1])
    channel.server.mapper = Spy({8: torch.zeros(3, 16, 4, 4)})  # type: ignore[assignment]
    three = federation.payload_per_image(images[:1], 3)
    for way, values in (("up", 8 * 8 * 8 + 16 * 4 * 4), ("down", 16 * 4 * 4)):
        # The head of a message does not grow with it, but for digits of its lengths.
        assert three[way] - one[way] == pytest.approx(2 * values, abs=16)


def test_the_report_says_how_many_views_a_payload_is_of() -> None:
    metrics = make_metrics()
    for views, said in ((1, "4 down"), (3, "4 down, 3 views")):
        metrics["config"]["query_views"] = views
        (note,) = [card.note for card in headline(metrics) if card.label == "payload an image"]
        assert note.endswith(said)
