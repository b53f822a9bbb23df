"""Plans and runs of made-up figures, for tests of experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import TINY

from ppcmi_fast.experiments.draws import Draws
from ppcmi_fast.experiments.plan import Plan, planned_runs
from ppcmi_fast.federation.calibration import RULE
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.metrics import MEASURES, ImageScores, ScoreRow, write_scores

PHANTOM = {"subjects": 3, "sites": 2, "slices": 1, "size": 32}
PARTS = {"train": {"a": ["s1"]}, "val": {"a": ["s2"]}, "test": {"a": ["s3"]}}
IMAGES = 2
POOLED = "unet_centralised"
SHIFTS = {"ppcmi": 0.0, "unet_centralised": 0.08, "unet_local": -0.2}


BOTH = ["unet_centralised", "unet_local"]
PIECES: list[dict[str, Any]] = [
    {"name": "ours", "hidden": True},
    *(
        {"name": name, "hidden": True, "baselines_only": True, "settings": {"baselines.methods": [method]}}
        for name, method in zip(("pooled", "local"), BOTH, strict=True)
    ),
    {"name": "main", "settings": {"baselines.methods": BOTH}},
]
BUDGET = TINY | {"baselines.images": 100}


def plan(**changes: Any) -> Plan:
    """A plan of one tiny run; `changes` replace what the file would say."""
    values: dict[str, Any] = {
        "title": "A title",
        "question": "A question?",
        "data": "phantom:cardiac",
        "phantom": PHANTOM,
        "settings": TINY,
        "variants": [{"name": "one"}],
    }
    return Plan.model_validate(values | changes)


def in_pieces(**settings: Any) -> Plan:
    """A plan whose ours and baselines are pieces, and `main` all of it."""
    return plan(settings=BUDGET | settings, variants=PIECES)


def fixed_split(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[str]]]:
    """Have whatever data divided in the same parts, which a test may change."""
    parts = dict(PARTS)
    monkeypatch.setattr(Draws, "of", lambda self, config: parts)
    return parts


def finished(folder: Path, config: RunConfig) -> None:
    """What of a finished run's folder is asked for before it is taken for one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "split.json").write_text(json.dumps(PARTS))
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "metrics.json").write_text("{}")
    (folder / "stages.json").write_text('{"codec": {}, "mapper": {}}')


def scores(dice: list[float]) -> ImageScores:
    """An image's, all measures but Dice being 1."""
    values = {measure: [1.0] * len(dice) for measure in MEASURES} | {"dice": dice}
    return ImageScores(**values)


def made_up(shift: float, subjects: range, seed: int, classes: int = 1) -> list[ScoreRow]:
    """Scores about 0.8 + `shift` of two sites' images and volumes."""
    rng = np.random.default_rng(seed)
    rows = []
    for site in ("a", "b"):
        for subject in subjects:
            for image in range(IMAGES):
                dice = np.clip(0.8 + shift + 0.05 * rng.normal(size=classes), 0, 1).tolist()
                rows.append(ScoreRow(site, f"s{subject}", f"{image}.png", "", scores(dice)))
            # A whole volume is another measure, and in no table here.
            rows.append(ScoreRow(site, f"s{subject}", "v", "all", scores([0.0] * classes)))
    return rows


def write_run(
    made: Plan,
    out: Path,
    shifts: dict[str, float],
    *,
    variant: str = "one",
    seed: int = 0,
    subjects: range = range(6),
    classes: int = 1,
    device: str = "cpu",
    seconds: dict[str, float] | None = None,
) -> dict[str, list[ScoreRow]]:
    """A finished run of a plan with methods of so much shifted scores; returns those of images, by method."""
    run = next(r for r in planned_runs(made, Path("data")) if (r.variant, r.seed) == (variant, seed))
    folder = out / run.folder
    folder.mkdir(parents=True)
    rows = {
        name: made_up(shift, subjects, 10 * seed + n % 2, classes)
        for n, (name, shift) in enumerate(shifts.items())
    }
    write_scores(folder / "scores.csv", rows)
    methods = {
        name: {"images_seen": 10 + seed, "seconds": 60.0, "bytes_sent": {"x": 2000}, "parameters": 5_000_000}
        for name in rows
    }
    sites = {site: {"subjects": 9, "train": 4, "val": 2, "test": 12} for site in ("a", "b")}
    names = ["cavity", "wall"] if classes == 2 else []
    metrics = {
        "methods": methods,
        "seconds": seconds or {},
        "payload_bytes": {"up": 100, "down": 20, "train_upload_total": 1},
        "thresholds": {"a": 0.4, "b": 0.5},
        "calibration": RULE,
        "config": run.config.model_dump(mode="json", exclude={"data": True, "reading": {"cache"}}),
        "dataset": {
            "name": "d",
            "size": 32,
            "classes": classes + 1,
            "class_names": names,
            "sites": sites,
            "spacing_unit": "px",
        },
        "environment": {
            "cpu": "x",
            "cores": 2,
            "torch_threads": 1,
            "training_device": device,
            "training_precision": "bfloat16 autocast",
            "cuda": {"devices": ["H200"]},
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return {name: [row for row in found if not row.is_volume] for name, found in rows.items()}


def quiet(line: str) -> None:
    """Take no line: nothing is dropped."""
    raise AssertionError(f"nothing is to be dropped, but {line}")


def dice_of(row: ScoreRow) -> float:
    """An image's, over its classes."""
    return float(np.mean(row.scores.dice))
