"""What are the thresholds worth that sites choose, to ours and to the U-Nets that it is compared with?

    python experiments/lab/thresholds.py runs/experiments/comparison_sunnybrook/main/seed-0

It takes a finished run of ours and baselines, such as the variant that brings an experiment's pieces together, run
after them (`ppcmi experiment run comparison_sunnybrook --only main --seed 0`). Every site chooses on its own validation
images how likely a class must be against the background, for the U-Nets by the rule that it has for ours. Nothing is
trained, and weights stay those of the best validation by likeliest classes.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from restored import RestoredRun, command
from torch import Tensor, nn

from ppcmi_fast.baselines.architectures import make_network
from ppcmi_fast.baselines.base import CHOSEN, method_of
from ppcmi_fast.federation.calibration import choose_threshold
from ppcmi_fast.federation.evaluate import at_threshold, image_dice
from ppcmi_fast.federation.runfolder import load_module, read_json
from ppcmi_fast.federation.views import in_views
from ppcmi_fast.report.runfolder import method_title

OURS = "ppcmi"
AVERAGED = ("fedavg", "fedprox")
U_NETS = ("unet_centralised", "unet_local", *AVERAGED)
Scores = dict[str, Tensor]


def titles(run: RestoredRun) -> dict[str, str]:
    """Of ours and of the U-Nets beside it, by name."""
    beside = (name for name in U_NETS if name in run.config.baselines.methods)
    settings = run.config.model_dump()
    return {name: method_title(name, settings) for name in (OURS, *beside)}


def networks(run: RestoredRun, method: str) -> dict[str, nn.Module]:
    """The trained network of every site, by site."""
    nets = {
        site: make_network(run.config.baselines.architecture, run.classes, run.config.seed)
        for site in run.sites
    }
    if method in AVERAGED:
        load_module(weights_of(run, method), nn.ModuleList(nets.values()))
        return nets
    for site, net in nets.items():
        load_module(weights_of(run, f"{method}.{site}" if method == "unet_local" else method), net)
    return nets


def weights_of(run: RestoredRun, stage: str) -> Path:
    """File of a stage, which has a rate in its name where several were tried."""
    rate = read_json(run.folder / "metrics.json")["methods"][method_of(stage)]["learning_rate"]
    chosen = run.folder / "baselines" / f"{stage}{CHOSEN}{rate:g}.safetensors"
    return chosen if chosen.is_file() else chosen.with_name(f"{stage}.safetensors")


def probabilities(net: nn.Module, images: Tensor) -> Tensor:
    """Of classes, float [N, classes, H, W]."""
    with torch.no_grad():
        return torch.cat([net(chunk).softmax(1) for chunk in images.split(32)])


def at_chosen_thresholds(run: RestoredRun, found: dict[str, Scores]) -> dict[str, Scores]:
    """The same at the threshold that each site chooses, by part and site."""
    chosen = {
        site: choose_threshold(
            scores,
            partial(image_dice, data=run.sites[site]["val"], classes=run.classes),
            run.sites[site]["val"].subjects,
        )
        for site, scores in found["val"].items()
    }
    return {
        part: {site: at_threshold(scores, chosen[site]) for site, scores in by_site.items()}
        for part, by_site in found.items()
    }


def likelihoods(run: RestoredRun, method: str, views: int = 1) -> dict[str, Scores]:
    """Class scores of every site's validation and test images, in one view after another, by part and site."""
    if method == OURS:
        return {part: run.answers(part, views) for part in ("val", "test")}
    nets = networks(run, method)
    return {
        part: {
            site: probabilities(net, in_views(run.sites[site][part].images, views))
            for site, net in nets.items()
        }
        for part in ("val", "test")
    }


def measure(run: RestoredRun) -> dict[str, Any]:
    """Dice of each method's likeliest classes, and at thresholds."""
    entries: dict[str, Any] = {}
    for method, title in titles(run).items():
        plain = likelihoods(run, method)
        entries |= run.measured(
            {
                f"{title}, likeliest class": plain,
                f"{title}, thresholds over subjects": at_chosen_thresholds(run, plain),
            }
        )
    return entries


if __name__ == "__main__":
    sys.exit(command(measure, __file__, __doc__))
