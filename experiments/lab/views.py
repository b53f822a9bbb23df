"""What do several views of an image give, to ours and to the U-Nets that it is compared with?

    python experiments/lab/views.py runs/experiments/query_views/one-view/seed-0

It takes a finished run of ours and baselines. Every image is answered as it is and in the views of `query_views`, by
every method alike, and the answers are averaged. Nothing is trained, and all answers are the likeliest class.
"""

from __future__ import annotations

import sys
from typing import Any

from restored import RestoredRun, command
from thresholds import Scores, likelihoods, titles

from ppcmi_fast.federation.views import VIEWS, merge_views

COUNTS = tuple(2**n for n in range(len(VIEWS).bit_length()))


def of_the_first(run: RestoredRun, scores: dict[str, Scores], count: int) -> dict[str, Scores]:
    """The mean of the answers to so many views, by part and site, of scores of one view after another."""
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
    for method, title in titles(run).items():
        scores = likelihoods(run, method, len(VIEWS))
        entries |= run.measured(
            {
                f"{title}, {count} view{'s' if count > 1 else ''}": of_the_first(run, scores, count)
                for count in COUNTS
            }
        )
    return entries


if __name__ == "__main__":
    sys.exit(command(measure, __file__, __doc__))
