"""What an experiment's runs say, as one JSON, and the page made from such JSONs alone.

Over several seeds every seed has its own split. A method's figure is the mean over seeds of the mean over sites; its
interval and the paired tests draw and compare the subjects of every seed's sites.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments.plan import Plan
from ppcmi_fast.federation.runfolder import read_json
from ppcmi_fast.metrics import ScoreRow, compare_methods, read_scores, summarise
from ppcmi_fast.report.runfolder import method_order, method_title

MEASURES = ("dice", "hd95")
LEVEL = 0.05


def _strata(rows_of: dict[int, list[ScoreRow]]) -> tuple[list[Any], list[str], list[str]]:
    """Scores, sites and subjects over all seeds; every seed's sites are sites of their own."""
    scores, sites, subjects = [], [], []
    for seed, rows in rows_of.items():
        for row in rows:
            if not row.is_volume:
                scores.append(row.scores)
                sites.append(f"{seed}/{row.site}")
                subjects.append(row.subject)
    return scores, sites, subjects


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _method(summary: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """One method's figures: of its pooled scores, and means of what its runs took."""
    figures: dict[str, Any] = {}
    for measure in MEASURES:
        sites = {
            name: _mean([e[measure]["site"][name] for e in entries]) for name in entries[0][measure]["site"]
        }
        figures[measure] = {k: summary[measure][k] for k in ("mean", "ci95", "class")} | {"site": sites}
    return figures | {
        "images_seen": _mean([entry["images_seen"] for entry in entries]),
        "seconds": _mean([entry["seconds"] for entry in entries]),
        "bytes_sent": _mean([sum(entry["bytes_sent"].values()) for entry in entries]),
        "parameters": entries[0]["parameters"],
    }


def _variant(folders: dict[int, Path]) -> dict[str, Any]:
    """Figures of one variant from its runs, by seed."""
    metrics = {seed: read_json(folder / "metrics.json") for seed, folder in folders.items()}
    rows = {seed: read_scores(folder / "scores.csv") for seed, folder in folders.items()}
    first = next(iter(metrics.values()))
    names = method_order(list(first["methods"]))
    strata = {name: _strata({seed: rows[seed][name] for seed in rows}) for name in names}
    # Every method answered the same images in the same order.
    _, sites, subjects = strata[names[0]]
    methods = {
        name: _method(
            summarise(strata[name][0], sites, subjects), [metrics[seed]["methods"][name] for seed in metrics]
        )
        for name in names
    }
    best = max(methods, key=lambda name: methods[name]["dice"]["mean"])
    compared = compare_methods(best, {name: strata[name][0] for name in names}, sites, subjects)
    tests = [row for row in compared if row["measure"] == "dice"]
    late = [found["late_sites"]["dice"]["site"] for found in metrics.values() if "late_sites" in found]
    return {
        "methods": methods,
        "best": best,
        "tied": [row["b"] for row in tests if row["p_holm"] is None or row["p_holm"] >= LEVEL],
        "tests": [
            {k: row[k] for k in ("b", "difference", "ci95", "p", "p_holm", "subjects")} for row in tests
        ],
        "payload_bytes": {k: first["payload_bytes"][k] for k in ("up", "down")},
        "latency_ms": first["latency_ms"],
        "settings": first["config"],
        "late_sites": {name: _mean([entry[name] for entry in late]) for name in (late[0] if late else {})},
    }


def collect(name: str, plan: Plan, out: Path) -> dict[str, Any]:
    """All figures of an experiment whose runs are done; variants of which a seed is missing are left out, and named.

    Raises:
        RunError: none is done.
    """
    variants, missing = {}, []
    for variant in plan.variants:
        folders = {seed: out / variant.name / f"seed-{seed}" for seed in plan.seeds}
        if all((folder / "metrics.json").is_file() for folder in folders.values()):
            variants[variant.name] = _variant(folders)
        else:
            missing.append(variant.name)
    if not variants:
        raise RunError(f"{out}: expected finished runs, found none; ppcmi experiment run {name}")
    facts = read_json(out / next(iter(variants)) / f"seed-{plan.seeds[0]}" / "metrics.json")
    return {
        "experiment": name,
        "title": plan.title,
        "question": plan.question,
        "command": f"ppcmi experiment run {name}",
        "seeds": list(plan.seeds),
        "dataset": {k: facts["dataset"][k] for k in ("name", "size", "classes", "sites", "spacing_unit")},
        "environment": {k: facts["environment"][k] for k in ("cpu", "cores", "torch_threads")},
        "figure": None if plan.figure is None else plan.figure.model_dump(mode="json"),
        "missing": missing,
        "variants": variants,
    }


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B" if value else "–"


def _rows(result: dict[str, Any]) -> list[str]:
    several = len(result["variants"]) > 1
    rows = []
    for variant, found in result["variants"].items():
        for name, method in found["methods"].items():
            dice, low_high = method["dice"]["mean"], method["dice"]["ci95"]
            marked = name == found["best"] or name in found["tied"]
            shown = f"**{dice:.3f}**" if marked else f"{dice:.3f}"
            interval = "–" if low_high is None else f"{low_high[0]:.3f} .. {low_high[1]:.3f}"
            ours = name.startswith("ppcmi")
            payload = found["payload_bytes"]["up"] + found["payload_bytes"]["down"]
            cells = [
                *([variant] if several else []),
                method_title(name),
                shown,
                interval,
                f"{method['hd95']['mean']:.2f}",
                f"{method['images_seen']:,.0f}",
                _bytes(method["bytes_sent"]),
                _bytes(payload) if ours and name != "ppcmi_float32" else "–",
                f"{method['seconds'] / 60:.1f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def section(result: dict[str, Any]) -> str:
    """One experiment's part of the page."""
    unit, dataset = result["dataset"]["spacing_unit"], result["dataset"]
    several = len(result["variants"]) > 1
    head = [
        *(["variant"] if several else []),
        *(
            "method",
            "Dice",
            "95 %",
            f"HD95 ({unit})",
            "images seen",
            "sent in training",
            "an image",
            "minutes",
        ),
    ]
    lines = [
        f"## {result['title']}",
        "",
        f"{result['question']} `{result['command']}`: {dataset['name']}, {dataset['size']} x {dataset['size']},"
        f" {len(dataset['sites'])} sites, {len(result['seeds'])} seed{'s' if len(result['seeds']) > 1 else ''};"
        f" {result['environment']['torch_threads']} threads of {result['environment']['cpu']}.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *_rows(result),
        "",
    ]
    for variant, found in result["variants"].items():
        if found["late_sites"]:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in found["late_sites"].items())
            lines += [f"Joined late in `{variant}`: {scores} (Dice).", ""]
    if result["missing"]:
        lines += [f"Not yet measured: {', '.join(result['missing'])}.", ""]
    return "\n".join(lines)


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    head = [
        "# Experiments",
        "",
        "Made by `ppcmi experiment table` from `docs/results/experiments/`; do not edit by hand. Dice: mean over seeds"
        " and sites of each site's mean over its held-out images and classes; the interval is a bootstrap over the"
        " subjects of every seed and site. Bold: the best of a variant and those that a paired signed-rank test over"
        " subjects (Holm) does not tell from it at 5 %, or for which there are too few subjects to test. *Sent in"
        " training* counts all that sites and server exchange; *an image* is a query and its reply; minutes are of"
        " training, all sites together in one process.",
        "",
    ]
    return "\n".join([*head, *(section(result) for result in results)])


def write_page(folder: Path, path: Path) -> None:
    """Make the page from the JSONs of a folder."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    path.write_text(page(results), encoding="utf-8")
