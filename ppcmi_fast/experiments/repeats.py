"""Whether what a record says comes out again: what is trained anew is compared with it, subject by subject.

Every run of ours draws other keys, and with them other first weights: it does not come out the same, and what it comes
to says how far other keys lead, and whatever else was not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments.plan import Plan, PlannedRun, planned_runs
from ppcmi_fast.experiments.records import (
    DECIMALS,
    MEASURES,
    OURS,
    REPEATED,
    SOMEWHERE,
    SUBJECT_COLUMNS,
    record_of,
    same_ours,
    serves,
    subjects_of,
    threshold_rule,
)
from ppcmi_fast.experiments.reuse import finished_runs
from ppcmi_fast.experiments.statistics import Floats, Held
from ppcmi_fast.report.runfolder import method_title

OTHER_RULE = "by another rule for thresholds"
_DICE = SUBJECT_COLUMNS + MEASURES.index("dice")


def _dice(rows: Sequence[Sequence[Any]]) -> Floats:
    """[subjects, classes]."""
    return np.array([row[_DICE] for row in rows], dtype=np.float64)


def compare_repeats(plan: Plan, runs: Sequence[dict[str, Any]], out: Path) -> list[str]:
    """Note with the methods of an experiment's records, parts of ours left out, what other trainings of them came to.

    Args:
        plan: of the experiment.
        runs: its records; methods that were trained anew get entries beside those that they have.
        out: folder of experiments, in any of which it may have been trained.

    Returns:
        A line for each that was compared.

    Raises:
        RunError: a repetition is of other held-out images.
    """
    planned = {(run.variant, run.seed): run for run in planned_runs(plan, SOMEWHERE)}
    seeds = {record["seed"] for record in runs}
    again = {
        run.folder: record_of(run.folder, run.folder.parent.name, run.config.seed)
        for run in finished_runs(out)
        if run.config.seed in seeds
    }
    lines: dict[tuple[Any, ...], str] = {}
    first = next((record["variant"] for record in runs), "")
    for record in runs:
        run = planned.get((record["variant"], record["seed"]))
        if run is None:
            continue
        for name, facts in record["methods"].items():
            for folder, other in again.items():
                of_other_data = other["dataset"]["name"] != record["dataset"]["name"]
                # A kept record may be of settings that the plan no longer has.
                if of_other_data or not _is_trained_twice(record, other, name, run):
                    continue
                if subjects_of(other["methods"][name]["scores"]) != subjects_of(facts["scores"]):
                    raise RunError(
                        f"{folder}: expected {name} scored on the record's held-out images, got others; run it again"
                        " with --overwrite, or leave its folder out of --out"
                    )
                entry = _entry(facts, other, name)
                _note(facts, [entry], threshold_rule(record))
                rule = "" if _of_rule(entry, threshold_rule(record)) else f"{OTHER_RULE}, "
                of = "" if run.variant == first else f" of {run.variant}"
                line = f"{name}{of}, seed {run.seed}: {rule}{_difference(entry)}"
                # What variants share is told of the first.
                lines.setdefault((name, run.seed, entry["seconds"], entry["dice"]), line)
    return list(lines.values())


def keep_repeats(record: dict[str, Any], before: dict[str, Any], run: PlannedRun) -> list[str]:
    """Note with the methods of a record what was kept of them: other trainings, and repetitions of those.

    Args:
        record: of a run; its methods get entries.
        before: the record that was kept of that run.
        run: as it is planned.

    Returns:
        The methods that are not what was kept.
    """
    replaced = []
    for name, facts in record["methods"].items():
        known = before["methods"].get(name)
        if known is None:
            continue
        entries = _kept_repeats(before, name)
        if any(known[key] != facts[key] for key in ("seconds", "scores")):
            replaced.append(name)
            alike = subjects_of(known["scores"]) == subjects_of(facts["scores"])
            if alike and _is_trained_twice(before, record, name, run):
                entries = [*_repeats_of_replaced(facts, before, name), _entry(facts, before, name)]
            elif alike and _is_scored_by_another_rule(before, record, name, run):
                entries = _repeats_of_replaced(facts, before, name)
            else:
                entries = []
        if entries:
            _note(facts, entries, threshold_rule(record))
    return replaced


def _note(facts: dict[str, Any], entries: Sequence[dict[str, Any]], rule: str) -> None:
    """Add repetitions to those that a method of a rule has, a training once for each rule of its thresholds."""
    every = [*facts.get(REPEATED, []), *entries]
    facts[REPEATED] = list({(entry["seconds"], entry.get("rule", rule)): entry for entry in every}.values())


def _kept_repeats(record: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """Those of a method of a record, which say by which rule they are."""
    return [_rule(record, method) | entry for entry in record["methods"][method].get(REPEATED, [])]


def _repeats_of_replaced(facts: dict[str, Any], before: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The repetitions that were kept of a method, as those of what has taken its place."""
    gap, mean = _entry(facts, before, method)["largest_difference"], _mean(facts["scores"])
    beside = (_beside(entry, gap, mean) for entry in _kept_repeats(before, method))
    return [entry for entry in beside if entry["seconds"] != facts["seconds"]]


def _beside(entry: dict[str, Any], gap: float, mean: float) -> dict[str, Any]:
    """A repetition of what was replaced as one of what replaces it, which differ by `gap`.

    Where it differed from the one as that does from the other, its mean alone says whether it is like the other.
    """
    if not gap:
        return entry
    if entry["largest_difference"] == 0:
        return entry | {"largest_difference": gap}
    return entry | {"largest_difference": 0.0 if entry["dice"] == mean else None}


def _is_trained_twice(one: dict[str, Any], two: dict[str, Any], method: str, run: PlannedRun) -> bool:
    """Whether a method of two records is trained as a run's would be, and not of one training.

    What was taken over has the seconds of its training as well. Of ours only what answers is asked for, by whatever
    rule its thresholds were chosen.
    """
    if method == OURS:
        alike = _are_ours(one, two, run)
    else:
        alike = not method.startswith(OURS) and all(serves(record, method, run) for record in (one, two))
    return alike and not _is_one_training(one, two, method)


def _is_scored_by_another_rule(
    one: dict[str, Any], two: dict[str, Any], method: str, run: PlannedRun
) -> bool:
    """Whether a method is ours of one training, at thresholds that two records chose by different rules."""
    ours = method == OURS and _are_ours(one, two, run)
    return ours and _is_one_training(one, two, method) and threshold_rule(one) != threshold_rule(two)


def _are_ours(one: dict[str, Any], two: dict[str, Any], run: PlannedRun) -> bool:
    return all(OURS in record["methods"] and same_ours(record, run) for record in (one, two))


def _is_one_training(one: dict[str, Any], two: dict[str, Any], method: str) -> bool:
    return bool(one["methods"][method]["seconds"] == two["methods"][method]["seconds"])


def _entry(facts: dict[str, Any], record: dict[str, Any], method: str) -> dict[str, Any]:
    """Of a method's facts, how its training of another record differs."""
    again = record["methods"][method]
    rows = again["scores"]
    return {
        "seconds": again["seconds"],
        "dice": _mean(rows),
        # Of a subject's Dice of one class.
        "largest_difference": float(np.abs(_dice(facts["scores"]) - _dice(rows)).max()),
        # Of baselines that were brought together from another machine.
        "environment": again.get("environment", record["environment"]),
    } | _rule(record, method)


def _rule(record: dict[str, Any], method: str) -> dict[str, str]:
    """What an entry says of the rule by which thresholds were chosen, where a method has any."""
    return {"rule": threshold_rule(record)} if method == OURS else {}


def _of_rule(entry: dict[str, Any], rule: str) -> bool:
    """Whether a repetition is at thresholds of a rule; one that knows none is of its record's."""
    known: str = entry.get("rule", rule)
    return known == rule


def _mean(rows: Sequence[Sequence[Any]]) -> float:
    return round(float(Held.of({0: rows}).mean(_dice(rows)).mean()), DECIMALS)


def _difference(entry: dict[str, Any]) -> str:
    gap = entry["largest_difference"]
    return f"Dice {entry['dice']:.3f}, a subject's differs by up to {gap:.4f}" if gap else "the same"


def _told(entries: Sequence[dict[str, Any]], record: dict[str, Any]) -> str:
    """Their Dice, first those at thresholds of the record's own rule."""
    own = threshold_rule(record)
    alike = [f"{entry['dice']:.3f}" for entry in entries if _of_rule(entry, own)]
    others = [f"{entry['dice']:.3f}" for entry in entries if not _of_rule(entry, own)]
    told = [", ".join(alike)] if alike else []
    return ", and ".join([*told, f"{OTHER_RULE} {', '.join(others)}"] if others else told)


def repeats_of(result: dict[str, Any]) -> list[str]:
    """What the page says of them, by method; nothing where nothing was trained anew."""
    same: dict[str, dict[int, None]] = {}
    other: dict[str, None] = {}
    told: set[tuple[Any, ...]] = set()
    first = next((record["variant"] for record in result["runs"]), "")
    for record in result["runs"]:
        variant, seed = record["variant"], record["seed"]
        for name, facts in record["methods"].items():
            entries = facts.get(REPEATED, [])
            # What variants share is told of the first; one that answers otherwise has entries of its own.
            shared = (name, seed, *sorted((entry["seconds"], entry["dice"]) for entry in entries))
            if not entries or shared in told:
                continue
            told.add(shared)
            title = method_title(name, record["settings"]) + ("" if variant == first else f" of `{variant}`")
            changed = _told([entry for entry in entries if entry["largest_difference"] != 0], record)
            if changed:
                other[f"{title} (seed {seed}) {changed}"] = None
            else:
                same.setdefault(title, {})[seed] = None
    listed = [f"{title} (seed {', '.join(map(str, seeds))})" for title, seeds in same.items()]
    parts = [f"the same Dice of every held-out subject: {'; '.join(listed)}"] if same else []
    parts += [f"another Dice: {'; '.join(other)}"] if other else []
    if not parts:
        return []
    return [f"Other trainings at the same settings came to {'. And to '.join(parts)}.", ""]
