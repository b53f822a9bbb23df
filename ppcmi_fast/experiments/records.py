"""What is kept of an experiment: a record of every finished run, merged with those of before and of other machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppcmi_fast.baselines.base import trials_of
from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.experiments.plan import PlannedRun
from ppcmi_fast.experiments.reuse import same_baseline
from ppcmi_fast.federation.calibration import RULE_OF_IMAGES, RULE_OF_SUMS
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


def threshold_rule(record: dict[str, Any]) -> str:
    """By which the thresholds of a record were chosen; what is the same rule for two classes has one name."""
    rule: str = record.get("calibration", "")
    return RULE_OF_IMAGES if rule == RULE_OF_SUMS and record["dataset"]["classes"] == 2 else rule


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
        "methods": {name: _method(name, metrics, rows[name]) for name in method_order(list(rows))},
    }


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    """What trained the networks; GPUs only where they did."""
    facts = {key: environment[key] for key in ("cpu", "cores", "torch_threads", "training_precision")}
    return facts | {"gpus": environment["cuda"]["devices"] if environment["training_device"] != "cpu" else []}


def _method(name: str, metrics: dict[str, Any], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    entry = metrics["methods"][name]
    facts = {key: entry[key] for key in ("images_seen", "parameters")}
    # Runs of before have trials under another name, or none.
    trials = metrics.get("seconds", {}).get(trials_of(name), None if entry.get("trial_images") else 0.0)
    tried = {} if trials is None else {"trial_seconds": round(trials, 1)}
    return facts | {
        "seconds": round(entry["seconds"], 1),
        **tried,
        "bytes_sent": sum(entry["bytes_sent"].values()),
        "learning_rate": entry.get("learning_rate"),
        "scores": subject_scores(rows),
    }


def settings_of(record: dict[str, Any]) -> RunConfig | None:
    """Of a kept record, what was not there yet as it was done then; None where this version does not take them."""
    known = {**record["settings"], "data": str(SOMEWHERE)}
    try:
        return RunConfig.build(with_before(known))
    except ConfigError:
        return None


def same_ours(record: dict[str, Any], run: PlannedRun) -> bool:
    """Whether ours of a record is trained and measured as a run's, whatever stands beside it."""
    before = settings_of(record)
    leave_out = ("data", "threads", "device", "baselines")
    return before is not None and not changed_settings(before, run.config, leave_out=leave_out)


def serves(record: dict[str, Any], method: str, run: PlannedRun) -> bool:
    """Whether a baseline of a record is trained as a run would train it."""
    before, facts = settings_of(record), record["methods"].get(method)
    return (
        before is not None
        and facts is not None
        and same_baseline(before, run.config, method, facts["learning_rate"])
    )


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
