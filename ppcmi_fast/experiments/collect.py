"""An experiment's records brought together: of finished runs and their pieces, and of what was kept before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments.plan import Plan, PlannedRun, planned_runs
from ppcmi_fast.experiments.records import (
    OURS,
    SCHEMA,
    SOMEWHERE,
    record_of,
    same_ours,
    serves,
    settings_of,
    subjects_of,
)
from ppcmi_fast.experiments.repeats import keep_repeats
from ppcmi_fast.federation.config import changed_settings
from ppcmi_fast.federation.runfolder import has_results


def _outdated(record: dict[str, Any], run: PlannedRun | None) -> str:
    """Why a kept record says nothing about the plan; "" where it does."""
    if run is None:
        return "no longer planned"
    before = settings_of(record)
    if before is None:
        return "of settings that this version does not take"
    changed = changed_settings(before, run.config, leave_out=("data", "threads", "device"))
    return f"of other settings ({'; '.join(changed)})" if changed else ""


def _check_subjects(records: Iterable[dict[str, Any]]) -> None:
    """Raise RunError where data that was divided alike has other held-out subjects in one record than in another."""
    divisions: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for record in records:
        settings = settings_of(record)
        if settings is not None:
            divided_by = (record["seed"], record["dataset"]["name"], settings.reading, settings.late_sites)
            held_out = repr(subjects_of(record["methods"][OURS]["scores"]))
            name = f"{record['variant']} (seed {record['seed']})"
            divisions.setdefault(divided_by, {}).setdefault(held_out, []).append(name)
    for found in divisions.values():
        if len(found) > 1:
            listed = ", but others by ".join(", ".join(names) for names in found.values())
            raise RunError(
                f"expected the same subjects to be held out by all runs on the same data, got some by {listed}; run"
                " those of before again with --overwrite, or move them away"
            )


def _finished(
    runs: Sequence[PlannedRun], out: Path, tell: Callable[[str], None]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Records of what is finished in a folder, pieces among them; `tell` hears of pieces that are outdated.

    Of those others may still take baselines, which other settings of ours leave as they are.

    Raises:
        RunError: a run is of other settings than the plan has now.
    """
    records = {}
    for run in runs:
        if has_results(out / run.folder):
            record = record_of(out / run.folder, run.variant, run.seed)
            reason = _outdated(record, run)
            if reason and not run.hidden:
                raise RunError(
                    f"{out / run.folder}: expected the run of the plan, got one {reason}; run it again"
                )
            if reason:
                serving = ", ".join(
                    name for name in run.config.baselines.methods if serves(record, name, run)
                )
                use = f"good for {serving} alone" if serving else "left aside"
                tell(f"{use}: {run.variant}, seed {run.seed}, {reason}")
            records[run.variant, run.seed] = record
    return records


def _brought_together(
    run: PlannedRun, known: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The record of a run that was not made, from others of its seed, and the methods that none of them has.

    Ours is of the first that trained and measured it alike, a baseline of the first with the same images, budget and
    settings; where that was another machine, the method says so.
    """
    ours = next((record for record in known if same_ours(record, run)), None)
    if ours is None:
        return None, []
    subjects = subjects_of(ours["methods"][OURS]["scores"])
    methods = {name: facts for name, facts in ours["methods"].items() if name.startswith(OURS)}
    wanting: list[str] = []
    for name in run.config.baselines.methods:
        source = next((r for r in known if _has(r, name, run, subjects)), None)
        if source is None:
            wanting.append(name)
            continue
        facts = source["methods"][name]
        where = facts.get("environment", source["environment"])
        elsewhere = {} if where == ours["environment"] else {"environment": where}
        methods[name] = {**facts, **elsewhere}
    settings = {**ours["settings"], "baselines": run.config.baselines.model_dump(mode="json")}
    return {**ours, "variant": run.variant, "settings": settings, "methods": methods}, wanting


def _has(record: dict[str, Any], method: str, run: PlannedRun, subjects: list[list[Any]]) -> bool:
    """Whether a record has a baseline as a run would train it, of these held-out subjects."""
    served = serves(record, method, run)
    return served and subjects_of(record["methods"][method]["scores"]) == subjects


def collect(
    name: str, plan: Plan, out: Path, kept: Sequence[dict[str, Any]], tell: Callable[[str], None]
) -> dict[str, Any]:
    """An experiment's records: of the runs in its folder, and kept ones of those that are not there.

    What a run is still to bring together may be there already, ours in a piece or another variant, baselines in pieces
    and in kept records of whatever settings of ours. Its record is made of them, and wants what none of them has. What
    is finished goes before what is kept, which is noted beside what has taken its place. Where a variant has finished,
    others that share ours have it from there.

    Args:
        name: of the experiment.
        plan: the experiment.
        out: folder of its runs.
        kept: records of before.
        tell: gets a line for each of them that is dropped or replaced.

    Raises:
        RunError: there are none, or some are of other subjects than the rest.
    """
    everything = planned_runs(plan, SOMEWHERE)
    planned = {(run.variant, run.seed): run for run in everything if not run.hidden}
    finished = _finished(everything, out, tell)
    records = {key: record for key, record in finished.items() if key in planned}
    before = {(record["variant"], record["seed"]): record for record in kept}
    reasons = {key: _outdated(record, planned.get(key)) for key, record in before.items()}
    for key, run in planned.items():
        if key in records:
            continue
        anew = [record for (_, seed), record in finished.items() if seed == run.seed]
        # Its own kept record before those of others.
        kept_before = sorted(before.items(), key=lambda item: item[0] != key)
        known = [*anew, *(record for (_, seed), record in kept_before if seed == run.seed)]
        record, wanting = _brought_together(run, known)
        if key in before and not reasons[key] and (not anew or wanting):
            records[key] = before[key]
        elif record is not None and not wanting:
            records[key] = record
            reasons.pop(key, None)
        elif record is not None and len(wanting) < len(run.config.baselines.methods):
            tell(f"not yet: {run.variant}, seed {run.seed}, which wants {', '.join(wanting)}")
    _check_subjects(records[key] for key in planned if key in records)
    for key, record in records.items():
        replaced = keep_repeats(record, before[key], planned[key]) if key in before else []
        if replaced:
            tell(f"replaced: {key[0]}, seed {key[1]}, {', '.join(replaced)}")
    for (variant, seed), reason in reasons.items():
        if reason:
            tell(f"dropped: {variant}, seed {seed}, {reason}")
    if not records:
        raise RunError(f"{out}: expected finished runs, found none; ppcmi experiment run {name}")
    return {
        "schema": SCHEMA,
        "experiment": name,
        "title": plan.title,
        "question": plan.question,
        "notes": " ".join(plan.notes.split()),
        "figure": None if plan.figure is None else plan.figure.model_dump(mode="json"),
        "rows": plan.rows,
        "planned": [list(key) for key in planned],
        "runs": [records[key] for key in planned if key in records],
    }
