"""The page of experiments, made from the kept records alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppcmi_fast.experiments.effort import Effort, comparison_of
from ppcmi_fast.experiments.markdown import difference, interval, table
from ppcmi_fast.experiments.overview import overview
from ppcmi_fast.experiments.records import OURS, read_records, subjects_of, threshold_rule
from ppcmi_fast.experiments.repeats import repeats_of
from ppcmi_fast.experiments.shortfalls import shortfalls_of
from ppcmi_fast.experiments.statistics import Floats, differences
from ppcmi_fast.experiments.variants import DICE, HD95, IOU, Variant, variants_of
from ppcmi_fast.federation.calibration import RULE
from ppcmi_fast.federation.sections import UNET_METHODS
from ppcmi_fast.report.runfolder import method_title
from ppcmi_fast.report.words import processor, size

HEAD = """# Experiments

Made by `ppcmi experiment table` from `docs/results/experiments/`; do not edit by hand. The files that plan them, and
how they are run, are described in [experiments.md](experiments.md).

Dice, IoU and HD95: mean over seeds and sites of each site's mean over its held-out images and classes. Every
seed has its own split. Intervals are 95 % bootstraps that draw seeds and, within sites, subjects; a subject
held out under several seeds is one. *Ours less it*: the difference in points of Dice, paired by subject, and p
of a signed-rank test over subjects, after Holm (– where there are fewer than six). Bold: the best of a variant
and those that the same test does not tell from it at 5 %; where too few subjects are held out for it to find
anything, those whose difference's interval holds 0. Ours answers at thresholds that sites choose on their
validation images, leaving 1/2 only as far as those differ by more than a standard error; the others answer with
the likeliest class ([what thresholds would give them](lab.md)). *Sent in training* counts what sites and server
exchange to train; *an image* is a query and its reply; minutes are of training, all sites together in one
process, on machines that did other things as well.
"""


def _count(parameters: float) -> str:
    """In millions, or in thousands where those would round to next to nothing."""
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters / 1e3:.1f} k"


def _main_rows(variant: Variant, named: bool) -> list[list[str]]:
    gaps = variant.against(OURS) if OURS in variant.methods else {}
    rows = []
    for name in variant.methods:
        mean, sent = variant.mean(name), variant.fact(name, "bytes_sent")
        travels = name.startswith(OURS) and name != "ppcmi_float32"
        rows.append(
            [
                *([variant.name] if named else []),
                variant.title(name),
                variant.shown(name),
                interval(variant.held.interval(variant.dice(name))),
                *difference(gaps.get(name)),
                f"{mean[IOU]:.3f}",
                f"{mean[HD95]:.2f}",
                f"{variant.fact(name, 'images_seen'):,.0f}",
                _count(variant.fact(name, "parameters")),
                size(sent) if sent else "–",
                size(variant.payload) if travels else "–",
                f"{variant.fact(name, 'seconds') / 60:.1f}",
            ]
        )
    return rows


def _main_table(variants: Sequence[Variant], unit: str) -> list[str]:
    named = len(variants) > 1
    head = ["variant"] * named + [
        *("method", "Dice", "95 %", "ours less it", "95 %", "p", "IoU", f"HD95 ({unit})", "images seen"),
        *("parameters", "sent in training", "an image", "minutes"),
    ]
    return table(head, [row for variant in variants for row in _main_rows(variant, named)])


def _parts_table(variant: Variant, names: Sequence[str], columns: dict[str, Floats]) -> list[str]:
    head = ["Dice", *names]
    rows = [[variant.title(name), *(f"{value:.3f}" for value in columns[name])] for name in variant.methods]
    return table(head, rows)


def _by_site(variant: Variant) -> list[str]:
    columns = {name: variant.site_dice(name) for name in variant.methods}
    return _parts_table(variant, variant.held.sites, columns)


def _by_class(variant: Variant, names: Sequence[str]) -> list[str]:
    columns = {name: variant.held.mean(variant.scores(name)[:, DICE]) for name in variant.methods}
    return _parts_table(variant, names, columns)


def _against_first(variants: Sequence[Variant]) -> list[str]:
    """Ours in every variant less ours in the first, over the seeds that both have; no row where it is the same."""
    first, *others = variants
    rows = []
    for other in others:
        seeds = [seed for seed in first.seeds if seed in other.seeds]
        pair = [
            Variant(v.name, [record for record in v.records if record["seed"] in seeds])
            for v in (first, other)
        ]
        same_subjects = seeds and all(
            subjects_of(a["methods"][OURS]["scores"]) == subjects_of(b["methods"][OURS]["scores"])
            for a, b in zip(pair[0].records, pair[1].records, strict=True)
        )
        if same_subjects and not np.array_equal(pair[0].dice(OURS), pair[1].dice(OURS)):
            gap = differences(pair[0].held, pair[1].dice(OURS), {"first": pair[0].dice(OURS)})["first"]
            rows.append([other.name, *difference(gap)])
    return table([f"ours less ours in {first.name}", "points", "95 %", "p"], rows) if rows else []


def _class_names(record: dict[str, Any]) -> list[str]:
    known = record["dataset"]["class_names"]
    return list(known) or [f"class {number}" for number in range(1, record["dataset"]["classes"])]


def _intro(result: dict[str, Any]) -> str:
    first = result["runs"][0]
    dataset = first["dataset"]
    sites = ", ".join(f"{name} {counts['subjects']}" for name, counts in dataset["sites"].items())
    seeds = sorted({record["seed"] for record in result["runs"]})
    return (
        f"{result['question']} `ppcmi experiment run {result['experiment']}`: {dataset['name']},"
        f" {dataset['size']} x {dataset['size']}, subjects by site: {sites};"
        f" seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))};"
        f" {_machines(result['runs'])}."
    )


def _machines(records: Sequence[dict[str, Any]]) -> str:
    """What the networks were trained on, each once; records of earlier versions know neither GPU nor precision."""
    places: dict[str, None] = {}
    precisions: dict[str, None] = {}
    others = [
        facts["environment"] for r in records for facts in r["methods"].values() if "environment" in facts
    ]
    for known in [*(record["environment"] for record in records), *others]:
        cpu = processor(known["torch_threads"], known["cpu"])
        places[" and ".join([*known.get("gpus", []), cpu])] = None
        if "training_precision" in known:
            precisions[known["training_precision"]] = None
    return ", ".join([", or ".join(places), *precisions])


def _missing(result: dict[str, Any]) -> list[str]:
    done = {(record["variant"], record["seed"]) for record in result["runs"]}
    waiting: dict[str, list[int]] = {}
    for variant, seed in result["planned"]:
        if (variant, seed) not in done:
            waiting.setdefault(variant, []).append(seed)
    parts = [f"{name} (seed {', '.join(map(str, seeds))})" for name, seeds in waiting.items()]
    return [f"Not yet measured: {'; '.join(parts)}.", ""] if parts else []


def _kept_by_codes(variants: Sequence[Variant]) -> list[str]:
    """What mask codes keep, where they lose something that the tables would show."""
    known = {
        v.name: [site for r in v.records for site in r.get("mask_code_dice", {}).values()] for v in variants
    }
    means = {name: float(np.mean(values)) for name, values in known.items() if values}
    if all(value > 0.995 for value in means.values()):
        return []
    listed = ", ".join(f"`{name}` {value:.3f}" for name, value in means.items())
    return [f"Dice that the mask codes of ours alone keep of the masks: {listed}.", ""]


def _learning_rates(result: dict[str, Any]) -> list[str]:
    """The rates that U-Nets chose, a line for each list that was tried, and those given, where they differ."""
    found: dict[str, dict[str, set[float]]] = {}
    for record in result["runs"]:
        tried = _rates(record["settings"]["baselines"]["learning_rates"])
        for name in UNET_METHODS:
            if name in record["methods"]:
                rate = record["methods"][name]["learning_rate"]
                title = method_title(name, record["settings"])
                found.setdefault(tried, {}).setdefault(title, set()).add(rate)
    lines = []
    for tried in sorted(found, key=lambda tried: not tried):
        methods = found[tried]
        if tried or len(set().union(*methods.values())) > 1:
            source = f"validation chose of {tried}" if tried else "were given"
            listed = "; ".join(f"{title} {_rates(rates)}" for title, rates in methods.items())
            lines += [f"Learning rates that {source}: {listed}.", ""]
    return lines


def _rates(rates: Iterable[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(rates))


def _other_thresholds(result: dict[str, Any]) -> list[str]:
    """Which records have thresholds that this version would have chosen otherwise."""
    seeds: dict[str, list[int]] = {}
    for record in result["runs"]:
        chosen = any(value is not None for value in record["thresholds"].values())
        if chosen and threshold_rule(record) != RULE:
            seeds.setdefault(record["variant"], []).append(record["seed"])
    if not seeds:
        return []
    listed = "; ".join(f"`{name}` (seed {', '.join(map(str, found))})" for name, found in seeds.items())
    return [f"Thresholds of an earlier rule than today's ({RULE}): {listed}.", ""]


def _late(variants: Sequence[Variant]) -> list[str]:
    lines = []
    for variant in variants:
        names = dict.fromkeys(name for record in variant.records for name in record["late_sites"])
        for name in names:
            scores = [r["late_sites"][name] for r in variant.records if name in r["late_sites"]]
            joined = f"{name} joined late in `{variant.name}`: Dice {np.mean(scores):.3f}"
            beside = [
                f"{v.site_dice(OURS)[v.held.sites.index(name)]:.3f} in `{v.name}`"
                for v in variants
                if name in v.held.sites
            ]
            others = f"; having taken part: {', '.join(beside)}" if beside else ""
            lines += [f"{joined}{others}.", ""]
    return lines


def section(result: dict[str, Any]) -> str:
    """One experiment's part of the page."""
    variants, name = variants_of(result), result["experiment"]
    first = result["runs"][0]
    lines = [
        f"## {result['title']}",
        "",
        _intro(result),
        "",
        *_main_table(variants, first["dataset"]["spacing_unit"]),
    ]
    if len(variants) > 1:
        lines += _against_first(variants)
    classes = _class_names(first)
    for variant in variants:
        if len(variant.methods) > 3 or len(variants) == 1:
            lines += [f"By site, `{variant.name}`:", "", *_by_site(variant)]
            if len(classes) > 1:
                lines += [f"By class, `{variant.name}`:", "", *_by_class(variant, classes)]
    lines += [
        *shortfalls_of(variants),
        *_kept_by_codes(variants),
        *_learning_rates(result),
        *repeats_of(result),
        *_other_thresholds(result),
        *_late(variants),
    ]
    if result["notes"]:
        lines += [result["notes"], ""]
    if result["figure"] is not None:
        lines += [f"![{result['title']}](figures/experiment_{name}.png)", ""]
    if result["rows"]:
        lines += [f"![{result['title']}: held-out images](figures/experiment_{name}_rows.png)", ""]
    return "\n".join([*lines, *_missing(result)])


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    effort = Effort.of(results).told(Effort.of(comparison_of(results)))
    return "\n".join([HEAD, effort, *overview(results), *(section(result) for result in results)])


def write_page(folder: Path, path: Path) -> None:
    """Make the page from the records of a folder."""
    path.write_text(page([read_records(file) for file in sorted(folder.glob("*.json"))]), encoding="utf-8")
