"""Held-out images through the whole system, over the wire; what it takes, and which of them are shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.errors import WireError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.site import Site
from ppcmi_fast.federation.views import in_views, merge_views
from ppcmi_fast.metrics import ImageScores, dice_scores

EXAMPLES_PER_SITE = 4


def image_dice(maps: Tensor, data: Arrays, classes: int) -> Tensor:
    """Of class maps int64 [N, H, W] of the images, over classes: float [N]."""
    return dice_scores(maps, data.masks, classes).mean(1)


def mean_dice(maps: Tensor, data: Arrays, classes: int) -> float:
    """Of class maps int64 [N, H, W] of the images, over images and classes."""
    return float(image_dice(maps, data, classes).mean())


def class_maps(scores: Tensor, threshold: float | None) -> Tensor:
    """The classes that scores stand for.

    Args:
        scores: float [N, classes, H, W], probabilities where there is a threshold.
        threshold: a pixel is of its likeliest class where that has more than this share of what it and the background
            have together; 1/2 and None take the highest score.

    Returns:
        int64 [N, H, W].
    """
    return (scores if threshold is None else at_threshold(scores, threshold)).argmax(1)


def at_threshold(scores: Tensor, threshold: float) -> Tensor:
    """Scores [N, classes, H, W] whose highest is of the class that `scores` stand for at a threshold."""
    odds = torch.ones(scores.shape[1], device=scores.device)
    odds[0] = threshold / (1 - threshold)
    return scores * odds.view(1, -1, 1, 1)


def answers_through_wire(
    site: Site, channel: Channel, images: Tensor, views: int = 1, batch: int = 32
) -> Iterator[Tensor]:
    """Class scores [n, classes, H, W] of the images, some at a time: query, reply, decode.

    Args:
        site: who asks.
        channel: to the trained server.
        images: float32 [N, 1, H, W].
        views: in which every image is asked about, see `views`.
        batch: images a query, views counted, but at least one in all its views.

    Raises:
        WireError: a reply that cannot be read, or of another number of images.
    """
    for chunk in images.split(max(1, batch // views)):
        reply = channel.send(site.query(in_views(chunk, views)))
        assert reply is not None
        scores = site.open_reply(reply)
        if len(scores) != len(chunk) * views:
            raise WireError(
                f"reply: expected an answer to each of {len(chunk) * views} images, got {len(scores)}; ask again"
            )
        yield merge_views(scores, views)


def predict_through_wire(site: Site, channel: Channel, images: Tensor, views: int = 1) -> Tensor:
    """Class maps int64 [N, H, W] at the site's threshold, of answers as `answers_through_wire` gives them."""
    answers = answers_through_wire(site, channel, images, views)
    return torch.cat([class_maps(scores, site.threshold) for scores in answers])


def measure_latency(
    site: Site, channel: Channel, images: Tensor, views: int = 1, repeats: int = 30
) -> dict[str, float]:
    """Median milliseconds of one image: encode its views and protect, map at the server, recover, decode and merge."""
    times: dict[str, list[float]] = {"encode": [], "map": [], "decode": [], "total": []}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        times[name].append((time.perf_counter() - start) * 1e3)
        return result

    def ask(image: Tensor) -> bytes:
        return site.query(in_views(image, views))

    def answer(reply: bytes) -> Tensor:
        return merge_views(site.open_reply(reply), views)

    for index in range(repeats + 3):
        image = images[index % len(images)].unsqueeze(0)
        query = timed("encode", partial(ask, image))
        reply = timed("map", partial(channel.send, query))
        timed("decode", partial(answer, reply))
        times["total"].append(times["encode"][-1] + times["map"][-1] + times["decode"][-1])
    return {name: statistics.median(values[3:]) for name, values in times.items()}


def pick_examples(
    tests: dict[str, Arrays], predictions: dict[str, dict[str, Tensor]], scores: dict[str, list[ImageScores]]
) -> dict[str, Any]:
    """A site's worst, lower-quartile, median and best image by our Dice, with every method's map of them."""
    chosen: dict[str, list[int]] = {}
    for name, site_scores in scores.items():
        order = sorted(range(len(site_scores)), key=lambda i: sum(site_scores[i].dice))
        last = len(order) - 1
        picks = [order[round(last * q)] for q in np.linspace(0, 1, EXAMPLES_PER_SITE) ** 1.5]
        chosen[name] = list(dict.fromkeys(picks))
    pairs = [(name, i) for name, picks in chosen.items() for i in picks]
    arrays: dict[str, Any] = {
        "images": np.stack([tests[n].images[i, 0].numpy() for n, i in pairs]),
        "truth": np.stack([tests[n].masks[i].numpy().astype(np.uint8) for n, i in pairs]),
        "site": np.array([n for n, _ in pairs]),
        "dice": np.array(
            [sum(scores[n][i].dice) / len(scores[n][i].dice) for n, i in pairs], dtype=np.float32
        ),
    }
    for method, maps in predictions.items():
        arrays[method] = np.stack([maps[n][i].numpy().astype(np.uint8) for n, i in pairs])
    return arrays
