"""What the federation is judged against, by the names of `baselines.methods`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ppcmi_fast.baselines.base import CHOSEN, TRIED, Outcome, SiteData, Workbench
from ppcmi_fast.baselines.federated import fedavg, fedbn, fedprox
from ppcmi_fast.baselines.published import PROFILES, method
from ppcmi_fast.baselines.split import split_learning
from ppcmi_fast.baselines.unet import local, pooled

__all__ = ["METHODS", "Outcome", "SiteData", "Workbench", "run_method"]

METHODS: dict[str, Callable[[Workbench], Outcome]] = {
    "unet_centralised": pooled,
    "unet_local": local,
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedbn": fedbn,
    "split_learning": split_learning,
    **{name: method(name) for name in PROFILES},
}
TRIAL_SHARE = 10


def run_method(name: str, bench: Workbench, rates: Sequence[float] = ()) -> Outcome:
    """Train one method, after choosing its learning rate where there are several.

    A tenth of the budget tells little of the whole: where most images show nothing, a network that finds nothing may be
    ahead of one that has begun to find something. What it chose has to be better than the given rate in the end, too.

    Args:
        name: one of METHODS.
        bench: what it is trained with.
        rates: each is tried for a tenth of the budget. The best of them and the workbench's, where that is among them,
            are trained to the end; the better validation answers, the workbench's where it is as good. Without any the
            workbench's holds. The published profiles have their own rate and want none.
    """
    if not rates:
        outcome = METHODS[name](bench)
        return replace(outcome, learning_rate=outcome.learning_rate or bench.learning_rate)
    short = replace(bench, images=bench.images // TRIAL_SHARE, rounds=max(1, bench.rounds // TRIAL_SHARE))
    trials = [_train_at(name, short, rate, TRIED) for rate in rates]
    given = [rate for rate in rates if rate == bench.learning_rate]
    candidates = dict.fromkeys((*given, _best(trials, bench.learning_rate).learning_rate))
    finals = [_train_at(name, bench, rate, CHOSEN) for rate in candidates]
    answer = _best(finals, bench.learning_rate)
    seen = sum(outcome.images_seen for outcome in (*trials, *finals)) - answer.images_seen
    return replace(answer, trial_images=seen)


def _train_at(name: str, bench: Workbench, rate: float, mark: str) -> Outcome:
    """Train a method at a rate, under names that say so."""
    outcome = METHODS[name](replace(bench, learning_rate=rate, suffix=f"{mark}{rate:g}"))
    return replace(outcome, learning_rate=rate)


def _best(outcomes: Sequence[Outcome], given: float) -> Outcome:
    """That of the best validation, of several as good the one at the given rate."""
    return max(outcomes, key=lambda outcome: (outcome.validation, outcome.learning_rate == given))
