"""Tables and sentences about the scores of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppcmi_fast.report import words
from ppcmi_fast.report.runfolder import method_order, title_in

HIGHER_IS_BETTER = ("dice", "iou", "nsd", "sensitivity", "precision")
COMPARED = ("dice", "hd95")
SIGNIFICANT = 0.05
# Reports of runs from before metrics.json had `measures`.
FORMER_POLICY = (
    "Empty masks: when truth and answer both lack a structure, Dice is 1 and the distances are 0; when one of them"
    " lacks it, Dice is 0 and the distances are the image diagonal."
)


@dataclass(frozen=True)
class Table:
    """A table of numbers; in each column the best value is marked. `lead`: the first column sums the others up."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    best: set[tuple[int, int]]
    note: str = ""
    lead: bool = False


@dataclass(frozen=True)
class Comparison:
    """Our method against another by one measure."""

    other: str
    measure: str
    difference: str
    p: str
    subjects: str
    meaning: str


def _best(values: list[list[float | None]], higher: list[bool]) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for column, highest in enumerate(higher):
        known = [(row[column], i) for i, row in enumerate(values) if row[column] is not None]
        numbers = [value for value, _ in known if value is not None]
        # Where all are equal there is no best.
        if len(set(numbers)) > 1:
            top = max(numbers) if highest else min(numbers)
            found |= {(i, column) for value, i in known if value == top}
    return found


def _digits(measure: str) -> int:
    return 3 if measure in HIGHER_IS_BETTER else 2


def _title(measure: str, metrics: dict[str, Any]) -> str:
    unit = words.unit(metrics)
    tolerance = words.number(metrics.get("measures", {}).get("nsd_tolerance"))
    titles = {
        "dice": "Dice",
        "iou": "IoU",
        "nsd": f"NSD at {tolerance:g} {unit}" if tolerance is not None else "NSD",
        "hd95": f"HD95 ({unit})",
        "hd95_pooled": f"HD95, pooled ({unit})",
        "hd95_surface": f"HD95, by surface ({unit})",
        "asd": f"ASD ({unit})",
        "sensitivity": "sensitivity",
        "precision": "precision",
    }
    return titles.get(measure, measure)


def score_tables(metrics: dict[str, Any]) -> list[Table]:
    """Dice, HD95 and ASD of every method: mean over the sites with its interval, per site, per class."""
    methods: dict[str, dict[str, Any]] = metrics["methods"]
    names = method_order(list(methods))
    tables = []
    for measure in ("dice", "hd95", "asd"):
        scores = [methods[name].get(measure, {}) for name in names]
        keys: list[tuple[str, str, str]] = []
        for group, prefix in (("site", ""), ("class", "class ")):
            members = sorted({key for score in scores for key in score.get(group, {})})
            # One foreground class says nothing that the mean did not say.
            if group == "site" or len(members) > 1:
                keys += [(group, key, prefix + key) for key in members]
        values = [
            [
                words.number(score.get("mean")),
                *(words.number(score.get(group, {}).get(key)) for group, key, _ in keys),
            ]
            for score in scores
        ]
        digits = _digits(measure)
        rows = [
            (
                title_in(metrics, name),
                [words.with_interval(score, digits), *(words.decimal(value, digits) for value in row[1:])],
            )
            for name, score, row in zip(names, scores, values, strict=True)
        ]
        highest = measure in HIGHER_IS_BETTER
        note = "higher is better" if highest else "lower is better"
        if any(words.interval(score, digits) for score in scores):
            note += "; in brackets the 95 % interval"
        columns = ["mean over sites", *(label for _, _, label in keys)]
        best = _best(values, [highest] * len(columns))
        tables.append(Table(_title(measure, metrics), columns, rows, best, note, lead=True))
    return tables


def _two_lines(score: dict[str, Any], digits: int) -> str:
    """A mean with its interval below it, since many columns leave no room beside it."""
    return "\n".join(filter(None, [words.decimal(score.get("mean"), digits), words.interval(score, digits)]))


def _means(
    title: str, methods: dict[str, dict[str, Any]], measures: list[str], metrics: dict[str, Any], note: str
) -> list[Table]:
    """The means over sites of several measures; no table where no method has any."""
    names = method_order([name for name, scores in methods.items() if any(m in scores for m in measures)])
    known = [measure for measure in measures if any(measure in methods[name] for name in names)]
    if not known:
        return []
    scores = [[methods[name].get(measure, {}) for measure in known] for name in names]
    values = [[words.number(score.get("mean")) for score in row] for row in scores]
    rows = [
        (
            title_in(metrics, name),
            [_two_lines(score, _digits(measure)) for measure, score in zip(known, row, strict=True)],
        )
        for name, row in zip(names, scores, strict=True)
    ]
    best = _best(values, [measure in HIGHER_IS_BETTER for measure in known])
    return [Table(title, [_title(measure, metrics) for measure in known], rows, best, note)]


def other_measures(metrics: dict[str, Any]) -> list[Table]:
    """What is measured beside Dice, HD95 and ASD; empty for runs that did not."""
    measures = ["iou", "nsd", "hd95_pooled", "hd95_surface", "sensitivity", "precision"]
    return _means("Other measures", metrics["methods"], measures, metrics, "mean over sites")


def volume_table(metrics: dict[str, Any]) -> list[Table]:
    """Scores of whole volumes; empty where the images are no slices of volumes."""
    volumes = {name: method["volume"] for name, method in metrics["methods"].items() if "volume" in method}
    count = words.integer(metrics.get("measures", {}).get("volumes"))
    measures = ["dice", "hd95", "asd", "nsd", "iou", "sensitivity", "precision"]
    note = f"each volume measured as one body, {count} volumes; mean over sites"
    return _means("Whole volumes", volumes, measures, metrics, note)


def class_tables(metrics: dict[str, Any]) -> list[Table]:
    """Dice and HD95 of each class at each site; empty where there is one class, or the run did not say."""
    methods: dict[str, dict[str, Any]] = metrics["methods"]
    names = method_order(list(methods))
    tables = []
    for measure in COMPARED:
        scores = [methods[name].get(measure, {}).get("site_class", {}) for name in names]
        keys = sorted({(site, label) for score in scores for site, row in score.items() for label in row})
        if len({label for _, label in keys}) < 2:
            continue
        values = [[words.number(score.get(site, {}).get(label)) for site, label in keys] for score in scores]
        rows = [
            (
                title_in(metrics, name),
                [words.decimal(value, _digits(measure)) for value in row],
            )
            for name, row in zip(names, values, strict=True)
        ]
        columns = [f"{site}, class {label}" for site, label in keys]
        best = _best(values, [measure in HIGHER_IS_BETTER] * len(columns))
        tables.append(Table(f"{_title(measure, metrics)}, each class at each site", columns, rows, best))
    return tables


def _meaning(row: dict[str, Any]) -> str:
    """What a comparison shows, in words."""
    difference, p = words.number(row.get("difference")), words.number(row.get("p_holm"))
    if difference is None:
        return "not measured"
    if p is None:
        return f"not tested: {row.get('reason') or 'no p value'}"
    if p >= SIGNIFICANT:
        return "no difference shown"
    ends = row.get("ci95") or [difference, difference]
    if ends[0] <= 0 <= ends[1]:
        return "most subjects differ one way, the mean over sites does not"
    better = (difference > 0) == (row.get("measure") in HIGHER_IS_BETTER)
    return "ours is better" if better else "ours is worse"


def comparison_rows(metrics: dict[str, Any]) -> list[Comparison]:
    """Ours against each other method by Dice and HD95; empty for runs that compared nothing."""
    rows = [row for row in metrics.get("comparisons", []) if row.get("measure") in COMPARED]
    found = []
    for row in rows:
        digits, p = _digits(row["measure"]), words.number(row.get("p_holm"))
        difference = words.number(row.get("difference"))
        sign = "–" if difference is None else f"{difference:+.{digits}f}".replace("-", "−")
        span = words.interval(row, digits)
        found.append(
            Comparison(
                title_in(metrics, str(row.get("b", ""))),
                _title(row["measure"], metrics),
                f"{sign} ({span})" if span else sign,
                words.p_value(p),
                words.integer(row.get("subjects")),
                _meaning(row),
            )
        )
    return found


def _empty_truths(count: Any, what: str, empty: dict[str, Any]) -> str:
    if not any(empty.values()):
        return f"In all {words.integer(count)} test {what} the truth shows every class."
    listed = ", ".join(
        f"class {label} in {words.integer(number)}"
        for label, number in sorted(empty.items(), key=lambda item: int(item[0]))
    )
    return f"Of {words.integer(count)} test {what}, the truth lacks {listed}."


def score_notes(metrics: dict[str, Any]) -> list[str]:
    """What must be known to read the scores: means, intervals, definitions, and the policy for empty masks."""
    facts: dict[str, Any] = metrics.get("measures", {})
    notes = [
        "The mean is the mean of the sites' means, so that a large site does not outweigh a small one.",
    ]
    kept = metrics.get("mask_code_dice", {}).values()
    if kept:
        notes.append(
            f"The mask codes alone keep a Dice of {sum(kept) / len(kept):.3f} of the test masks; what they lose, no"
            " mapper finds again."
        )
    if not facts:
        return [*notes, FORMER_POLICY]
    policy = str(facts.get("empty_mask_policy", ""))
    notes.append(f"Policy for empty masks: {policy}. So a missed structure costs in every measure.")
    if facts.get("empty_truths"):
        notes.append(_empty_truths(facts.get("images"), "images", facts["empty_truths"]))
    if facts.get("empty_truth_volumes"):
        notes.append(_empty_truths(facts.get("volumes"), "volumes", facts["empty_truth_volumes"]))
    if words.number(facts.get("slices_left_out")):
        notes.append(
            f"{words.integer(facts['slices_left_out'])} slices inside the volumes were left out of the data; in the"
            " volumes they count as background in truth and answers."
        )
    definitions = facts.get("hd95_definitions", {})
    named = {"hd95": "HD95", "hd95_pooled": "HD95, pooled", "hd95_surface": "HD95, by surface"}
    notes += [f"{name}: {definitions[key]}." for key, name in named.items() if key in definitions]
    resamples = words.integer(facts.get("bootstrap_resamples"))
    notes.append(
        f"Intervals are 95 % bootstrap intervals: subjects drawn again within each site, {resamples} times. Where a"
        " site has one test subject there is none."
    )
    return notes
