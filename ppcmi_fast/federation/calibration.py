"""How likely a class must be against the background: chosen at each site, on its own validation images.

The scores are class probabilities, and the classes that maximize the expected Dice are not the likeliest: where a
structure is uncertain, too little of it costs more than too much (Lipton et al., "Optimal Thresholding of Classifiers
to Maximize F1 Measure", 2014). A threshold is a class's share against the background alone, so that 1/2 is the
likeliest class however many there are: by the sum of all classes, pixels between two structures would leave the
background though it is likelier than either. Validation subjects are few, so a site leaves 1/2 only as far as they
compel it to: the one-standard-error rule (Breiman et al., "Classification and Regression Trees", 1984), over subjects,
because images of one resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import Participant
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.evaluate import answers_through_wire, class_maps, image_dice, predict_through_wire
from ppcmi_fast.federation.runfolder import RunFolder, read_json, write_json
from ppcmi_fast.federation.site import Site

FILE = "threshold.json"
FORTIETHS = range(8, 29)
THRESHOLDS = tuple(n / 40 for n in FORTIETHS)
HALF = 0.5
RULE = "one standard error over subjects, a class against the background"
# Over images, as if each were a subject's only one.
RULE_OF_IMAGES = "one standard error, a class against the background"
# The same with two classes.
RULE_OF_SUMS = "one standard error"
Figure = Callable[[Tensor], Tensor]


def choose_threshold(scores: Tensor, figure: Figure, subjects: Sequence[str]) -> float:
    """Of the thresholds that the subjects cannot tell from the best, the one nearest to 1/2.

    They cannot where the mean of the differences, subject by subject, is within its standard error. A subject counts
    once, however many its images; a single one tells nothing.

    Args:
        scores: float [N, classes, H, W].
        figure: of class maps int64 [N, H, W], float [N], higher is better.
        subjects: whose each image is, [N].
    """
    names = sorted({*subjects})
    if len(names) < 2:
        return HALF
    of_images = torch.stack([figure(class_maps(scores, threshold)) for threshold in THRESHOLDS]).double()
    own = torch.tensor([[subject == name for subject in subjects] for name in names]).double()
    figures = of_images @ (own / own.sum(1, keepdim=True)).T
    means = figures.mean(1)
    lost = figures[means.argmax()] - figures
    standard_error = lost.std(1) / len(names) ** 0.5
    # What one subject alone gains is its standard error exactly, and not enough.
    as_good = (lost.mean(1) <= standard_error + 1e-9).nonzero().flatten().tolist()
    # Of two as near, the better.
    nearest: int = min(as_good, key=lambda n: (abs(FORTIETHS[n] - 20), -means[n].item()))
    return THRESHOLDS[nearest]


def calibrate(
    site: Site, channel: Channel, images: Tensor, figure: Figure, subjects: Sequence[str], views: int = 1
) -> None:
    """Choose the site's threshold on images that it holds; nothing about them leaves it but the queries.

    Args:
        site: whose `threshold` is set; without images it is left as it is.
        channel: to the trained server.
        images: float32 [N, 1, H, W] that nothing was trained on.
        figure: of class maps of those images, float [N], higher is better.
        subjects: whose each image is, [N].
        views: in which every image is asked about.
    """
    if len(images):
        scores = torch.cat(list(answers_through_wire(site, channel, images, views)))
        site.threshold = choose_threshold(scores, figure, subjects)


def calibrated_maps(
    participant: Participant, channel: Channel, images: Tensor, classes: int, config: RunConfig
) -> Tensor:
    """What a site gets back for its images, its threshold chosen first where the settings say so.

    Args:
        participant: the site, with its validation images.
        channel: to the trained server.
        images: float32 [N, 1, H, W].
        classes: background included.
        config: the run's settings.

    Returns:
        Class maps int64 [N, H, W].
    """
    site, val, views = participant.site, participant.val, config.query_views
    if config.calibrated:
        figure = partial(image_dice, data=val, classes=classes)
        calibrate(site, channel, val.images, figure, val.subjects, views)
    return predict_through_wire(site, channel, images, views)


def save_threshold(folder: RunFolder, site: Site) -> None:
    """Keep it with what else is the site's own."""
    write_json(folder.site(site.name) / FILE, {"threshold": site.threshold, "rule": RULE})


def load_threshold(folder: RunFolder, site: Site) -> None:
    """Take up what `save_threshold` kept.

    Raises:
        RunError: no such file, another content, or a threshold that was chosen to be used otherwise.
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
    if value is not None and site.mask_codec.classes > 2 and found.get("rule") not in (RULE, RULE_OF_IMAGES):
        raise RunError(
            f"{path}: expected a threshold by the rule of this version ({RULE}), got one by {found.get('rule')!r}; run"
            " with --resume"
        )
    site.threshold = value
