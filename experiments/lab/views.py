"""What do several views of an image give, to ours and to the U-Nets that it is compared with?

    python experiments/lab/views.py runs/experiments/pooled_networks/attention-unet-seeds/seed-0

It takes a finished run of ours and baselines. Every image is answered as it is and in the views of `query_views`, by
every method alike, and the answers are averaged. Nothing is trained, and all answers are the likeliest class.
"""

from __future__ import annotations

import sys
from typing import Any

from restored import RestoredRun, command
from thresholds import OURS, U_NETS, networks, probabilities
from torch import Tensor

from ppcmi_fast.federation.views import VIEWS, in_views, merge_views
from ppcmi_fast.report.runfolder import method_title

COUNTS = tuple(2**n for n in range(len(VIEWS).bit_length()) if 2**n <= len(VIEWS))
PARTS = ("val", "test")


def answers_to_views(run: RestoredRun, method: str) -> dict[str, dict[str, Tensor]]:
    """Class scores of all views of every site's images, one view after another, by part and site."""
    asked = {
        part: {site: in_views(data[part].images, len(VIEWS)) for site, data in run.sites.items()}
        for part in PARTS
    }
    if method == OURS:
        participants = {p.site.name: p for p in run.federation.participants}
        return {
            part: {site: run.ask(participants[site], views) for site, views in by_site.items()}
            for part, by_site in asked.items()
        }
    nets = networks(run, method)
    return {
        part: {site: probabilities(nets[site].eval(), views) for site, views in by_site.items()}
        for part, by_site in asked.items()
    }


def of_the_first(run: RestoredRun, scores: dict[str, dict[str, Tensor]], count: int) -> dict[str, Any]:
    """The mean of the answers to so many views, by part and site."""
    return {
        part: {
            site: merge_views(found[: count * len(run.sites[site][part].images)], count)
            for site, found in by_site.items()
        }
        for part, by_site in scores.items()
    }


def measure(run: RestoredRun) -> dict[str, Any]:
    """Dice of each method by one view and by several."""
    entries: dict[str, Any] = {}
    for method in (OURS, *(name for name in U_NETS if name in run.config.baselines.methods)):
        scores = answers_to_views(run, method)
        title = method_title(method, run.config.model_dump())
        answers = {
            f"{title}, {count} view{'s' if count > 1 else ''}": of_the_first(run, scores, count)
            for count in COUNTS
        }
        compared = run.compared({name: found["test"] for name, found in answers.items()}, next(iter(answers)))
        for name, entry in compared.items():
            entries[name] = entry | {"validation": run.validation(answers[name]["val"]), "seconds": 0.0}
    return entries


if __name__ == "__main__":
    sys.exit(command(measure, __file__, __doc__))
