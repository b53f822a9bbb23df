"""How does the size of what is to be found bear on ours and on the U-Nets that it is compared with?

    python experiments/lab/sizes.py runs/experiments/pooled_networks/attention-unet/seed-0

It takes a finished run of ours and baselines. Its validation images and its held-out ones in which there is something
to be found are put in order of that area, those of all sites together, and divided into thirds. Nothing is trained, and
all answers are the likeliest class.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from restored import RestoredRun, command
from thresholds import OURS, likelihoods, titles
from torch import Tensor
from views import of_the_first

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.views import VIEWS

THIRDS = ("smallest", "middle", "largest")


def areas(masks: Tensor) -> Tensor:
    """Of all classes but the background in pixels, int64 [N]."""
    return (masks > 0).sum((1, 2))


def thirds(run: RestoredRun, part: str) -> dict[str, dict[str, Tensor]]:
    """Numbers of each site's images of a part, by third and site; sites that have none in a third are left out.

    Images of equal area are of the same third, so thirds may differ in size.

    Raises:
        RunError: a third without an image.
    """
    known = {site: areas(data[part].masks) for site, data in run.sites.items()}
    every = torch.cat(list(known.values()))
    some = every[every > 0].double()
    few = (
        f"{run.folder}: expected images of three sizes at least in its part {part}, got %s; take another run"
    )
    if not len(some):
        raise RunError(few % "none with anything to be found")
    edges = some.quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    place = {site: torch.bucketize(own.double(), edges).where(own > 0, -1) for site, own in known.items()}
    found = {
        third: {site: (own == number).nonzero()[:, 0] for site, own in place.items() if number in own}
        for number, third in enumerate(THIRDS)
    }
    empty = [third for third, inside in found.items() if not inside]
    if empty:
        raise RunError(few % f"none in the {empty[0]} third")
    return found


def some_of(data: Arrays, chosen: Tensor) -> Arrays:
    """The images of these numbers."""
    spacing = None if data.spacing is None else data.spacing[chosen]
    records = [data.records[number] for number in chosen.tolist()]
    return Arrays(data.images[chosen], data.masks[chosen], records, spacing, data.modality)


def with_only(run: RestoredRun, part: str, chosen: Mapping[str, Tensor]) -> RestoredRun:
    """The run with these images of a part alone."""
    return replace(
        run, sites={site: {part: some_of(run.sites[site][part], own)} for site, own in chosen.items()}
    )


def measure(run: RestoredRun) -> dict[str, Any]:
    """Dice of each method on the thirds, the smallest first; of ours in several views as well."""
    u_nets = titles(run)
    ours, to_views = u_nets.pop(OURS), likelihoods(run, OURS, len(VIEWS))
    found = {
        ours: of_the_first(run, to_views, 1),
        f"{ours}, {len(VIEWS)} views": of_the_first(run, to_views, len(VIEWS)),
        **{title: likelihoods(run, method) for method, title in u_nets.items()},
    }
    validation, test = thirds(run, "val"), thirds(run, "test")
    entries: dict[str, Any] = {}
    for third, chosen in test.items():
        held_out = with_only(run, "test", chosen)
        sizes = torch.cat([areas(data["test"].masks) for data in held_out.sites.values()])
        label = f"the {third} third ({len(sizes)} images of {sizes.min()} to {sizes.max()} pixels)"
        answers = {
            f"{label}, {title}": {site: scores["test"][site][own] for site, own in chosen.items()}
            for title, scores in found.items()
        }
        for name, entry in held_out.compared(answers, next(iter(answers))).items():
            entries[name] = entry | {"seconds": 0.0}
        others = with_only(run, "val", validation[third])
        for title, scores in found.items():
            own = {site: scores["val"][site][numbers] for site, numbers in validation[third].items()}
            entries[f"{label}, {title}"]["validation"] = others.validation(own)
    return entries


if __name__ == "__main__":
    sys.exit(command(measure, __file__, __doc__))
