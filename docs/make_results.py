"""Make docs/results.md from the figures in docs/results/*.json.

    python docs/make_results.py                    write docs/results.md
    python docs/make_results.py --check            fail when the page is not what the figures say
    python docs/make_results.py --add RUN [NAME]   keep a run's metrics.json, without paths, as
                                                   docs/results/NAME.json
    python docs/make_results.py --import-time      measure `import ppcmi_fast` and keep it as
                                                   docs/results/import-time.json

Text that no figure can say (what was tried where a goal is missed) stands in docs/results/NAME.md and is
taken over as it is; docs/results/goals.md follows the table of goals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppcmi_fast.errors import PpcmiError
from ppcmi_fast.report import words
from ppcmi_fast.report.runfolder import load_metrics, method_order, method_title

DOCS = Path(__file__).resolve().parent
IMPORT_TIME = "import-time"

DEMO_SECONDS = 5 * 60
SUNNYBROOK_SECONDS, SUNNYBROOK_MB = 40 * 60, 6000
POOLED_POINTS = 3.0
IMPORT_SECONDS = 0.3


@dataclass(frozen=True)
class Goal:
    """One line of what the system must show: met is None where nothing was measured."""

    text: str
    measured: str
    met: bool | None


def verdict(met: bool | None) -> str:
    """What the goal table says."""
    return "not measured" if met is None else "met" if met else "**not met**"


def _is_demo(name: str) -> bool:
    return name.startswith("demo")


def _four_bits(run: dict[str, Any]) -> bool:
    config = run.get("config", {})
    goal = {"trust": "federation", "bits_up": 4, "bits_down": 4, "query_views": 1}
    return {"query_views": 1, **config}.items() >= goal.items()


def _seconds_goal(text: str, run: dict[str, Any] | None, limit: float) -> Goal:
    seconds = words.total_seconds(run) if run else None
    if seconds is None:
        return Goal(text, "", None)
    return Goal(text, words.duration(seconds), seconds < limit)


def _sunnybrook_goals(run: dict[str, Any] | None) -> list[Goal]:
    time_text = "`ppcmi federate` on sunnybrook at 128 × 128, 4 sites: under 40 minutes"
    memory_text = "the same: under 6 GB"
    # A run of another size says nothing about this goal.
    fits = run is not None and run["dataset"].get("size") == 128 and len(run["dataset"].get("sites", {})) == 4
    memory = words.number(run.get("peak_rss_mb")) if run and fits else None
    return [
        _seconds_goal(time_text, run if fits else None, SUNNYBROOK_SECONDS),
        Goal(
            memory_text,
            f"{memory / 1000:.1f} GB" if memory else "",
            memory < SUNNYBROOK_MB if memory else None,
        ),
    ]


def _local_goal(name: str, run: dict[str, Any]) -> Goal:
    text = f"{name}, mode federation, 4 bits both ways: mean Dice at least that of the per-site U-Nets"
    ours, local = words.mean_dice(run, "ppcmi"), words.mean_dice(run, "unet_local")
    if ours is None or local is None or not _four_bits(run):
        return Goal(text, "", None)
    measured = f"{ours:.3f} against {local:.3f} ({words.signed(100 * (ours - local))} points)"
    return Goal(text, measured, ours >= local)


def _pooled_goal(name: str, run: dict[str, Any]) -> Goal:
    text = f"{name}, the same: within 3 points of the pooled U-Net trained on as many images"
    ours, pooled = words.mean_dice(run, "ppcmi"), words.mean_dice(run, "unet_centralised")
    if ours is None or pooled is None or not _four_bits(run):
        return Goal(text, "", None)
    seen = [words.number(run["methods"][key].get("images_seen")) for key in ("ppcmi", "unet_centralised")]
    measured = f"{ours:.3f} against {pooled:.3f} ({words.signed(100 * (ours - pooled))} points)"
    measured += f"; images seen {words.integer(seen[0])} and {words.integer(seen[1])}"
    if seen[0] is None or seen[1] is None:
        return Goal(text, measured, None)
    if seen[1] < 0.99 * seen[0]:
        return Goal(text, measured + "; the pooled U-Net saw fewer, so this shows nothing", False)
    # Rounded as printed, so that the verdict never contradicts the number beside it.
    return Goal(text, measured, round(100 * (pooled - ours), 1) <= POOLED_POINTS)


def _payload_goal(name: str, run: dict[str, Any]) -> Goal:
    payload = run.get("payload_bytes", {})
    up, down = words.number(payload.get("up")), words.number(payload.get("down"))
    text = f"{name}: payload per image, up and down, measured on the wire bytes"
    if up is None or down is None:
        return Goal(text, "", None)
    side = run["dataset"].get("size", "?")
    return Goal(text, f"{up:,.0f} + {down:,.0f} bytes at {side} × {side}", True)


def goals(runs: dict[str, dict[str, Any]], import_time: dict[str, Any] | None) -> list[Goal]:
    """Every goal with what was measured; `runs` maps the name of a figure file to its metrics."""
    demo = next((run for name, run in runs.items() if _is_demo(name)), None)
    real = {name: run for name, run in runs.items() if not _is_demo(name)}
    sunnybrook = next((run for run in real.values() if run["dataset"].get("name") == "sunnybrook"), None)
    lines = [_seconds_goal("`ppcmi demo`, report included: under 5 minutes", demo, DEMO_SECONDS)]
    lines += _sunnybrook_goals(sunnybrook)
    for name, run in real.items():
        lines += [_local_goal(name, run), _pooled_goal(name, run), _payload_goal(name, run)]
    added = words.number((import_time or {}).get("added_seconds"))
    text = "`import ppcmi_fast` adds under 0.3 s to `import torch`"
    lines.append(
        Goal(
            text, "" if added is None else f"{added:.2f} s", None if added is None else added < IMPORT_SECONDS
        )
    )
    return lines


def _table(head: list[str], rows: list[list[str]], rest: str = "---:") -> str:
    align = ["---"] + [rest] * (len(head) - 1)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in [head, align, *rows]
    )


def _scores(run: dict[str, Any]) -> str:
    methods = run["methods"]
    sites = list(run["dataset"].get("sites", {}))
    unit = words.unit(run)
    head = ["method", "Dice, mean", *(f"Dice {site}" for site in sites), f"HD95 ({unit})", f"ASD ({unit})"]
    rows = []
    for name in method_order(list(methods)):
        score: dict[str, Any] = methods[name]
        dice, hd95, asd = (score.get(metric, {}) for metric in ("dice", "hd95", "asd"))
        per_site = [words.decimal(dice.get("site", {}).get(site), 3) for site in sites]
        distances = [words.with_interval(metric, 2) for metric in (hd95, asd)]
        rows.append([method_title(name, run["config"]), words.with_interval(dice, 3), *per_site, *distances])
    return _table(head, rows)


def _classes(run: dict[str, Any]) -> str:
    methods = run["methods"]
    keys = sorted({key for score in methods.values() for key in score.get("dice", {}).get("class", {})})
    if len(keys) < 2:
        return ""
    rows = [
        [
            method_title(name, run["config"]),
            *(words.decimal(methods[name]["dice"].get("class", {}).get(key), 3) for key in keys),
        ]
        for name in method_order(list(methods))
    ]
    return _table(["method", *(f"Dice, class {key}" for key in keys)], rows)


def _effort(run: dict[str, Any]) -> str:
    methods = run["methods"]
    rows = []
    for name in method_order(list(methods)):
        method = methods[name]
        seen, parameters = words.integer(method.get("images_seen")), words.integer(method.get("parameters"))
        rows.append(
            [method_title(name, run["config"]), seen, words.duration(method.get("seconds")), parameters]
        )
    return _table(["method", "images seen in training", "training time", "parameters"], rows)


def _facts(run: dict[str, Any]) -> str:
    rows = [[label, f"{readable} ({exact} bytes)"] for label, readable, exact in words.payload_rows(run)]
    latency = run.get("latency_ms", {})
    if latency:
        parts = ", ".join(
            f"{name} {words.decimal(value, 2)}" for name, value in latency.items() if name != "total"
        )
        rows.append(["latency of one image", f"{words.decimal(latency.get('total'), 2)} ms ({parts})"])
    stages = ", ".join(f"{n} {words.duration(v)}" for n, v in run.get("seconds", {}).items() if n != "total")
    if stages:
        rows.append(["time of the stages", f"{words.duration(words.stage_seconds(run))} ({stages})"])
    if words.total_seconds(run) is not None:
        rows.append(["time of the whole run, report included", words.duration(words.total_seconds(run))])
    if words.number(run.get("peak_rss_mb")):
        rows.append(["peak memory", f"{run['peak_rss_mb'] / 1000:.2f} GB"])
    environment, config = run.get("environment", {}), run.get("config", {})
    libraries = ", ".join(f"{name} {version}" for name, version in environment.get("libraries", {}).items())
    cpu, threads = environment.get("cpu", "–"), environment.get("threads")
    rows.append(["measured on", words.processor(threads, cpu) if threads else cpu])
    rows.append(
        [
            "versions",
            ", ".join(part for part in (f"Python {environment.get('python', '?')}", libraries) if part),
        ]
    )
    settings = [
        f"{key} {config[key]}"
        for key in ("trust", "mixing", "mask_mixing", "mask_weights", "folds", "bits_up", "bits_down", "seed")
        if key in config
    ]
    rows.append(["settings", ", ".join(settings) or "–"])
    return _table(["what", "measured"], rows, "---")


def _section(name: str, run: dict[str, Any], notes: str) -> str:
    dataset = run["dataset"]
    sites: dict[str, dict[str, Any]] = dataset.get("sites", {})
    counts = "; ".join(
        f"{site}: {count.get('subjects', '?')} subjects,"
        f" {' + '.join(str(count.get(part, '?')) for part in ('train', 'val', 'test'))} images"
        for site, count in sites.items()
    )
    side = dataset.get("size", "?")
    what = f"{dataset.get('name', name)}, {side} × {side}, {len(sites)} sites"
    intro = f"{what} ({counts}; training + validation + test). Scores on held-out subjects."
    parts = [f"## {name}", intro, _scores(run), _classes(run), _effort(run), _facts(run), notes.strip()]
    return "\n\n".join(part for part in parts if part)


def page(runs: dict[str, dict[str, Any]], notes: dict[str, str], import_time: dict[str, Any] | None) -> str:
    """The whole of docs/results.md."""
    goal_rows = [[goal.text, goal.measured or "–", verdict(goal.met)] for goal in goals(runs, import_time)]
    head = [
        "# Results",
        "Made by `docs/make_results.py` from the figures in `docs/results/`; do not edit by hand.",
        "The keyed transform is obfuscation and separation between sites, not encryption; these figures say "
        "nothing about privacy, see `docs/architecture.md`.",
        "Dice and distances: mean over the sites of each site's mean over its held-out images. Both masks "
        "empty: Dice 1, distances 0; one empty: Dice 0, distances the image diagonal. Distances are in mm "
        "where the spacing is known, else in px of the resized image.",
        "## Goals",
        _table(["goal", "measured", "verdict"], goal_rows, "---"),
        notes.get("goals", "").strip(),
    ]
    sections = [_section(name, run, notes.get(name, "")) for name, run in runs.items()]
    return "\n\n".join(part for part in [*head, *sections] if part) + "\n"


def clean(metrics: dict[str, Any]) -> dict[str, Any]:
    """A copy that holds no path of the machine it was measured on."""

    def tidy(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tidy(item) for key, item in value.items()}
        if isinstance(value, list):
            return [tidy(item) for item in value]
        if isinstance(value, str):
            # Absolute paths keep their last part only, in values and inside command lines.
            return " ".join(Path(word).name if word.startswith("/") else word for word in value.split(" "))
        return value

    tidied: dict[str, Any] = tidy(metrics)
    return tidied


def import_seconds(run: Callable[[str], float], repeats: int = 7) -> dict[str, float]:
    """Median seconds of `import torch` and of torch with ppcmi_fast, in fresh interpreters taking turns."""
    torch, both = "import torch", "import torch, ppcmi_fast, ppcmi_fast.ops"
    run(both)
    times: dict[str, list[float]] = {torch: [], both: []}
    for _ in range(repeats):
        for statement, seconds in times.items():
            seconds.append(run(statement))
    first, second = statistics.median(times[torch]), statistics.median(times[both])
    return {
        "torch_seconds": first,
        "with_ppcmi_fast_seconds": second,
        "added_seconds": max(0.0, second - first),
    }


def _time_import(statement: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )


def main(arguments: list[str] | None = None, docs: Path = DOCS) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make docs/results.md from docs/results/*.json.")
    parser.add_argument(
        "--check", action="store_true", help="fail when the page is out of date, write nothing"
    )
    parser.add_argument("--add", nargs="+", metavar=("RUN", "NAME"), help="keep a run's figures first")
    parser.add_argument("--import-time", action="store_true", help="measure the import first")
    options = parser.parse_args(arguments)
    folder, target = docs / "results", docs / "results.md"
    try:
        if options.add:
            run = Path(options.add[0])
            kept = folder / f"{options.add[1] if len(options.add) > 1 else run.resolve().name}.json"
            folder.mkdir(exist_ok=True)
            kept.write_text(
                json.dumps(clean(load_metrics(run / "metrics.json")), indent=1) + "\n", encoding="utf-8"
            )
        if options.import_time:
            folder.mkdir(exist_ok=True)
            figures = json.dumps(import_seconds(_time_import), indent=1)
            (folder / f"{IMPORT_TIME}.json").write_text(figures + "\n", encoding="utf-8")
        files = [path for path in sorted(folder.glob("*.json")) if path.stem != IMPORT_TIME]
        runs = {path.stem: load_metrics(path) for path in files}
    except (PpcmiError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    notes = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    import_file = folder / f"{IMPORT_TIME}.json"
    import_time = json.loads(import_file.read_text(encoding="utf-8")) if import_file.is_file() else None
    text = page(runs, notes, import_time)
    if options.check:
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            print(f"{target.name} is out of date: run python docs/make_results.py", file=sys.stderr)
            return 1
        return 0
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target.name} from {len(runs)} run{'s' if len(runs) != 1 else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
