"""How long it took to train what is on the page of experiments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppcmi_fast.experiments.records import OURS
from ppcmi_fast.experiments.variants import COMPARED, COMPARISONS
from ppcmi_fast.federation.sections import UNET_METHODS

BITS = ("payload_256", "rate_accuracy")


@dataclass(frozen=True)
class Effort:
    """Seconds of all that was trained for some records; networks that several of them share count once.

    Attributes:
        training: of the networks that answer.
        trials: of learning rates tried, and of trainings at a rate that was not chosen, which another experiment may
            have for an answer.
        untold: networks with trials whose time their records, older ones, do not have.
    """

    training: float
    trials: float
    untold: int

    @classmethod
    def of(cls, results: Sequence[dict[str, Any]]) -> Effort:
        """That of experiments' records."""
        networks: defaultdict[tuple[Any, ...], set[float | None]] = defaultdict(set)
        for record in (record for result in results for record in result["runs"]):
            of_run = (record["dataset"]["name"], record["dataset"]["size"], record["seed"])
            for method, facts in record["methods"].items():
                if method == OURS or not method.startswith(OURS):  # the others of ours are the same networks
                    networks[(*of_run, method, facts["seconds"])].add(_trial_seconds(record, method))
        trials = [_known(found) for found in networks.values()]
        return cls(
            training=float(sum(seconds for *_, seconds in networks)),
            trials=sum(seconds for seconds in trials if seconds is not None),
            untold=trials.count(None),
        )

    def told(self, asked: Effort) -> str:
        """A paragraph of the page; `asked`: the part of it that `comparison_of` picks."""
        untold = f"; of {self.untold} with trials the records do not have it" if self.untold else ""
        return (
            "Training all that is on this page, what experiments took over from each other counted once and what is"
            f" told of other trainings left out, took {self.training / 3600:.1f} hours of one run at a time."
            f" {asked.training / 3600:.1f} of them were for what the system is judged by: the tables of methods on both"
            f" real sets and on each phantom ({_list(COMPARED)}), ours at 256 x 256 and the bits an entry"
            f" ({_list(BITS)}). Trials of learning rates and trainings at a rate that was not chosen, some of which"
            f" answer in other variants, took {self.trials / 3600:.1f} hours{untold}. Two cores with a run each need"
            " half of that at best.\n"
        )


def comparison_of(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of experiments' records those of the tables of methods, and of what bits cost."""
    comparisons = [
        result | {"runs": [record for record in result["runs"] if record["variant"] in COMPARED]}
        for result in results
        if result["experiment"].startswith(COMPARISONS)
    ]
    return comparisons + [result for result in results if result["experiment"] in BITS]


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _trial_seconds(record: dict[str, Any], method: str) -> float | None:
    """None where there were trials and the record is of before it told how long they took."""
    tried = method in UNET_METHODS and record["settings"]["baselines"]["learning_rates"]
    seconds: float | None = record["methods"][method].get("trial_seconds", None if tried else 0.0)
    return seconds


def _known(found: set[float | None]) -> float | None:
    """Of what the records of one network say: one that took it over at its rate tells of no trials."""
    longest = max(seconds or 0.0 for seconds in found)
    return longest if longest or None not in found else None
