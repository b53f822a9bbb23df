"""From which score on a pixel is foreground: chosen at each site, on its own validation images.

The scores are class probabilities, and the classes that maximize the expected Dice are not those above 1/2: where a
structure is uncertain, too little of it costs more than too much (Lipton et al., "Optimal Thresholding of Classifiers
to Maximize F1 Measure", 2014).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import Participant
from ppcmi_fast.federation.evaluate import answers_through_wire, class_maps, mean_dice, predict_through_wire
from ppcmi_fast.federation.runfolder import RunFolder, read_json, write_json
from ppcmi_fast.federation.site import Site

FILE = "threshold.json"
THRESHOLDS = tuple(n / 40 for n in range(8, 29))


def best_threshold(scores: Tensor, figure: Callable[[Tensor], float]) -> float:
    """The threshold whose class maps get the best figure; of equal ones the middle.

    Args:
        scores: float [N, classes, H, W].
        figure: of class maps int64 [N, H, W], higher is better.
    """
    figures = [figure(class_maps(scores, threshold)) for threshold in THRESHOLDS]
    best = [t for t, value in zip(THRESHOLDS, figures, strict=True) if value == max(figures)]
    return best[len(best) // 2]


def calibrate(site: Site, channel: Channel, images: Tensor, figure: Callable[[Tensor], float]) -> None:
    """Choose the site's threshold on images that it holds; nothing about them leaves it but the queries.

    Args:
        site: whose `threshold` is set; without images it is left as it is.
        channel: to the trained server.
        images: float32 [N, 1, H, W] that nothing was trained on.
        figure: of class maps of those images, higher is better.
    """
    if len(images):
        scores = torch.cat(list(answers_through_wire(site, channel, images)))
        site.threshold = best_threshold(scores, figure)


def calibrated_maps(
    participant: Participant, channel: Channel, images: Tensor, classes: int, *, choose: bool
) -> Tensor:
    """What a site gets back for its images, its threshold chosen first.

    Args:
        participant: the site, with its validation images.
        channel: to the trained server.
        images: float32 [N, 1, H, W].
        classes: background included.
        choose: whether the threshold is chosen; else the site's is left as it is.

    Returns:
        Class maps int64 [N, H, W].
    """
    site, val = participant.site, participant.val
    if choose:
        calibrate(site, channel, val.images, partial(mean_dice, data=val, classes=classes))
    return predict_through_wire(site, channel, images)


def save_threshold(folder: RunFolder, site: Site) -> None:
    """Keep it with what else is the site's own."""
    write_json(folder.site(site.name) / FILE, {"threshold": site.threshold})


def load_threshold(folder: RunFolder, site: Site) -> None:
    """Take up what `save_threshold` kept.

    Raises:
        RunError: no such file, or another content.
    """
    path = folder.site(site.name) / FILE
    if not path.is_file():
        raise RunError(f"{path}: expected the site's threshold, found none; go on with the run by --resume")
    found = read_json(path)
    value = found.get("threshold", "none") if isinstance(found, dict) else found
    if value is not None and not (isinstance(value, float) and 0 < value < 1):
        raise RunError(
            f"{path}: expected a threshold between 0 and 1 or null, got {value!r}; run with --resume"
        )
    site.threshold = value
