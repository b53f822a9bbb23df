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

    Args:
        name: one of METHODS.
        bench: what it is trained with.
        rates: each is tried for a tenth of the budget; the best validation decides. Without any the workbench's holds,
            as where it is as good as the best. The published profiles have their own rate and want none.
    """
    train = METHODS[name]
    trials = [
        replace(
            train(
                replace(
                    bench,
                    images=bench.images // TRIAL_SHARE,
                    learning_rate=rate,
                    suffix=f"{TRIED}{rate:g}",
                    rounds=max(1, bench.rounds // TRIAL_SHARE),
                )
            ),
            learning_rate=rate,
        )
        for rate in rates
    ]
    rate = _best_rate(trials, bench.learning_rate)
    suffix = f"{CHOSEN}{rate:g}" if trials else ""
    outcome = train(replace(bench, learning_rate=rate, suffix=suffix))
    rate = outcome.learning_rate or rate
    return replace(outcome, learning_rate=rate, trial_images=sum(trial.images_seen for trial in trials))


def _best_rate(trials: Sequence[Outcome], given: float) -> float:
    """The rate of the best validation; the given one where none was tried or that is as good as the best."""
    best = max((trial.validation for trial in trials), default=0.0)
    tied = [trial.learning_rate for trial in trials if trial.validation == best]
    return given if given in tied or not tied else tied[0]
