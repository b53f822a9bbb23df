"""What is kept of an experiment: a record of every finished run, merged with those of before and of other machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.experiments.plan import Plan, PlannedRun, planned_runs
from ppcmi_fast.experiments.reuse import same_baseline
from ppcmi_fast.federation.config import RunConfig, changed_settings, with_before
from ppcmi_fast.federation.runfolder import read_json
from ppcmi_fast.metrics import ScoreRow, read_scores
from ppcmi_fast.report.runfolder import method_order

OURS = "ppcmi"
MEASURES = ("dice", "iou", "hd95")
SCHEMA = 2
# Of a method's facts: what other trainings of it came to, see `repeats`.
REPEATED = "repeated"
# Of a row of scores, before the measures.
SUBJECT_COLUMNS = 3
# Fewer would make ties, and ties another test.
DECIMALS = 7
# Records do not say where the images lay.
SOMEWHERE = Path("data")


def subject_scores(rows: Sequence[ScoreRow]) -> list[list[Any]]:
    """[site, subject, images, means of each measure by class], a row a subject, in the order of the images."""
    groups: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        if not row.is_volume:
            groups.setdefault((row.site, row.subject), []).append(row)
    found = []
    for (site, subject), members in groups.items():
        means = [
            [
                round(sum(values) / len(members), DECIMALS)
                for values in zip(*(getattr(m.scores, name) for m in members), strict=True)
            ]
            for name in MEASURES
        ]
        found.append([site, subject, len(members), *means])
    return found


def subjects_of(scores: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """[site, subject, images] of a method's scores in a record, a row a subject."""
    return [list(row[:SUBJECT_COLUMNS]) for row in scores]


def record_of(folder: Path, variant: str, seed: int) -> dict[str, Any]:
    """What is kept of one finished run.

    Raises:
        RunError: a file is missing or damaged.
    """
    metrics, rows = read_json(folder / "metrics.json"), read_scores(folder / "scores.csv")
    late = metrics.get("late_sites")
    return {
        "variant": variant,
        "seed": seed,
        "dataset": {
            key: metrics["dataset"][key]
            for key in ("name", "size", "classes", "class_names", "sites", "spacing_unit")
        },
        "settings": metrics["config"],
        "payload_bytes": {way: metrics["payload_bytes"][way] for way in ("up", "down")},
        "thresholds": metrics.get("thresholds", {}),
        "calibration": metrics.get("calibration", ""),
        "mask_code_dice": metrics.get("mask_code_dice", {}),
        "environment": _machine(metrics["environment"]),
        "late_sites": late["dice"]["site"] if late else {},
        "methods": {name: _method(metrics["methods"][name], rows[name]) for name in method_order(list(rows))},
    }


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    """What trained the networks; GPUs only where they did."""
    facts = {key: environment[key] for key in ("cpu", "cores", "torch_threads", "training_precision")}
    return facts | {"gpus": environment["cuda"]["devices"] if environment["training_device"] != "cpu" else []}


def _method(entry: dict[str, Any], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    facts = {key: entry[key] for key in ("images_seen", "parameters")}
    return facts | {
        "seconds": round(entry["seconds"], 1),
        "bytes_sent": sum(entry["bytes_sent"].values()),
        "learning_rate": entry.get("learning_rate"),
        "scores": subject_scores(rows),
    }


def _settings_of(record: dict[str, Any]) -> RunConfig | None:
    """Of a kept record, what was not there yet as it was done then; None where this version does not take them."""
    known = {**record["settings"], "data": str(SOMEWHERE)}
    try:
        return RunConfig.build(with_before(known))
    except ConfigError:
        return None


def _outdated(record: dict[str, Any], run: PlannedRun | None) -> str:
    """Why a kept record says nothing about the plan; "" where it does."""
    if run is None:
        return "no longer planned"
    before = _settings_of(record)
    if before is None:
        return "of settings that this version does not take"
    changed = changed_settings(before, run.config, leave_out=("data", "threads", "device"))
    return f"of other settings ({'; '.join(changed)})" if changed else ""


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
        if (out / run.folder / "metrics.json").is_file():
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


def _same_ours(piece: dict[str, Any], run: PlannedRun) -> bool:
    """Whether ours of a piece is trained and measured as a run's, whatever stands beside it."""
    before = _settings_of(piece)
    leave_out = ("data", "threads", "device", "baselines")
    return before is not None and not changed_settings(before, run.config, leave_out=leave_out)


def _brought_together(
    run: PlannedRun, known: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The record of a run that was not made, from others of its seed, and the methods that none of them has.

    Ours is of the first that trained and measured it alike, a baseline of the first with the same images, budget and
    settings; where that was another machine, the method says so.
    """
    ours = next((record for record in known if _same_ours(record, run)), None)
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


def serves(record: dict[str, Any], method: str, run: PlannedRun) -> bool:
    """Whether a baseline of a record is trained as a run would train it."""
    before, facts = _settings_of(record), record["methods"].get(method)
    return (
        before is not None
        and facts is not None
        and same_baseline(before, run.config, method, facts["learning_rate"])
    )


def collect(
    name: str, plan: Plan, out: Path, kept: Sequence[dict[str, Any]], tell: Callable[[str], None]
) -> dict[str, Any]:
    """An experiment's records: of the runs in its folder, and kept ones of those that are not there.

    What a run is still to bring together may be there already, ours in a piece or another variant, baselines in pieces
    and in kept records of whatever settings of ours. Its record is made of them, and wants what none of them has.

    Args:
        name: of the experiment.
        plan: the experiment.
        out: folder of its runs.
        kept: records of before.
        tell: gets a line for each of them that is dropped.

    Raises:
        RunError: there are none.
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
        if key in before and not reasons[key]:
            records[key] = before[key]
            continue
        known = [r for found in (finished, before) for (_, seed), r in found.items() if seed == run.seed]
        record, wanting = _brought_together(run, known)
        if record is not None and not wanting:
            records[key] = record
            reasons.pop(key, None)
        elif record is not None and len(wanting) < len(run.config.baselines.methods):
            tell(f"not yet: {run.variant}, seed {run.seed}, which wants {', '.join(wanting)}")
    for key, record in records.items():
        _keep_repeats(record, before.get(key))
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


def _keep_repeats(record: dict[str, Any], before: dict[str, Any] | None) -> None:
    """What was known of other trainings of a baseline stays, as long as its own is the same."""
    for name, facts in record["methods"].items():
        known = (before or {"methods": {}})["methods"].get(name, {})
        if REPEATED in known and all(known[key] == facts[key] for key in ("seconds", "scores")):
            facts.setdefault(REPEATED, known[REPEATED])


def write_records(path: Path, result: dict[str, Any]) -> None:
    """As JSON, a subject a line, so that differences can be read."""
    lines: list[str] = []

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shortened(item) for key, item in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
            return [shortened(item) for item in value]
        if isinstance(value, list):
            lines.append(json.dumps(value))
            return f"@{len(lines) - 1}@"
        return value

    text = json.dumps(shortened(result), indent=1)
    for number, line in enumerate(lines):
        text = text.replace(f'"@{number}@"', line, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def read_records(path: Path) -> dict[str, Any]:
    """Read what `write_records` wrote.

    Raises:
        RunError: damaged, or of another version.
    """
    result: dict[str, Any] = read_json(path)
    if result.get("schema") != SCHEMA:
        raise RunError(
            f"{path}: expected schema {SCHEMA}, got {result.get('schema')}; make it again from the runs"
        )
    return result
